"""Replaying what a calibration leaves out."""

from __future__ import annotations

import numpy as np
import pytest

from budgetfusion_nodes.core.curves import DEFAULT_GRID
from budgetfusion_nodes.core.errors import InputError
from research.sweeps.savings import load_trajectories, savings


def falling(rate: float, count: int = 40) -> np.ndarray:
    """[R, K, 3] smooth curves, each with a rate of its own."""
    rates = rate * np.exp(0.2 * np.random.default_rng(0).normal(size=count))[:, None]
    grid = np.array(DEFAULT_GRID, float)
    fall = (2.0 / grid) ** rates - (2.0 / grid[-1]) ** rates
    return (fall[..., None] * np.array([6.0, 0.4, 0.2])).astype(np.float32)


def test_no_tolerance_renders_everything_and_plans_the_same() -> None:
    found = savings(DEFAULT_GRID, falling(1.5), 0.0)
    assert found.steps == 1.0
    assert found.evaluations == pytest.approx(1.0 - 11 / sum(DEFAULT_GRID)), "the first evaluation is shared"
    assert (found.plan_error, found.bias) == (0.0, 0.0)


def test_early_settling_spares_the_dear_counts() -> None:
    quick, slow = (savings(DEFAULT_GRID, falling(rate), 0.05) for rate in (3.0, 0.6))
    assert quick.evaluations < 0.5 < slow.evaluations
    assert quick.bias >= -0.1, "what is left out is planned for, not against"


def test_a_folder_without_shards_is_said(tmp_path) -> None:
    with pytest.raises(InputError, match="shard"):
        load_trajectories(tmp_path)
