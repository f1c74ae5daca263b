"""Allocations on curves with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from research.statistics.allocation import (
    HeldOut,
    best_fixed,
    needed,
    outcome,
    per_prompt,
    permuted,
    planned_index,
    uniform,
)

COUNTS = np.arange(2, 22)


@pytest.fixture(scope="module")
def held() -> HeldOut:
    rng = np.random.default_rng(0)
    level = np.exp(0.6 * rng.normal(size=(60, 1, 1))) * np.exp(0.2 * rng.normal(size=(60, 4, 1)))
    truth = level * (2.0 / COUNTS - 2.0 / COUNTS[-1])
    truth[:30, 2:] = np.nan
    return HeldOut(COUNTS, truth)


def test_per_prompt_means_by_hand():
    truth = np.array([[[0.5, 0.2, 0.0], [0.3, 0.05, 0.0]], [[0.1, 0.3, 0.0], [np.nan] * 3]])
    held = HeldOut(np.array([2, 3, 4]), truth)
    found = per_prompt(held, np.array([1, 0]), 0.9)
    np.testing.assert_allclose(found["steps"], [3, 2])
    np.testing.assert_allclose(found["violation"], [0.5, 0.0])
    np.testing.assert_allclose(found["violation_controlled"], [0.5, 1.0])  # the second prompt gets worse at 3 steps
    np.testing.assert_allclose(found["shortfall"], [0.125, 0.1])
    np.testing.assert_allclose(needed(held.counts, held.quality, 0.9), [[4, 3], [4, np.nan]])


def test_planned_index_is_the_decision_rule():
    upper = np.array([[0.5, 0.05, 0.2, 0.0], [0.05, 0.04, 0.03, 0.0], [0.9, 0.8, 0.7, 0.6]])
    assert planned_index(upper, 0.1).tolist() == [3, 0, 3]


def test_uniform_has_exactly_the_wanted_mean(held):
    for mean in (2.0, 7.25, 20.9, 21.0):
        assert outcome(held, uniform(held, mean), 0.9)["steps"].mean() == pytest.approx(mean)


def test_permuted_is_the_mean_over_all_shuffles(held):
    rng = np.random.default_rng(1)
    index = rng.integers(0, 20, 60)
    shuffled = outcome(held, permuted(held, index), 0.9)
    drawn = np.mean([per_prompt(held, rng.permutation(index), 0.9)["shortfall"].mean() for _ in range(400)])
    assert shuffled["shortfall"].mean() == pytest.approx(drawn, rel=0.02)
    assert shuffled["steps"].mean() == pytest.approx(COUNTS[index].mean())


def test_best_fixed_is_the_least_that_violates_no_more(held):
    fixed = best_fixed(held, 0.9, 0.1, "violation")
    at = per_prompt(held, np.full(60, fixed - 2), 0.9)["violation"].mean()
    before = per_prompt(held, np.full(60, fixed - 3), 0.9)["violation"].mean()
    assert at <= 0.1 < before


def test_hindsight_keeps_the_quality_with_the_fewest_steps(held):
    steps = needed(COUNTS, held.quality, 0.9)
    index = np.nan_to_num(steps, nan=2.0).astype(np.int64) - 2
    found = per_prompt(held, index, 0.9)
    assert found["violation_controlled"].max() == 0.0
    one_less = per_prompt(held, np.maximum(index - 1, 0), 0.9)
    assert (one_less["violation_controlled"][(index > 0).all(axis=1)] > 0).all()


def test_outcome_by_seed_by_hand():
    truth = np.array([[[0.5, 0.2, 0.0], [0.3, 0.05, 0.0]], [[0.1, 0.3, 0.0], [np.nan] * 3]])
    held = HeldOut(np.array([2, 3, 4]), truth)
    found = per_prompt(held, np.array([[2, 1], [0, 0]]), 0.9)
    np.testing.assert_allclose(found["steps"], [3.5, 2.0])
    np.testing.assert_allclose(found["shortfall"], [0.025, 0.1])
