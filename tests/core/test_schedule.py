"""Nested schedules against the properties that they guarantee, for schedulers of every shape."""

from __future__ import annotations

import numpy as np
import pytest

from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.schedule import STOCK, NestedSchedule, SigmaQuantile, density_warp


def karras(steps: int, high: float = 14.6146, low: float = 0.0292, rho: float = 7.0) -> np.ndarray:
    """Karras et al. 2022, equation 5."""
    share = np.linspace(0, 1, steps)
    return np.append((high ** (1 / rho) + share * (low ** (1 / rho) - high ** (1 / rho))) ** rho, 0.0)


def flow(steps: int, shift: float = 3.0) -> np.ndarray:
    """Rectified flow with a shift (Esser et al. 2024, equation 23): the last sigmas fall to 0 linearly."""
    t = 1 - np.arange(steps + 1) / steps
    return shift * t / (1 + (shift - 1) * t)


def repeated(steps: int) -> np.ndarray:
    """A table scheduler that is asked for more steps than it has levels."""
    return np.append(np.repeat(karras(steps // 2)[:-1], 2), 0.0)


def other_number(steps: int) -> np.ndarray:
    return karras(steps + 7)


SCHEDULERS = {"karras": karras, "flow": flow, "repeated": repeated, "other number": other_number}


def quantile(name: str = "karras") -> SigmaQuantile:
    return SigmaQuantile.from_sigmas(SCHEDULERS[name](128))


def schedules(rng: np.random.Generator, q: SigmaQuantile) -> NestedSchedule:
    commit = float(q(rng.uniform(0.05, 0.95)))
    warp = tuple(np.round(np.linspace(0, 1, 9) ** rng.uniform(0.5, 2), 6).tolist()) if rng.random() < 0.5 else ()
    return NestedSchedule(int(rng.integers(1, 13)), commit, float(rng.choice([0.0, 0.5, 1.0])), warp)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("discard", [False, True])
def test_every_count_falls_to_zero_and_begins_with_the_same_bits(name: str, discard: bool) -> None:
    rng = np.random.default_rng(0)
    q = quantile(name)
    for _ in range(60):
        schedule = schedules(rng, q)
        p = schedule.prefix_steps
        denoise = float(rng.choice([1.0, 1.0, rng.uniform(0.02, 0.99)]))
        runs = {
            n: schedule.sigmas(n, q, denoise=denoise, discard_penultimate=discard)
            for n in (*range(p + 1, p + 12), p + 30)
        }
        prefix = schedule.shared_steps(q, denoise)
        first = next(iter(runs.values()))[: prefix + 1]
        for n, sigmas in runs.items():
            assert sigmas.dtype == np.float32 and sigmas.shape == (n + 1,)
            assert sigmas[-1] == 0 and (np.diff(sigmas) < 0).all()
            assert sigmas[: prefix + 1].tobytes() == first.tobytes()
        if denoise == 1.0:
            assert prefix == p
            assert first[0] == np.float32(q.levels[0])
            assert first[-1] == pytest.approx(schedule.sigma_commit, rel=1e-5)
            assert (first[:-1] > schedule.sigma_commit).all()


def test_both_parts_have_karras_spacing_as_in_the_closed_form() -> None:
    """Evenly spaced in sigma^(1/7) from the first sigma to the commit point and from there to the last one."""
    sigmas = NestedSchedule(5, 1.0).sigmas(9, quantile())
    roots = sigmas[:-1].astype(float) ** (1 / 7)
    assert np.diff(roots[:6]) == pytest.approx((1.0 - roots[0]) / 5, rel=2e-3)
    assert np.diff(roots[5:]) == pytest.approx((0.0292 ** (1 / 7) - 1.0) / 3, rel=2e-3)
    assert sigmas[-2] == pytest.approx(0.0292, rel=1e-4)


def test_a_prefix_as_dense_as_the_tail_is_the_stock_schedule() -> None:
    q = quantile()
    stock = karras(13)
    found = NestedSchedule(6, float(stock[6])).sigmas(13, q)
    assert found == pytest.approx(stock, rel=2e-3)


def test_the_tails_end_is_the_schedulers_own_convention() -> None:
    """Stock flow steps are at shares j / n of the whole, so the last positive sigma depends on n."""
    sigmas = NestedSchedule(4, 0.8, tail_end=0.0).sigmas(8, quantile("flow"))
    t = sigmas / (3 - 2 * sigmas)  # the shift undone
    commit = 0.8 / (3 - 1.6)
    assert t[4:] == pytest.approx(commit * (1 - np.arange(5) / 4), abs=0.01)


def test_short_tails_waste_no_step_on_the_least_sigma() -> None:
    """Two steps have their second point half way along the tail, three their last one at 2 / 2.5 of it."""
    q = quantile()
    schedule = NestedSchedule(5, float(q(0.6)))
    assert schedule.sigmas(7, q)[6] == pytest.approx(float(q(0.6 + 0.4 * 0.5)), rel=1e-5)
    assert schedule.sigmas(8, q)[7] == pytest.approx(float(q(0.6 + 0.4 * 2 / 2.5)), rel=1e-5)
    assert schedule.sigmas(9, q)[8] == pytest.approx(0.0292, rel=1e-4)


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_discarding_the_penultimate_sigma_is_the_hosts_rule(end: float) -> None:
    q = quantile()
    schedule = NestedSchedule(5, 1.0, tail_end=end)
    for n in (6, 7, 9, 14):
        longer = schedule.sigmas(n + 1, q)
        expected = np.append(longer[:-2], np.float32(0))
        assert np.array_equal(schedule.sigmas(n, q, discard_penultimate=True), expected)


@pytest.mark.parametrize(("denoise", "prefix"), [(0.99, 5), (0.7, 2), (0.65, 2), (0.5, 0), (0.3, 0)])
def test_a_render_that_begins_later_keeps_the_density_and_then_only_the_tail(denoise: float, prefix: int) -> None:
    q = quantile()
    schedule = NestedSchedule(5, float(q(0.5)))
    assert schedule.shared_steps(q, denoise) == prefix
    for n in (prefix + 1, prefix + 4):
        sigmas = schedule.sigmas(n, q, denoise=denoise)
        assert len(sigmas) == n + 1
        assert sigmas[0] == pytest.approx(float(q(1 - denoise)), rel=1e-5)
        assert sigmas[prefix] == pytest.approx(min(float(q(0.5)), float(q(1 - denoise))), rel=1e-5)


def test_nothing_is_sampled_at_denoise_0() -> None:
    assert len(NestedSchedule(5, 1.0).sigmas(9, quantile(), denoise=0.0)) == 0


def test_counts_without_room_for_a_tail_use_the_schedulers_own_spacing() -> None:
    for n in range(1, 6):
        sigmas = NestedSchedule(5, 1.0).sigmas(n, quantile())
        assert len(sigmas) == n + 1 and sigmas[-1] == 0 and (np.diff(sigmas) < 0).all()
        assert sigmas[0] == pytest.approx(14.6146, rel=1e-5)
        if n > 1:
            assert sigmas == pytest.approx(karras(n), rel=3e-3)


def test_share_and_quantile_undo_each_other() -> None:
    for name in SCHEDULERS:
        q = quantile(name)
        for u in (0.0, 0.1, 0.4, 0.9, 1.0):
            assert q.share(float(q(u))) == pytest.approx(u, abs=1e-9)


@pytest.mark.parametrize(
    "bad", [[], [1.0, 0.0], [1.0, 2.0, 0.0], [1.0, 1.0, 0.0], [float("nan"), 1.0, 0.0], [0.0, 0.0]]
)
def test_sigmas_that_do_not_fall_are_refused(bad: list[float]) -> None:
    with pytest.raises(InputError):
        SigmaQuantile.from_sigmas(bad)


@pytest.mark.parametrize("commit", [14.7, 0.02])
def test_a_commit_point_that_the_model_has_not_is_refused(commit: float) -> None:
    with pytest.raises(InputError, match="commits at"):
        NestedSchedule(5, commit).sigmas(9, quantile())


def test_more_steps_than_there_are_levels_are_refused() -> None:
    with pytest.raises(InputError, match="more than"):
        NestedSchedule(5, 0.99995).sigmas(5000, SigmaQuantile.from_sigmas([1.0, 0.9999, 0.0]))


def test_the_text_says_everything() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        schedule = schedules(rng, quantile())
        assert NestedSchedule.from_text(schedule.to_text()) == schedule
    assert NestedSchedule.from_text(STOCK) is None


@pytest.mark.parametrize(
    "text",
    [
        *("", "karras", "nested", "nested 5", "nested 0@1", "nested 5@0", "nested 5@nan", "nested 5@inf"),
        *("nested 5@1 warp=0,0.5", "nested 5@1 warp=0,0.6,0.5,1", "nested 5@1 more=1", "nested 5.5@1", "nested x@1"),
        *("nested 5@1 end=nan", "nested 99999@1", "nested 5@1 warp=0,nan,1", "nested 5@1 warp=" + "0,1" * 99),
        *("nested 5@1 end=2", "nested 5@1 end"),
    ],
)
def test_text_that_nobody_could_render_along_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        NestedSchedule.from_text(text)


def test_a_density_warp_puts_points_where_the_prediction_moves() -> None:
    """Density 2 u: mass u^2, so the quantile is a square root."""
    u = np.linspace(0, 1, 400)
    warp = density_warp(u, u, 1.0)
    assert warp[1:] == pytest.approx(np.sqrt(np.linspace(0, 1, 17))[1:], abs=5e-3)
    assert density_warp(u, u + 1, 0.0) == pytest.approx(np.linspace(0, 1, 17), abs=1e-6)
    NestedSchedule(5, 1.0, tail_warp=warp)  # is a sound one
    NestedSchedule(5, 1.0, tail_warp=density_warp(u, np.where(u < 0.5, 0.0, 1.0), 1.0))
