from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf

from budgetfusion_nodes.core.errors import UnsupportedError
from budgetfusion_nodes.predictor.features import (
    CLAMP,
    MAX_TOKENS,
    ConditioningFeatures,
    collate,
    fit_novelty,
    fit_projection,
    shorten,
    shrunk_covariance,
    whitening,
)


def rows(count: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) * torch.linspace(3, 0.5, width) + 5.0


@pytest.mark.parametrize(("count", "width"), [(500, 20), (30, 200)])
def test_whitening_gives_unit_variance_and_no_correlation(count, width):
    data = rows(count, width)
    mean, weight = whitening(data, 8)
    projected = (data - mean) @ weight
    assert weight.shape == (width, 8)
    torch.testing.assert_close(projected.T.cov(), torch.eye(8), atol=2e-3, rtol=0)


def test_whitening_matches_the_singular_values_of_an_outside_reference():
    data = rows(400, 12)
    mean, weight = whitening(data, 3)
    singular = torch.linalg.svdvals(data - data.mean(0))[:3] / (len(data) - 1) ** 0.5
    torch.testing.assert_close(1.0 / weight.norm(dim=0), singular, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mean, data.mean(0), rtol=1e-5, atol=1e-5)


def test_directions_without_variance_are_dropped():
    flat = torch.cat([rows(100, 3), torch.ones(100, 5)], dim=1)
    assert whitening(flat, 8)[1].shape == (8, 3)
    constant = whitening(torch.ones(10, 4), 8)[1]
    assert constant.shape[1] >= 1
    assert constant.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_dtype_and_a_leading_batch_of_one(dtype):
    projection = fit_projection(rows(200, 16), rows(50, 8))
    features = projection(rows(7, 16)[None].to(dtype), rows(1, 8).to(dtype))
    assert features.tokens.dtype == features.pooled.dtype == torch.float32
    assert features.tokens.shape == (7, 16)
    assert features.has_pooled


def test_wide_encoders_are_reduced_to_64():
    projection = fit_projection(rows(300, 512), None)
    features = projection(rows(5, 512), None)
    assert features.tokens.shape == (5, 64)
    assert features.pooled.shape == (0,)
    assert features.tokens.abs().max() <= CLAMP


def test_missing_pooled_is_zeros_and_a_flag():
    projection = fit_projection(rows(200, 16), rows(50, 8))
    features = projection(rows(7, 16), None)
    assert not features.has_pooled
    assert torch.equal(features.pooled, torch.zeros(8))
    assert not fit_projection(rows(200, 16), None)(rows(7, 16), rows(1, 8)).has_pooled


@pytest.mark.parametrize(
    ("tokens", "pooled", "said"),
    [
        (torch.zeros(3, 15), None, "15 numbers a token, and this planner was calibrated for 16"),
        (torch.zeros(2, 3, 16), None, "one prompt"),
        (torch.zeros(0, 16), None, "one prompt"),
        (torch.zeros(16), None, "one prompt"),
        (torch.full((3, 16), float("nan")), None, "not finite"),
        (torch.zeros(3, 16), torch.zeros(9), "pooled output has shape"),
        (torch.zeros(3, 16), torch.full((8,), float("inf")), "not finite"),
    ],
)
def test_another_encoders_output_is_refused(tokens, pooled, said):
    projection = fit_projection(rows(200, 16), rows(50, 8))
    with pytest.raises(UnsupportedError, match=said):
        projection(tokens, pooled)


def test_a_400_word_prompt_is_averaged_and_not_cut():
    tokens = torch.zeros(7 * 77, 4)
    tokens[-1] = 1.0  # the last word must still be seen
    short = shorten(tokens)
    assert short.shape == (MAX_TOKENS, 4)
    assert short[-1].sum() > 0
    torch.testing.assert_close(shorten(torch.ones(600, 4)), torch.ones(MAX_TOKENS, 4))
    assert torch.equal(shorten(tokens[:MAX_TOKENS]), tokens[:MAX_TOKENS])
    assert torch.equal(shorten(tokens[:100]), tokens[:100])


def test_collate_pads_and_masks():
    features = [ConditioningFeatures(torch.ones(n, 4), torch.ones(2), flag) for n, flag in ((3, True), (5, False))]
    batch = collate(features)
    assert batch.tokens.shape == (2, 5, 4)
    assert batch.mask.sum(1).tolist() == [3, 5]
    assert batch.tokens[0, 3:].abs().sum() == 0
    assert batch.has_pooled.tolist() == [[1.0], [0.0]]
    hidden = batch.without_pooled(torch.tensor([[1.0], [0.0]]))
    assert hidden.pooled[0].sum() == 0
    assert hidden.has_pooled.tolist() == [[0.0], [0.0]]


def prompts_of(count: int, seed: int, change: float = 0.0) -> torch.Tensor:
    """Summaries [count, 14] that are correlated as those of prompts are; `change` lies off their main directions.

    The first two numbers are 0: mean and spread of the one token that `as_features` gives."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    near = torch.randn(count, 4, generator=generator) @ mix + 0.1 * torch.randn(count, 12, generator=generator)
    off = torch.linalg.svd(mix).Vh[-1]  # orthogonal to all four
    return torch.cat([torch.zeros(count, 2), 3.0 + near + change * off], 1)


def as_features(summary: torch.Tensor) -> ConditioningFeatures:
    made = ConditioningFeatures(torch.zeros(1, 1), summary[2:], True)
    assert torch.equal(made.summary(), summary)
    return made


def shares_beyond(novelty, summaries: torch.Tensor) -> float:
    return float(np.mean([novelty.distance(as_features(s)) > 1.0 for s in summaries]))


def test_one_in_twenty_ordinary_prompts_is_called_unlike():
    novelty = fit_novelty(prompts_of(400, 1), prompts_of(400, 2))
    assert shares_beyond(novelty, prompts_of(2000, 3)) == pytest.approx(0.05, abs=0.025)


def test_a_change_off_the_usual_directions_is_noticed_though_small_in_each_number():
    novelty = fit_novelty(prompts_of(400, 1), prompts_of(400, 2))
    changed = prompts_of(500, 4, change=0.8)
    each = (changed - prompts_of(400, 1).mean(0)).abs() / prompts_of(400, 1).std(0)
    assert each[:, 2:].median() < 1.0  # every single number looks ordinary
    assert shares_beyond(novelty, changed) > 0.9


def test_few_prompts_of_many_numbers_are_enough():
    generator = torch.Generator().manual_seed(5)
    few, fresh = (torch.randn(n, 192, generator=generator) for n in (25, 200))
    few[:, :2] = fresh[:, :2] = 0.0
    novelty = fit_novelty(few[:15], few[15:])
    assert torch.isfinite(novelty.whitening).all()
    assert shares_beyond(novelty, fresh) < 0.5
    assert shares_beyond(novelty, fresh * 3) == 1.0


def test_a_number_that_never_varies_breaks_nothing():
    rows = prompts_of(50, 1)
    rows[:, 3] = 1.0
    novelty = fit_novelty(rows, rows)
    ordinary = novelty.distance(as_features(rows[0]))
    assert 0.0 < ordinary < 3.0
    rows[0, 3] += 1e-6  # rounding of another machine
    assert novelty.distance(as_features(rows[0])) == pytest.approx(ordinary, rel=0.05)


def test_without_pooled_output_the_distance_is_that_of_the_tokens():
    generator = torch.Generator().manual_seed(8)
    mix = torch.randn(9, 9, generator=generator)
    rows = torch.randn(300, 9, generator=generator) @ mix + 2.0  # 2 x 3 of the tokens, 3 pooled
    novelty = fit_novelty(rows, rows)
    precision = (novelty.whitening @ novelty.whitening.T).double()
    tokens = torch.linalg.inv(torch.linalg.inv(precision)[:6, :6])  # of the marginal
    prompt = ConditioningFeatures(torch.randn(4, 3, generator=generator), torch.zeros(3), False)
    off = (prompt.summary() - novelty.centre)[:6].double()
    assert novelty.distance(prompt) * novelty.limit == pytest.approx(float((off @ tokens @ off).sqrt()), rel=1e-3)


def test_shrunk_covariance_is_that_of_scikit_learn():
    rows = prompts_of(30, 6).double()
    rows -= rows.mean(0)
    theirs = ledoit_wolf(rows.numpy(), assume_centered=True)[0]
    assert np.allclose(shrunk_covariance(rows).numpy(), theirs, rtol=1e-9, atol=1e-12)
