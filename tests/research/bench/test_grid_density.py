from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from budgetfusion_nodes.core.curves import DEFAULT_GRID
from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.predictor.dataset import SweepDataset
from budgetfusion_nodes.predictor.fit import FitOptions
from research.bench.grid_density import FINE, compare_grids, grids, refined, thinned

SCALE = (6.0, 0.4, 0.2)
QUICK = FitOptions(networks=1, epochs=15, patience=5)


@pytest.fixture(scope="module")
def fine(make_dataset) -> SweepDataset:
    return make_dataset(60, 60, 60, seed=2, counts=refined(DEFAULT_GRID))


@pytest.fixture(scope="module")
def found(fine) -> dict[str, Any]:
    return compare_grids(fine, DEFAULT_GRID, SCALE, 0.9, 0.1, 0, QUICK)


def test_a_finer_grid_fills_the_widest_gaps():
    fine = refined(DEFAULT_GRID)
    assert len(fine) == FINE and set(DEFAULT_GRID) < set(fine)
    ratios = np.array(fine[1:]) / np.array(fine[:-1])
    wide = np.diff(fine) > 1
    assert ratios[wide].max() <= 1.17  # against 1.5 of the planner's own
    assert refined((2, 4, 50), 4) == (2, 4, 14, 50)
    assert refined((2, 3, 4)) == (2, 3, 4)  # no count lies between


def test_grids_run_from_coarse_to_fine_and_keep_both_ends():
    listed = grids(DEFAULT_GRID, refined(DEFAULT_GRID))
    assert [len(grid) for grid in listed] == [4, 6, 8, 12, 24]
    assert all(grid[0] == 2 and grid[-1] == 50 for grid in listed)
    assert all(set(grid) <= set(DEFAULT_GRID) for grid in listed[:-1])
    with pytest.raises(InputError, match="are not the planner's"):
        grids(DEFAULT_GRID, tuple(range(3, 51)))


def test_thinned_data_are_what_a_coarser_sweep_would_have_measured(fine, make_dataset):
    """The law draws the same random numbers whatever its grid is."""
    coarse = make_dataset(60, 60, 60, seed=2)
    got = thinned(fine, DEFAULT_GRID)
    assert got.grid == coarse.grid
    np.testing.assert_array_equal(got.shortfall, coarse.shortfall)
    np.testing.assert_array_equal(got.l_snr, coarse.l_snr)


def test_denser_grids_find_the_needed_count_better(found):
    off = [row["needed"]["mean_difference"] for row in found["grids"]]
    assert off[0] > 2 * off[3] and off[3] < 1.0 and off[-1] == 0.0
    assert found["grids"][-1]["needed"]["too_early"] == 0.0
    assert found["grids"][3]["needed"]["too_early"] < 0.02  # the law is smooth, and so are the curves between counts


def test_costs_and_misses_are_those_of_rules_that_keep_the_promise(found):
    assert [row["rendered_steps"] for row in found["grids"]][3:] == [202, sum(refined(DEFAULT_GRID))]
    own, fine = (row["at_our_promise"] for row in found["grids"][3:])
    assert 0.07 < fine["missed"] <= 0.1 and 0.07 < own["missed"] <= 0.11  # over many deals, with all that is known
    for row in (each["at_our_promise"] for each in found["grids"]):
        low, high = row["steps_of_networks"]
        assert 2 <= low <= row["mean_steps"] <= high <= 50
        assert row["more_steps"]["mean"] == pytest.approx(row["mean_steps"] - own["mean_steps"])
        assert row["more_misses"]["mean"] == pytest.approx(row["missed"] - own["missed"])
    assert own["more_steps"] == own["more_misses"] == {"mean": 0.0, "spread": 0.0}


def test_a_dip_between_the_counts_is_missed_by_the_thinned_sweep(fine):
    """Every picture is right from 3 steps on, but for one at 5: only a sweep with that count can know."""
    shortfall = np.where(fine.present[..., None, None], 0.0, np.nan) * np.ones((len(fine.grid), 3))
    shortfall[:, :, fine.grid.index(2)] += 10.0
    shortfall[:, :, fine.grid.index(5)] += 10.0
    data = replace(fine, shortfall=shortfall.astype(np.float32))
    rows = compare_grids(data, DEFAULT_GRID, SCALE, 0.9, 0.1, 0, QUICK)["grids"]
    own, all_counts = rows[3], rows[4]
    assert own["needed"] == {"mean": 3.0, "mean_difference": 3.0, "too_early": 1.0}
    assert all_counts["needed"] == {"mean": 6.0, "mean_difference": 0.0, "too_early": 0.0}
    assert own["at_our_promise"]["missed"] == 1.0 and own["at_our_promise"]["mean_steps"] < 5.5
    assert all_counts["at_our_promise"]["missed"] <= 0.1
    assert all_counts["at_our_promise"]["mean_steps"] > 5.5
    assert all_counts["at_our_promise"]["more_misses"]["mean"] < -0.8
