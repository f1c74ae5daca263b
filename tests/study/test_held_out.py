from __future__ import annotations

import numpy as np
import pytest

from budgetfusion_nodes.study.held_out import (
    HeldOut,
    best_fixed,
    bootstrap,
    needed_steps,
    oracle_b,
    oracle_b_at_violation,
    oracle_c,
    per_prompt,
    permuted_outcome,
    planned_index,
    uniform_outcome,
    variance_share,
)

COUNTS = np.arange(2, 22)


@pytest.fixture(scope="module")
def held() -> HeldOut:
    rng = np.random.default_rng(0)
    level = np.exp(0.6 * rng.normal(size=(60, 1, 1))) * np.exp(0.2 * rng.normal(size=(60, 4, 1)))
    truth = level * (2.0 / COUNTS - 2.0 / COUNTS[-1])
    truth[:30, 2:] = np.nan
    return HeldOut(COUNTS, truth, truth[:20])


def test_per_prompt_means_by_hand():
    truth = np.array([[[0.5, 0.2, 0.0], [0.3, 0.05, 0.0]], [[0.1, 0.3, 0.0], [np.nan] * 3]])
    held = HeldOut(np.array([2, 3, 4]), truth, truth)
    found = per_prompt(held, np.array([1, 0]), 0.9)
    np.testing.assert_allclose(found["steps"], [3, 2])
    np.testing.assert_allclose(found["violation"], [0.5, 0.0])
    np.testing.assert_allclose(found["violation_controlled"], [0.5, 1.0])  # the second prompt gets worse at 3 steps
    np.testing.assert_allclose(found["shortfall"], [0.125, 0.1])
    np.testing.assert_allclose(needed_steps(held, 0.9), [[4, 3], [4, np.nan]])


def test_planned_index_is_the_decision_rule():
    upper = np.array([[0.5, 0.05, 0.2, 0.0], [0.05, 0.04, 0.03, 0.0], [0.9, 0.8, 0.7, 0.6]])
    assert planned_index(upper, 0.1).tolist() == [3, 0, 3]


def test_uniform_has_exactly_the_wanted_mean(held):
    for mean in (2.0, 7.25, 20.9, 21.0):
        assert uniform_outcome(held, mean, 0.9)["steps"].mean() == pytest.approx(mean)


def test_permuted_is_the_mean_over_all_shuffles(held):
    rng = np.random.default_rng(1)
    index = rng.integers(0, 20, 60)
    expected = permuted_outcome(held, index, 0.9)
    drawn = np.mean([per_prompt(held, rng.permutation(index), 0.9)["shortfall"].mean() for _ in range(400)])
    assert expected["shortfall"].mean() == pytest.approx(drawn, rel=0.02)
    assert expected["steps"].mean() == pytest.approx(COUNTS[index].mean())


def test_best_fixed_is_the_least_that_violates_no_more(held):
    fixed = best_fixed(held, 0.9, 0.1)
    at = per_prompt(held, np.full(60, fixed - 2), 0.9)["violation"].mean()
    before = per_prompt(held, np.full(60, fixed - 3), 0.9)["violation"].mean()
    assert at <= 0.1 < before


def test_oracle_c_is_better_than_any_random_allocation_of_its_cost(held):
    rng = np.random.default_rng(2)
    mean_steps = 9.0
    best = oracle_c(held, mean_steps)
    assert held.counts[best].mean() <= mean_steps
    score = per_prompt(held, best, 0.9)["shortfall"].mean()
    for _ in range(300):
        index = rng.integers(0, 20, 60)
        if COUNTS[index].mean() <= COUNTS[best].mean():
            assert score <= per_prompt(held, index, 0.9)["shortfall"].mean() + 1e-12
    assert score < uniform_outcome(held, float(COUNTS[best].mean()), 0.9)["shortfall"].mean()


def test_oracle_b_at_violation_keeps_the_violation_with_fewest_steps(held):
    free = oracle_b_at_violation(held, 0.9, 1.0)
    strict = oracle_b_at_violation(held, 0.9, 0.0)
    some = oracle_b_at_violation(held, 0.9, 0.1)
    assert free["steps"].mean() == 2.0
    assert strict["violation_controlled"].sum() == 0.0
    np.testing.assert_array_equal(strict["steps"], np.nanmax(needed_steps(held, 0.9), axis=1))
    assert some["violation_controlled"].mean() <= 0.1
    assert free["steps"].mean() < some["steps"].mean() < strict["steps"].mean()


def test_oracle_b_reaches_q_on_the_mean_curve(held):
    index = oracle_b(held, 0.9)
    mean = np.nanmean(held.test_quality, axis=1)
    assert (mean[np.arange(60), index] >= 0.9).all()
    assert (mean[np.arange(60), np.maximum(index - 1, 0)][index > 0] < 0.9).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_variance_share_recovers_a_known_one(share):
    rng = np.random.default_rng(3)
    values = np.sqrt(share) * rng.normal(size=(3000, 1)) + np.sqrt(1 - share) * rng.normal(size=(3000, 4))
    values[:1000, 2:] = np.nan
    assert variance_share(values) == pytest.approx(share, abs=0.03)


def test_variance_share_of_constants_and_single_seeds_is_unknown():
    assert variance_share(np.ones((5, 2))) is None
    assert variance_share(np.array([[1.0, np.nan], [2.0, np.nan]])) is None


def test_the_bootstrap_interval_is_that_of_a_mean():
    values = np.random.default_rng(4).normal(size=2000)
    found = bootstrap(values, 0)
    assert found["value"] == pytest.approx(values.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * values.std() / np.sqrt(2000), rel=0.1)
    assert bootstrap(values, 0) == found
