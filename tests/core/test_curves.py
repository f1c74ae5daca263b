from __future__ import annotations

import numpy as np
import pytest
from scipy.interpolate import PchipInterpolator

from budgetfusion_nodes.core.curves import (
    DEFAULT_GRID,
    all_counts,
    interpolate_log_n,
    limiting_metric,
    parse_grid,
    quality,
    tail_max,
    tail_min,
    validate_grid,
)
from budgetfusion_nodes.core.errors import BudgetFusionError, InputError


def test_the_default_grid_is_valid_and_returned_as_it_is():
    assert validate_grid(list(DEFAULT_GRID)) == DEFAULT_GRID


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2 3 4, 6", (2, 3, 4, 6)), (" 1;2 ", (1, 2)), ("5,10\n20\t40", (5, 10, 20, 40)), ("2,,3", (2, 3))],
)
def test_grids_are_parsed_as_artists_type_them(text, expected):
    assert parse_grid(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "at least two"),
        ("7", "at least two"),
        ("2 2 3", "increase"),
        ("4 3", "3 follows 4"),
        ("2 x 3", "'x'"),
        ("2 3.5", "'3.5'"),
        ("-1 4", "'-1'"),
        ("0 4", "0 to 4"),
        ("2 5000", "2 to 5000"),
    ],
)
def test_bad_grids_are_refused_with_the_reason(text, said):
    with pytest.raises(InputError, match=said):
        parse_grid(text)


@pytest.mark.parametrize("grid", [(2, 3.5), (True, 3)])
def test_grids_hold_whole_numbers_only(grid):
    with pytest.raises(InputError, match="whole number"):
        validate_grid(grid)
    assert issubclass(InputError, BudgetFusionError)


def test_interpolation_equals_scipy_and_is_exact_on_the_grid():
    rng = np.random.default_rng(0)
    values = rng.random((4, len(DEFAULT_GRID)))
    counts = all_counts(DEFAULT_GRID)
    got = interpolate_log_n(DEFAULT_GRID, values, counts)
    reference = PchipInterpolator(np.log(DEFAULT_GRID), values, axis=-1)(np.log(counts[:-1]))
    np.testing.assert_allclose(got[:, :-1], reference, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(got[:, np.array(DEFAULT_GRID) - 2], values)


def test_interpolation_keeps_monotone_curves_monotone_and_in_range():
    values = np.sort(np.random.default_rng(1).random((50, len(DEFAULT_GRID))))[:, ::-1]
    curve = interpolate_log_n(DEFAULT_GRID, values, all_counts(DEFAULT_GRID))
    assert (np.diff(curve, axis=-1) <= 1e-12).all()
    assert curve.min() >= values.min() - 1e-12
    assert curve.max() <= values.max() + 1e-12


def test_a_curve_linear_in_log_n_is_reproduced():
    values = 3.0 - 0.5 * np.log(DEFAULT_GRID)
    counts = [5, 11, 30]
    np.testing.assert_allclose(interpolate_log_n(DEFAULT_GRID, values, counts), 3.0 - 0.5 * np.log(counts), atol=1e-12)


@pytest.mark.parametrize(
    ("values", "counts", "said"),
    [
        ([1.0, 2.0], [1], "leave the measured"),
        ([1.0, 2.0], [9], "leave"),
        ([1.0], [2], "2 values"),
        ([1.0, np.nan], [3], "not finite"),
    ],
)
def test_interpolation_refuses_what_it_cannot_know(values, counts, said):
    with pytest.raises(InputError, match=said):
        interpolate_log_n((2, 8), values, counts)


def test_quality_is_one_minus_the_worst_metric_clipped():
    shortfall = np.array([[6.0, 0.1, 0.05], [3.0, 0.1, 0.15], [0.3, 0.0, 0.0], [0.0, 0.0, 0.0]])
    scale = np.array([3.0, 0.4, 0.2])
    np.testing.assert_allclose(quality(shortfall, scale), [0.0, 0.0, 0.9, 1.0])
    assert limiting_metric(shortfall, scale)[:3].tolist() == [0, 0, 0]
    assert limiting_metric(np.array([0.1, 0.1, 0.15]), scale) == 2


def test_quality_does_not_change_with_a_metrics_unit():
    shortfall = np.random.default_rng(2).random((5, 12, 3))
    unit = np.array([20.0, 0.01, 3.0])
    scale = np.array([0.7, 0.8, 0.9])
    np.testing.assert_allclose(quality(shortfall, scale), quality(shortfall * unit, scale * unit))


@pytest.mark.parametrize("scale", [(1.0, 0.0, 1.0), (1.0, -1.0, 1.0), (1.0, np.nan, 1.0)])
def test_a_scale_must_be_positive(scale):
    with pytest.raises(InputError, match="scale"):
        quality(np.zeros((2, 3)), scale)


def test_tails():
    values = [3.0, 1.0, 2.0, 0.5]
    assert tail_min(values).tolist() == [0.5, 0.5, 0.5, 0.5]
    assert tail_max(values).tolist() == [3.0, 2.0, 2.0, 0.5]
