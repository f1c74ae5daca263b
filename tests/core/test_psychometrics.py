"""Choices of two: exact intervals, what guessing gives, and the threshold of simulated observers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from budgetfusion_nodes.core.psychometrics import LAPSE, LEAST_CHOICES, Tally, Threshold, clopper_pearson, fit_threshold


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 9), (9, 9), (7, 20), (61, 100)])
def test_the_interval_is_scipys(k: int, n: int) -> None:
    exact = binomtest(k, n).proportion_ci(0.95, "exact")
    assert clopper_pearson(k, n) == pytest.approx((exact.low, exact.high), abs=1e-12)


@pytest.mark.parametrize("chance", [0.5, 0.7, 0.95])
def test_the_interval_holds_the_true_chance_as_often_as_it_says(chance: float) -> None:
    """Summed over every outcome, not simulated."""
    n = 24
    held = sum(
        binom.pmf(k, n, chance) for k in range(n + 1) if clopper_pearson(k, n)[0] <= chance <= clopper_pearson(k, n)[1]
    )
    assert 0.95 <= held <= 0.995


def test_guessing_is_taken_for_telling_in_at_most_one_of_forty() -> None:
    n = 40
    told = sum(binom.pmf(k, n, 0.5) for k in range(n + 1) if Tally(n, k).verdict == "told")
    reversed_ = sum(binom.pmf(k, n, 0.5) for k in range(n + 1) if Tally(n, k).verdict == "reversed")
    assert 0.005 < told == pytest.approx(reversed_)
    assert told <= 0.025


def test_what_is_beyond_guessing_was_told_apart() -> None:
    assert Tally(20, 20).told[0] == 20
    assert Tally(20, 15).told[0] == pytest.approx(10)  # 10 seen, and half of the other 10 by luck
    assert Tally(20, 10).told[:2] == (0, 0)
    assert Tally(20, 4).told == (0, 0, 0), "the other picture was preferred"
    assert [Tally(20, k).verdict for k in (4, 12, 19)] == ["reversed", "untold", "told"]


def observe(mu: float, spread: float, values: tuple[float, ...], each: int, seed: int) -> dict[float, Tally]:
    """An observer with threshold mu answers `each` pairs at every slider value."""
    generator = np.random.default_rng(seed)
    chances = {q: 0.5 + (0.5 - LAPSE) / (1.0 + np.exp((q - mu) / spread)) for q in values}
    return {q: Tally(each, int(generator.binomial(each, chance))) for q, chance in chances.items()}


@pytest.mark.parametrize(("mu", "spread"), [(0.7, 0.03), (0.8, 0.05), (0.85, 0.03)])
def test_the_threshold_of_an_observer_is_found_within_its_interval(mu: float, spread: float) -> None:
    values = (0.6, 0.7, 0.8, 0.9, 0.95)
    found = [fit_threshold(observe(mu, spread, values, 40, seed)) for seed in range(150)]
    stated = np.array([(one.quality, one.low, one.high) for one in found if one.quality is not None], dtype=float)
    quality, low, high = stated.T
    assert len(stated) > 0.9 * len(found)
    assert np.mean((low <= mu) & (mu <= high)) >= 0.9
    assert abs(quality.mean() - mu) < 0.015
    assert (high - low).mean() < 0.2


def test_ends_that_no_slider_value_bounds_are_not_stated() -> None:
    blind = fit_threshold({q: Tally(40, 20) for q in (0.6, 0.8, 0.95)})
    assert (blind.quality, blind.low) == (None, None)
    assert blind.high is not None
    assert blind.high < 0.8
    keen = fit_threshold({q: Tally(40, 39) for q in (0.6, 0.8, 0.95)})
    assert (keen.quality, keen.high) == (None, None)
    assert keen.low is not None
    assert keen.low > 0.8


def test_too_few_choices_state_nothing() -> None:
    few = LEAST_CHOICES // 2 - 1
    assert fit_threshold({}) == fit_threshold({0.9: Tally(200, 100)}) == Threshold()
    assert fit_threshold({0.6: Tally(few, few), 0.9: Tally(few, few // 2)}) == Threshold()


def test_more_choices_narrow_the_interval() -> None:
    def width(each: int) -> float:
        share = {0.6: 0.95, 0.75: 0.75, 0.9: 0.5}
        found = fit_threshold({q: Tally(each, round(each * p)) for q, p in share.items()})
        assert found.low is not None
        assert found.high is not None
        return found.high - found.low

    assert width(400) < 0.6 * width(40)
