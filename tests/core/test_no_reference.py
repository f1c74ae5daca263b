"""One count from levels without a reference, on curves whose right answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.no_reference import decide_level, find_fall, level_intervals, steady_from

COUNTS = (4, 8, 12, 20, 30, 50)


def levels(mean: list[float], noise: float = 0.02, pictures: int = 48, seed: int = 0) -> np.ndarray:
    """Pictures with levels of their own, around a mean curve."""
    rng = np.random.default_rng(seed)
    own = rng.normal(0.0, 5.0, (pictures, 1))
    return own + np.array(mean) + rng.normal(0.0, noise, (pictures, len(mean)))


def test_a_plateau_gives_its_first_count() -> None:
    found = decide_level(COUNTS, levels([0.0, 5.0, 9.0, 10.0, 10.0, 10.0]))
    assert (found.steps, found.settled, found.falls_after_best) == (20, True, False)


def test_a_curve_that_falls_gives_its_best_count() -> None:
    found = decide_level(COUNTS, levels([0.0, 5.0, 10.0, 8.0, 6.0, 4.0]))
    assert (found.steps, found.best, found.settled, found.falls_after_best) == (12, 12, True, True)


def test_a_curve_that_rises_to_the_end_keeps_every_step() -> None:
    found = decide_level(COUNTS, levels([0.0, 2.0, 4.0, 6.0, 8.0, 10.0]))
    assert (found.steps, found.settled) == (50, False)


def test_noise_alone_decides_nothing() -> None:
    """Differences that noise explains are neither a fall nor a proof of equality: at most 5 % errors of each kind."""
    found = [decide_level(COUNTS, levels([0.0] * 6, noise=1.0, pictures=12, seed=seed)) for seed in range(300)]
    assert np.mean([one.falls_after_best for one in found]) <= 0.06
    assert np.mean([one.settled for one in found]) <= 0.1


def test_a_fall_within_the_margin_is_none() -> None:
    found = decide_level(COUNTS, levels([0.0, 5.0, 10.0, 10.0, 10.0, 9.9]))
    assert not found.falls_after_best
    assert found.steps == 12


@pytest.mark.parametrize(
    "bad", [np.zeros((48, 5)), np.zeros(6), np.zeros((3, 6)), np.full((48, 6), np.nan), np.full((48, 6), np.inf)]
)
def test_what_cannot_be_decided_on(bad: np.ndarray) -> None:
    with pytest.raises(InputError, match="levels"):
        decide_level(COUNTS, bad)


def test_a_steady_level_begins_where_the_curve_is_flat() -> None:
    assert steady_from(COUNTS, levels([0.0, 5.0, 9.0, 10.0, 10.0, 10.0])) == 20


def test_a_hump_is_no_steady_level() -> None:
    """A higher level is another level: smooth unfinished pictures may have one."""
    assert steady_from(COUNTS, levels([0.0, 10.0, 9.0, 8.0, 8.0, 8.0])) == 20


@pytest.mark.parametrize("mean", [[0.0, 2.0, 4.0, 6.0, 8.0, 10.0], [0.0, 5.0, 10.0, 8.0, 6.0, 4.0]])
def test_a_level_that_rises_or_falls_to_the_end_is_not_steady(mean: list[float]) -> None:
    assert steady_from(COUNTS, levels(mean)) is None


def test_noise_alone_is_hardly_ever_taken_for_steady() -> None:
    found = [steady_from(COUNTS, levels([0.0] * 6, noise=1.0, pictures=12, seed=seed)) for seed in range(300)]
    assert np.mean([one is not None for one in found]) <= 0.06


def test_intervals_hold_the_true_mean_nine_times_of_ten() -> None:
    rng = np.random.default_rng(0)
    found = [level_intervals(rng.normal(3.0, 1.0, (12, 1)))[0] for _ in range(1000)]
    assert all(low < mean < high for mean, low, high in found)
    assert np.mean([low <= 3.0 <= high for _, low, high in found]) == pytest.approx(0.9, abs=0.03)


FLAT = np.full((48, 6), 9.0)


def scores(mean: list[float], noise: float = 0.02, pictures: int = 48, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(0.0, 0.05, (pictures, 1)) + np.array(mean) + rng.normal(0.0, noise, (pictures, len(mean)))


def test_a_fall_in_meaning_gives_the_last_count_as_good_as_the_best() -> None:
    found = find_fall(COUNTS, scores([0.1, 0.3, 0.3, 0.3, 0.25, 0.1], noise=0.002), FLAT)
    assert found is not None
    assert (found.best, found.last, found.pictures) == (20, 50, 48)
    assert found.drop == pytest.approx(0.2, abs=0.01)
    assert all(low < mean < high for mean, low, high in found.levels)


@pytest.mark.parametrize("mean", [[0.1, 0.2, 0.3, 0.3, 0.3, 0.3], [0.1, 0.15, 0.2, 0.25, 0.28, 0.3]])
def test_meaning_that_stays_is_no_fall_whatever_l_snr_does(mean: list[float]) -> None:
    for decibels in (FLAT, FLAT + np.array([4.0, 3.0, 2.0, 1.0, 0.5, 0.0])):
        assert find_fall(COUNTS, scores(mean), decibels) is None


def test_pictures_that_mean_more_but_are_much_noisier_are_not_better() -> None:
    fallen = scores([0.1, 0.3, 0.3, 0.25, 0.2, 0.1])
    assert find_fall(COUNTS, fallen, FLAT + np.array([-4.0, -3.0, -2.0, -1.0, -0.5, 0.0])) is None
    assert find_fall(COUNTS, fallen, FLAT + np.array([-0.5, -0.4, -0.3, -0.2, -0.1, 0.0])) is not None


def test_scores_of_encoders_without_a_common_space_decide_nothing() -> None:
    """They are 0 on average, so a fall among them says nothing about meaning."""
    fallen = scores([0.0, 0.05, 0.05, 0.0, -0.05, -0.1]) - 0.05
    assert find_fall(COUNTS, fallen, FLAT) is None


def test_noise_hardly_ever_makes_a_fall() -> None:
    found = [find_fall(COUNTS, scores([0.3] * 6, noise=0.1, pictures=12, seed=seed), FLAT[:12]) for seed in range(300)]
    assert np.mean([one is not None for one in found]) <= 0.06


def test_too_few_pictures_make_no_fall() -> None:
    assert find_fall(COUNTS, scores([0.1, 0.3, 0.3, 0.3, 0.2, 0.1], pictures=7), FLAT[:7]) is None
