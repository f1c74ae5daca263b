from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from budgetfusion_nodes.core.curves import tail_min
from budgetfusion_nodes.core.plan import decide_steps, threshold_at
from budgetfusion_nodes.core.risk import (
    ALPHAS,
    KAPPA_MIN,
    QUALITIES,
    RiskTable,
    calibrate,
    controlled_theta,
    critical_thetas,
)

COUNTS = np.arange(2, 41)
CURVE = 2.0 / COUNTS - 2.0 / COUNTS[-1]


def draw(rng: np.random.Generator, prompts: int, seeds: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Predicted u [N, C] and measured quality [N, S, C]: prompts differ, seeds differ, and curves have bumps."""
    level = np.exp(0.4 * rng.normal(size=(prompts, 1)))
    upper = 1.3 * level * np.exp(0.2 * rng.normal(size=(prompts, 1))) * CURVE
    truth = level[:, None] * np.exp(0.25 * rng.normal(size=(prompts, seeds, 1))) * CURVE
    bumps = np.exp(0.1 * rng.normal(size=truth.shape))
    return upper, np.clip(1.0 - truth * bumps, 0.0, 1.0)


def violation(upper: np.ndarray, quality: np.ndarray, theta: float, q: float) -> float:
    """Mean loss by planning each prompt with the rule itself."""
    losses = []
    for u, seeds in zip(upper, tail_min(quality), strict=True):
        steps = decide_steps(COUNTS.tolist(), u.tolist(), [(q, theta)], q, 1, 1000)
        losses.append(np.mean(seeds[:, steps - COUNTS[0]] < q))
    return float(np.mean(losses))


@pytest.mark.parametrize("q", [0.6, 0.9, 0.97])
def test_critical_thetas_are_where_the_plan_starts_to_miss(q):
    upper, quality = draw(np.random.default_rng(0), 30)
    critical = critical_thetas(upper, quality, q)
    for n in range(30):
        for s in range(2):
            enough = tail_min(quality[n, s]) >= q
            needed = COUNTS[enough.argmax() if enough.any() else -1]
            if not np.isfinite(critical[n, s]):
                assert needed == COUNTS[0]
                continue
            just_below, at = np.nextafter(critical[n, s], 0), critical[n, s]
            plans = [decide_steps(COUNTS.tolist(), upper[n].tolist(), [(q, t)], q, 1, 99) for t in (just_below, at)]
            assert plans[0] >= needed > plans[1]


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_the_corrected_mean_loss_is_at_most_alpha_and_tight(alpha):
    upper, quality = draw(np.random.default_rng(1), 150)
    theta = controlled_theta(critical_thetas(upper, quality, 0.9), alpha)
    corrected = (150 * violation(upper, quality, theta, 0.9) + 1.0) / 151
    looser = (150 * violation(upper, quality, theta * 1.0001 + 1e-9, 0.9) + 1.0) / 151
    assert corrected <= alpha + 1e-9 < looser + 1e-9
    assert looser > alpha


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("q", [0.8, 0.9, 0.95])
def test_coverage_on_new_prompts_over_many_calibration_sets(alpha, q):
    """P(quality < q) on new prompts, averaged over calibration draws, is at most alpha and close to it."""
    rng = np.random.default_rng(int(1000 * alpha + 100 * q))
    fresh = critical_thetas(*draw(rng, 20000), q)
    prompts, draws = 100, 300
    rates = [np.mean(fresh <= controlled_theta(critical_thetas(*draw(rng, prompts), q), alpha)) for _ in range(draws)]
    error = 3 * np.std(rates) / np.sqrt(draws) + 0.003  # of the mean over draws, and of the 20,000 fresh prompts
    assert np.mean(rates) <= alpha + error
    assert np.mean(rates) >= alpha - 2.0 / (prompts + 1) - error


def test_seeds_of_one_prompt_count_as_one():
    """Copies of a prompt's seeds add no evidence; absent seeds change nothing."""
    upper, quality = draw(np.random.default_rng(2), 60)
    critical = critical_thetas(upper, quality, 0.9)
    copied = critical_thetas(upper, np.concatenate([quality, quality, np.full_like(quality, np.nan)], axis=1), 0.9)
    assert copied.shape == (60, 6)
    for alpha in ALPHAS:
        assert controlled_theta(copied, alpha) == controlled_theta(critical, alpha)


def test_too_few_prompts_allow_only_the_full_image():
    upper, quality = draw(np.random.default_rng(3), 20)
    table = calibrate(upper, quality)
    assert set(table.theta[0]) == {0.0}
    assert not table.enough_prompts(0.02)
    assert table.enough_prompts(0.05)
    assert min(table.theta[1]) > 0.0 or violation(upper, quality, 0.0, 0.9) == 0.0


def test_when_nothing_is_ever_missed_theta_stops_at_the_cap():
    upper = np.tile(CURVE, (50, 1))
    table = calibrate(upper, np.ones((50, 2, len(COUNTS))))
    np.testing.assert_allclose(table.theta[2], [(1 - q) / KAPPA_MIN for q in QUALITIES])


def test_the_table_falls_with_quality_and_rises_with_risk():
    table = calibrate(*draw(np.random.default_rng(4), 200))
    theta = np.array(table.theta)
    assert theta.shape == (len(ALPHAS), len(QUALITIES))
    assert (np.diff(theta, axis=1) <= 0).all()
    assert (np.diff(theta, axis=0) >= 0).all()
    assert theta[2, QUALITIES.index(0.9)] > 0


def test_a_better_predictor_earns_fewer_steps():
    rng = np.random.default_rng(5)
    upper, quality = draw(rng, 400)
    truth = 1.2 * (1.0 - quality.min(axis=1))
    blind = np.tile(upper.mean(axis=0), (400, 1))

    def mean_steps(curves: np.ndarray) -> float:
        theta = controlled_theta(critical_thetas(curves, quality, 0.9), 0.1)
        return float(np.mean([decide_steps(COUNTS.tolist(), u.tolist(), [(0.9, theta)], 0.9, 1, 99) for u in curves]))

    assert mean_steps(truth) < mean_steps(upper) < mean_steps(blind)


def test_knots_are_exact_on_tabulated_qualities_and_strict_between():
    table = calibrate(*draw(np.random.default_rng(6), 200))
    knots = table.thresholds(0.1)
    assert all(a[0] < b[0] for a, b in pairwise(knots))
    row = table.theta[ALPHAS.index(0.1)]
    for index, q in enumerate(QUALITIES):
        assert threshold_at(knots, q) == row[index]
        if index + 1 < len(QUALITIES):
            assert threshold_at(knots, q + 0.005) == row[index + 1]


@pytest.mark.parametrize(("alpha", "used"), [(0.1, 0.1), (0.12, 0.1), (0.0999999999999, 0.1), (0.3, 0.3), (0.04, 0.02)])
def test_between_two_risks_the_safer_one_is_used(alpha, used):
    table = RiskTable(ALPHAS, (0.9,), tuple((a,) for a in ALPHAS), 100)
    assert table.row(alpha) == (used,)
