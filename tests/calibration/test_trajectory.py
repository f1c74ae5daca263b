"""What is rendered of a trajectory, and what happens when a render fails."""

from __future__ import annotations

import numpy as np
import pytest

from budgetfusion_nodes.calibration.records import Measurement
from budgetfusion_nodes.calibration.spec import AMOUNTS, Spec, grid_for
from budgetfusion_nodes.calibration.trajectory import (
    Failed,
    Finished,
    Measured,
    Work,
    filled,
    next_count,
    run_trajectory,
)
from budgetfusion_nodes.core.curves import DEFAULT_GRID
from budgetfusion_nodes.core.errors import InputError
from tests.calibration.stub import StubRenderer

GRID = (2, 4, 8, 16, 32)


def work(**changes) -> Work:
    return Work(
        **{"trajectory_id": 1, "prompt_id": 1, "text": "a", "seed": 3, "grid": GRID, "tolerance": 0.0, **changes}
    )


def found(steps: int, share: float) -> Measurement:
    return Measurement(steps, {"l_snr": 6.0 * share, "d_sim": 0.4 * share}, 9.0, steps, 0.1, 0.01)


def test_from_the_ends_inwards_and_the_target_once() -> None:
    renderer = StubRenderer(32)
    events = list(run_trajectory(renderer, work()))
    assert [event.found.steps for event in events if isinstance(event, Measured)] == [32, 2, 4, 8, 16]
    assert [event.latent is not None for event in events if isinstance(event, Measured)] == [True] + [False] * 4
    assert isinstance(events[-1], Finished)


@pytest.mark.parametrize("done", range(6))
def test_it_goes_on_where_it_was_cut_off(done: int) -> None:
    whole = [e for e in run_trajectory(StubRenderer(32), work()) if isinstance(e, Measured)]
    known = {e.found.steps: e.found for e in whole[:done]}
    renderer = StubRenderer(32)
    rest = list(run_trajectory(renderer, work(known=known, latent=whole[0].latent if done else None)))
    assert [e.found for e in rest if isinstance(e, Measured)] == [e.found for e in whole[done:]]
    assert len(renderer.asked) == 5 - done, "the kept latent spares the target's render"


def test_counts_beyond_two_settled_neighbours_are_left_out() -> None:
    shares = {2: 1.0, 4: 0.5, 8: 0.04, 16: 0.04, 32: 0.0}
    known = {n: found(n, s) for n, s in shares.items() if n not in (16,)}
    assert next_count(GRID, known, 0.05) == 16, "one near count may be chance"
    longer = (2, 4, 8, 16, 24, 32)
    known[16] = found(16, 0.04)
    assert next_count(longer, known, 0.05) is None
    assert next_count(longer, known, 0.03) == 24
    distances, decibel = filled(longer, known, ("l_snr", "d_sim"))
    assert 0.0 < distances[4, 0] < 6.0 * 0.04, "inside the bounds that decided it"
    assert decibel.tolist() == [9.0] * 6


def test_a_filled_curve_is_exact_where_it_was_measured() -> None:
    known = {n: found(n, 1.0 / n) for n in (2, 8, 32)}
    distances, _ = filled(GRID, known, ("d_sim",))
    np.testing.assert_allclose(distances[[0, 2, 4], 0], [0.2, 0.05, 0.0125], rtol=1e-6)
    assert distances[1, 0] == pytest.approx((0.2 + 0.05) / 2), "4 is halfway from 2 to 8 in log n"


def test_a_metric_that_never_differs_stops_nothing() -> None:
    known = {n: Measurement(n, {"l_snr": 0.0}, 9.0, n, 0.1, 0.1) for n in (2, 4, 32)}
    assert next_count(GRID, known, 0.05) is None


def test_a_failed_render_is_tried_once_more_with_less_memory() -> None:
    renderer = StubRenderer(32, fails=lambda text, seed, steps, careful: "" if careful else "out of memory")
    events = list(run_trajectory(renderer, work()))
    assert isinstance(events[-1], Finished)
    assert [careful for *_, careful in renderer.asked] == [False, True] * 5


@pytest.mark.parametrize("broken", [32, 8])
def test_a_render_that_fails_twice_is_left_out_with_its_reason(broken: int) -> None:
    renderer = StubRenderer(32, fails=lambda text, seed, steps, careful: "NaN" if steps == broken else "")
    assert list(run_trajectory(renderer, work()))[-1] == Failed(broken, "NaN")


def test_grids_follow_the_models_own_steps() -> None:
    assert grid_for(4, 12) == (1, 2, 3, 4)
    assert grid_for(12, 8) == tuple(range(1, 13))
    assert grid_for(50, 12) == DEFAULT_GRID
    for target in range(13, 120):
        full, few = grid_for(target, 12), grid_for(target, 8)
        assert full[0] == 2
        assert full[-1] == target
        assert set(few) <= set(full), "a thorough calibration uses what a quick one measured"
        assert len(few) <= 8
    with pytest.raises(InputError, match="max_steps"):
        grid_for(1, 12)
    with pytest.raises(InputError, match="thoroughness"):
        Spec(20, "very")


def test_nested_grids_begin_with_the_crudest_count_and_then_the_prefix_and_one_step() -> None:
    for target, prefix in ((50, 4), (50, 13), (20, 6), (9, 3), (13, 1)):
        full, few = grid_for(target, 12, prefix), grid_for(target, 8, prefix)
        assert full[0] == min(2, prefix)
        assert full[1] == prefix + 1 and full[-1] == target
        assert set(few) <= set(full) and few[-1] == target
    with pytest.raises(InputError, match="9"):
        grid_for(9, 12, 8)


def test_a_shared_prefix_is_counted_once() -> None:
    """2, 5, 6 and 9 steps with a prefix of 4: 2 + 4 + 1 + 2 + 5."""
    assert Spec(20, prefix_steps=4).computed_steps((2, 5, 6, 9)) == 14
    assert Spec(20).computed_steps((2, 5, 6, 9)) == 22


def test_quick_costs_at_most_a_hundred_ordinary_renders() -> None:
    spec = Spec(20)
    first_evaluations_shared = AMOUNTS["quick"].prompts * (len(spec.grid) - 1)
    assert spec.most_evaluations(AMOUNTS["quick"].prompts) - first_evaluations_shared <= 100 * 20
