from __future__ import annotations

import pytest
import torch

from budgetfusion_nodes.core.errors import UnsupportedError
from budgetfusion_nodes.core.features import (
    CLAMP,
    MAX_TOKENS,
    ConditioningFeatures,
    collate,
    fit_novelty,
    fit_projection,
    shorten,
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
        (torch.zeros(3, 15), None, "15 numbers a token, this planner was calibrated for 16"),
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


def test_novelty_is_small_inside_and_large_outside():
    projection = fit_projection(rows(400, 16), None)
    inside = [projection(rows(6, 16, seed), None) for seed in range(300)]
    novelty = fit_novelty(torch.stack([f.summary() for f in inside[:200]]))
    fresh = torch.tensor([novelty.distance(f) for f in inside[200:]])
    assert (fresh <= 1.0).float().mean() > 0.9  # 99 % by construction, less sampling error
    outside = projection(rows(6, 16, 999) * 4 + 20, None)
    assert novelty.distance(outside) > 1.5
    assert novelty.distance(inside[0]) == pytest.approx(0.0, abs=1e-5)
