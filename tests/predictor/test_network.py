from __future__ import annotations

import pytest
import torch

from budgetfusion_nodes.core.curves import DEFAULT_GRID, METRICS
from budgetfusion_nodes.predictor.features import ConditioningFeatures, collate
from budgetfusion_nodes.predictor.network import (
    QUANTILES,
    CurvePredictor,
    PredictorSize,
    ensemble_quantiles,
    parameter_shapes,
    pinball,
)

SIZE = PredictorSize(8, 4, heads=2, context=16, hidden=12)


def network(seed: int = 0, dropout: float = 0.0) -> CurvePredictor:
    torch.manual_seed(seed)
    return CurvePredictor(SIZE, DEFAULT_GRID, METRICS, dropout).eval()


def batch(count: int = 16, length: int = 9, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    return collate(
        [
            ConditioningFeatures(3 * torch.randn(length, 8, generator=g), torch.randn(4, generator=g), i % 2 == 0)
            for i in range(count)
        ]
    )


def shaken(seed: int) -> CurvePredictor:
    """Weights far from their start, so that nothing holds by accident."""
    found = network(seed)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(4.0).add_(torch.randn_like(parameter))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_curves_are_ordered_and_end_at_zero_for_any_weights(seed):
    curves = shaken(seed)(batch(seed=seed))
    assert curves.shape == (16, len(DEFAULT_GRID), len(METRICS), len(QUANTILES))
    assert curves.isfinite().all()
    assert (curves >= 0).all()
    assert torch.equal(curves[:, -1], torch.zeros_like(curves[:, -1]))
    assert (curves.diff(dim=-1) >= 0).all()
    falling = [METRICS.index("d_sim"), METRICS.index("i_clip")]
    assert (curves[:, :, falling].diff(dim=1) <= 1e-6).all()


def test_l_snr_may_rise_along_the_grid():
    rises = [bool((shaken(seed)(batch())[:, :-1, 0].diff(dim=1) > 0).any()) for seed in range(5)]
    assert any(rises)


def test_with_a_zero_head_the_baseline_comes_out():
    found = network()
    grid = torch.tensor(DEFAULT_GRID, dtype=torch.float32)
    fall = (2 / grid - 2 / grid[-1])[:, None, None] * torch.tensor([0.7, 1.0, 1.4]) * torch.ones(3, 1)
    found.set_baseline(fall, floor=0.0)
    with torch.no_grad():
        for parameter in found.head[1].parameters():
            parameter.zero_()
    torch.testing.assert_close(found(batch(3)), fall.expand(3, -1, -1, -1), atol=1e-5, rtol=1e-4)


def test_trust_leads_from_the_baseline_to_the_networks_own_curves():
    found = {trust: shaken(3) for trust in (0.0, 0.5, 1.0)}
    own, none = shaken(3)(batch()), shaken(3)
    with torch.no_grad():
        for parameter in none.head[1].parameters():
            parameter.zero_()
    for trust, made in found.items():
        made.shrink(trust)
    torch.testing.assert_close(found[1.0](batch()), own)
    torch.testing.assert_close(found[0.0](batch()), none(batch()))
    half = found[0.5](batch())
    low, high = torch.minimum(own, none(batch())), torch.maximum(own, none(batch()))
    inside = (half >= low - 1e-4) & (half <= high + 1e-4)
    assert inside[:, :, 0, 0].all(), "the lowest quantile of a metric that need not fall is no sum of several outputs"
    assert not torch.allclose(half, own) and not torch.allclose(half, none(batch()))
    for outside in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            network().shrink(outside)


def test_the_answer_depends_on_the_prompt_and_not_on_its_padding_or_neighbours():
    found = shaken(1)
    short = ConditioningFeatures(torch.randn(3, 8), torch.randn(4), True)
    long = ConditioningFeatures(torch.randn(40, 8), torch.randn(4), True)
    alone, beside = found(collate([short])), found(collate([short, long]))
    torch.testing.assert_close(alone[0], beside[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(beside[0], beside[1], rtol=1e-2)


def test_shapes_are_known_before_a_network_is_built():
    state = network().state_dict()
    expected = parameter_shapes(SIZE, len(DEFAULT_GRID), len(METRICS))
    assert {key: tuple(value.shape) for key, value in state.items()} == expected


def test_an_ensemble_is_the_mean_and_keeps_the_order():
    networks = [shaken(seed) for seed in range(3)]
    mean = ensemble_quantiles(networks, batch())
    torch.testing.assert_close(mean, torch.stack([n(batch()) for n in networks]).mean(0).detach())
    assert (mean.diff(dim=-1) >= 0).all()


def test_pinball_is_least_at_the_empirical_quantile():
    measured = torch.randn(4001, generator=torch.Generator().manual_seed(0))
    candidates = torch.linspace(-2, 2, 401)
    loss = pinball(candidates[None, :, None].expand(1, -1, 3), measured[:, None]).mean(0)  # [401, 3]
    best = candidates[loss.argmin(0)]
    torch.testing.assert_close(best, measured.quantile(torch.tensor(QUANTILES)), atol=0.02, rtol=0)


def test_every_parameter_learns():
    found = network().train()
    pinball(found(batch())[:, None], torch.rand(16, 2, len(DEFAULT_GRID), 3)).mean().backward()
    still = [name for name, p in found.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still in ([], ["attend.bias"])  # a shift of all scores leaves a softmax as it is
