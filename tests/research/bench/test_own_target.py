"""Guarantee, needs and equal cost on simulated curves."""

from __future__ import annotations

import numpy as np
import pytest

from budgetfusion_nodes.core.curves import METRICS
from research.bench.measures import COLUMNS, Curves
from research.bench.own_target import (
    RISKS,
    at_equal_cost,
    composition,
    index_of,
    needs,
    planned_row,
    random_splits,
    truth_of,
    upper_at,
)

GRID = (2, 4, 6, 10, 16, 25, 50)
SCALE = (6.0, 0.4, 0.2)


def simulated(prompts: int, seed: int = 0, noise: float = 0.1) -> tuple[Curves, np.ndarray]:
    """(curves that fall at a rate of the prompt's own and its seeds' noise, the rates [P])."""
    rng = np.random.default_rng(seed)
    rate = np.exp(0.4 * rng.normal(size=prompts))
    each = rate[:, None] * np.exp(noise * rng.normal(size=(prompts, 2)))
    grid = np.array(GRID, float)
    fall = (2.0 / grid) ** each[..., None] - (2.0 / grid[-1]) ** each[..., None]  # [P, S, K]
    size = np.array([*SCALE, 0.3, 0.3])[: len(COLUMNS)]
    return Curves(GRID, fall[..., None] * size), rate


@pytest.fixture(scope="module")
def data():
    curves, rate = simulated(200)
    counts = np.arange(GRID[0], GRID[-1] + 1)
    upper = (2.0 / counts) ** rate[:, None] - (2.0 / counts[-1]) ** rate[:, None]
    return truth_of(curves, SCALE), upper, counts


@pytest.mark.parametrize("risk", RISKS)
def test_random_splits_keep_the_risk_on_average_and_cost_less_where_the_prompt_tells(data, risk):
    truth, upper, counts = data
    found = random_splits(truth.held, upper_at(truth.held, upper, counts), 0.9, risk, 1)
    assert found["violations"] <= risk + 0.01 and found["one_violations"] <= risk + 0.01
    assert found["violations"] > risk - 0.04  # and is not kept by rendering everything
    assert found["steps"] < 0.9 * found["one_steps"]


def test_needs_are_ordered_and_the_prompt_explains_what_it_was_given(data):
    truth, _, _ = data
    found = needs(truth, 0.9, 0)
    assert found["oracle_a"]["value"] < found["oracle_b"]["value"]
    assert found["one_count"]["0.05"] >= found["one_count"]["0.1"] >= found["one_count"]["0.2"]
    assert found["prompt_share"]["low"] < found["prompt_share"]["value"] < found["prompt_share"]["high"]
    alone, _ = simulated(200, noise=0.0)
    assert needs(truth_of(alone, SCALE), 0.9, 0)["prompt_share"]["value"] == pytest.approx(1.0)


def test_one_count_is_compared_at_equal_violations(data):
    truth, _, _ = data
    row = planned_row(truth, np.full(200, 20), 0.9, 0.1, 0)
    assert row["one_count"] <= 20 and row["against_one_count"]["value"] >= 0.0  # one count against the least such count
    assert row["steps"]["value"] == 20.0
    everything = planned_row(truth, np.full(200, 50), 0.9, 0.1, 0)
    assert everything["violations"]["value"] == 0.0 and everything["within"]


def test_plans_beat_uniform_and_permuted_where_the_prompt_tells(data):
    truth, upper, counts = data
    steps = counts[(upper <= 0.05).argmax(axis=1)]
    rows = at_equal_cost(truth, steps, 0.9, 0)
    assert set(rows) == {"planned", "UNIFORM", "PERMUTED"}
    for rival in ("UNIFORM", "PERMUTED"):
        assert rows[rival]["difference"]["violations"]["high"] < 0.0
        assert rows[rival]["difference"]["cvar"]["high"] < 0.0


def test_composition_counts_what_is_far_from_the_target_now_or_later():
    distances = np.zeros((4, 2, len(GRID), len(COLUMNS)))
    distances[0, 0, 2:4, METRICS.index("d_sim")] = 0.21  # above half the scale at 6 and 10 steps
    truth = truth_of(Curves(GRID, distances), SCALE)
    assert composition(truth, np.full(4, 4), 0)["value"] == pytest.approx(1 / 8)
    assert composition(truth, np.full(4, 16), 0)["value"] == 0.0


def test_counts_outside_the_rendered_ones_are_the_nearest(data):
    held = data[0].held
    assert index_of(held, np.array([1, 2, 50, 60])).tolist() == [0, 0, 48, 48]
