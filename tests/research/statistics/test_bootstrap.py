from __future__ import annotations

import numpy as np
import pytest

from research.statistics.bootstrap import (
    bootstrap,
    cvar,
    cvar_difference,
    draw_weights,
    draws,
    interval,
    mean_difference,
    relative_difference,
)


def test_the_interval_is_that_of_a_mean():
    values = np.random.default_rng(4).normal(size=2000)
    found = bootstrap(values, 0)
    assert found["value"] == pytest.approx(values.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * values.std() / np.sqrt(2000), rel=0.1)
    assert bootstrap(values, 0) == found


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(400):
        found = bootstrap(rng.exponential(size=60), trial)
        hits += found["low"] <= 1.0 <= found["high"]
    assert 0.90 <= hits / 400 <= 0.98


def test_differences_are_paired():
    """What prompts have in common cancels: the interval is that of the difference alone."""
    rng = np.random.default_rng(1)
    common, small = 10 * rng.normal(size=500), 0.1 * rng.normal(size=500)
    found = interval(mean_difference, 0, common + small + 0.05, common)
    assert found["value"] == pytest.approx(0.05 + small.mean())
    assert found["high"] - found["low"] < 0.03
    assert found["low"] > 0.0


def test_statistics_by_hand():
    values = np.arange(20.0)
    assert cvar(values) == 18.5
    assert cvar(values[:5]) == 4.0
    assert cvar(np.stack([values, -values])).tolist() == [18.5, -0.5]
    assert cvar_difference(values, np.ones(20)) == 17.5
    assert relative_difference(values, 2 * values) == -0.5


def test_weights_are_the_draws_counted():
    rows, weights = draws(7, 3, 50), draw_weights(7, 3, 50)
    values = np.arange(7.0) ** 2
    np.testing.assert_allclose(weights @ values / 7, values[rows].mean(axis=1))
