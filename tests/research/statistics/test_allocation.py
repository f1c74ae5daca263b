"""Allocations and oracles on curves with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from research.statistics.allocation import (
    HeldOut,
    best_fixed,
    expected,
    outcome,
    per_prompt,
    permuted,
    planned_at_mean,
    planned_index,
    uniform,
    uniform_at_violation,
)
from research.statistics.oracles import (
    needed_steps,
    oracle_a_at_mean,
    oracle_b,
    oracle_b_at_mean,
    oracle_b_at_violation,
    oracle_b_fewest_violations,
    oracle_c,
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
        assert outcome(held, uniform(held, mean), 0.9)["steps"].mean() == pytest.approx(mean)


def test_permuted_is_the_mean_over_all_shuffles(held):
    rng = np.random.default_rng(1)
    index = rng.integers(0, 20, 60)
    dealt = outcome(held, permuted(held, index), 0.9)
    drawn = np.mean([per_prompt(held, rng.permutation(index), 0.9)["shortfall"].mean() for _ in range(400)])
    assert dealt["shortfall"].mean() == pytest.approx(drawn, rel=0.02)
    assert dealt["steps"].mean() == pytest.approx(COUNTS[index].mean())


def test_best_fixed_is_the_least_that_violates_no_more(held):
    fixed = best_fixed(held, 0.9, 0.1)
    at = per_prompt(held, np.full(60, fixed - 2), 0.9)["violation"].mean()
    before = per_prompt(held, np.full(60, fixed - 3), 0.9)["violation"].mean()
    assert at <= 0.1 < before


def test_oracle_c_is_better_than_any_random_allocation_of_its_cost(held):
    rng = np.random.default_rng(2)
    mean_steps = 9.0
    best = oracle_c(held, mean_steps)
    found = outcome(held, best, 0.9)
    assert found["steps"].mean() == pytest.approx(mean_steps)
    score = found["shortfall"].mean()
    for _ in range(300):
        index = rng.integers(0, 20, 60)
        if COUNTS[index].mean() <= mean_steps:
            assert score <= per_prompt(held, index, 0.9)["shortfall"].mean() + 1e-12
    assert score < outcome(held, uniform(held, mean_steps), 0.9)["shortfall"].mean()


def test_oracles_mix_allocations_where_prompts_are_alike():
    """Loss 1 below 10 steps and 0 from there on: 8 steps on average serve 75 % of the renders, not none of them."""
    truth = np.broadcast_to(np.where(COUNTS < 10, 0.5, 0.0), (40, 2, len(COUNTS)))
    alike = HeldOut(COUNTS, truth, truth)
    fewest = outcome(alike, oracle_b_fewest_violations(alike, 0.9, 8.0), 0.9)
    assert fewest["steps"].mean() == pytest.approx(8.0)
    assert fewest["violation_controlled"].mean() == pytest.approx(0.25)
    c = outcome(alike, oracle_c(alike, 8.0), 0.9)
    assert c["steps"].mean() == pytest.approx(8.0) and c["shortfall"].mean() == pytest.approx(0.5 * 0.25)
    back = oracle_b_at_violation(alike, 0.9, 0.25)
    assert back["steps"].mean() == pytest.approx(8.0)
    assert back["violation_controlled"].mean() == pytest.approx(0.25)
    enough = outcome(alike, oracle_b_fewest_violations(alike, 0.9, 15.0), 0.9)
    assert enough["violation_controlled"].mean() == 0.0 and enough["steps"].mean() == pytest.approx(15.0)


def test_oracle_b_at_violation_keeps_the_violation_with_fewest_steps(held):
    free = oracle_b_at_violation(held, 0.9, 1.0)
    strict = oracle_b_at_violation(held, 0.9, 0.0)
    some = oracle_b_at_violation(held, 0.9, 0.1)
    assert free["steps"].mean() == 2.0
    assert strict["violation_controlled"].sum() == 0.0
    np.testing.assert_array_equal(strict["steps"], np.nanmax(needed_steps(held, 0.9), axis=1))
    assert some["violation_controlled"].mean() == pytest.approx(0.1)
    assert free["steps"].mean() < some["steps"].mean() < strict["steps"].mean()


def test_oracle_b_reaches_q_on_the_mean_curve(held):
    index = oracle_b(held, 0.9)
    mean = np.nanmean(held.test_quality, axis=1)
    assert (mean[np.arange(60), index] >= 0.9).all()
    assert (mean[np.arange(60), np.maximum(index - 1, 0)][index > 0] < 0.9).all()


@pytest.mark.parametrize("mean_steps", [2.0, 5.3, 11.0, 20.7])
def test_any_rule_can_be_put_at_an_exact_mean_cost(held, mean_steps):
    rng = np.random.default_rng(5)
    scores = rng.random((60, 20)).cumsum(axis=1)[:, ::-1]
    mixture = planned_at_mean(COUNTS, scores, mean_steps)
    assert sum(share for share, _ in mixture) == pytest.approx(1.0)
    assert outcome(held, mixture, 0.9)["steps"].mean() == pytest.approx(mean_steps)
    dear, cheap = (COUNTS[index] for _, index in mixture)
    assert (dear >= cheap).all() and (dear != cheap).sum() <= 1  # two neighbouring thresholds move one prompt


def test_one_curve_for_all_at_equal_cost_is_uniform(held):
    scores = np.broadcast_to(1.0 / COUNTS, (60, 20))
    found = outcome(held, planned_at_mean(COUNTS, scores, 7.25), 0.9)
    alike = outcome(held, uniform(held, 7.25), 0.9)
    for key, values in alike.items():
        np.testing.assert_allclose(found[key], values)


def test_cost_by_seed_counts_each_prompt_once(held):
    mixture = planned_at_mean(COUNTS, held.test, 8.0)  # 30 prompts have two seeds, 30 have four
    assert outcome(held, mixture, 0.9)["steps"].mean() == pytest.approx(8.0)


def test_outcome_by_seed_by_hand():
    truth = np.array([[[0.5, 0.2, 0.0], [0.3, 0.05, 0.0]], [[0.1, 0.3, 0.0], [np.nan] * 3]])
    held = HeldOut(np.array([2, 3, 4]), truth, truth)
    found = per_prompt(held, np.array([[2, 1], [0, 0]]), 0.9)
    np.testing.assert_allclose(found["steps"], [3.5, 2.0])
    np.testing.assert_allclose(found["shortfall"], [0.025, 0.1])
    np.testing.assert_allclose(found["gain_per_step"], [(0.5 / 4 + 0.25 / 3) / 2, 0.0])
    mixture = ((0.25, np.array([0, 0])), (0.75, np.array([2, 2])))
    np.testing.assert_allclose(expected(truth, mixture), [0.25 * 0.4, 0.25 * 0.1])


def test_oracles_at_equal_cost_are_ordered(held):
    """Who knows more misses less; C has the least mean shortfall of all allocations by prompt."""
    mean_steps, q = 8.0, 0.9
    alike = outcome(held, uniform(held, mean_steps), q)
    a = outcome(held, oracle_a_at_mean(held, mean_steps), q)
    b = outcome(held, oracle_b_at_mean(held, mean_steps), q)
    c = outcome(held, oracle_c(held, mean_steps), q)
    fewest = outcome(held, oracle_b_fewest_violations(held, q, mean_steps), q)
    assert a["steps"].mean() == pytest.approx(mean_steps) and b["steps"].mean() == pytest.approx(mean_steps)
    assert fewest["steps"].mean() <= mean_steps + 1e-9
    spread = [np.ptp(result["shortfall"]) for result in (a, b, alike)]
    assert spread[0] < spread[1] < spread[2]  # A leaves every render equally short, B every prompt's mean
    assert fewest["violation_controlled"].mean() <= b["violation_controlled"].mean()
    assert fewest["violation_controlled"].mean() < alike["violation_controlled"].mean()
    assert c["shortfall"].mean() <= min(b["shortfall"].mean(), alike["shortfall"].mean())


def test_oracle_a_at_the_cost_of_a_quality_is_that_quality(held):
    needed = needed_steps(held, 0.9)
    cost = float(np.nanmean(needed, axis=1).mean())
    found = outcome(held, oracle_a_at_mean(held, cost), 0.9)
    assert found["violation_controlled"].mean() == pytest.approx(0.0, abs=0.02)
    assert found["steps"].mean() == pytest.approx(cost)


def test_uniform_at_violation_lies_between_the_counts_around_it(held):
    for violation in (0.02, 0.1, 0.35):
        steps = uniform_at_violation(held, 0.9, violation)
        found = outcome(held, uniform(held, steps), 0.9)["violation_controlled"].mean()
        assert found == pytest.approx(violation, abs=1e-9)
        assert steps <= best_fixed(held, 0.9, violation, "violation_controlled")
    assert uniform_at_violation(held, 0.9, 1.0) == 2.0
