from __future__ import annotations

import numpy as np
import pytest

from research.statistics.bootstrap import (
    bootstrap,
    interval,
    mean_difference,
    ratio_of_means,
    worst_tenth,
    worst_tenth_ratio,
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
    assert worst_tenth(values) == 18.5
    assert worst_tenth(values[:5]) == 4.0
    assert worst_tenth(np.stack([values, -values])).tolist() == [18.5, -0.5]
    assert ratio_of_means(values, 2 * values) == 0.5
    assert ratio_of_means(values * 0, values * 0) == 1.0
    assert worst_tenth_ratio(values, np.ones(20)) == 18.5
