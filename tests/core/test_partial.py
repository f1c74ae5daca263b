"""Parts of a schedule: counts by the host's own rule, a plan for them, and the step at an equal noise level."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from budgetfusion_nodes.core.curves import DEFAULT_GRID
from budgetfusion_nodes.core.messages import message
from budgetfusion_nodes.core.partial import FEWEST, executed_count, for_denoise, full_count, split_step
from budgetfusion_nodes.core.plan import Decision, Plan


def plan(quality: float = 0.9, max_steps: int = 50) -> Plan:
    fall = [2.0 / n - 2.0 / 50 for n in DEFAULT_GRID]
    median = tuple(1.0 - x for x in fall)
    decision = Decision.from_curves(DEFAULT_GRID, {"l_snr": fall}, median, [(0.5, 0.5), (0.99, 0.01)])
    steps = decision.steps(quality, 2, max_steps)
    curves = dict.fromkeys(("quality_low", "quality_median", "quality_high"), median)
    return Plan(
        steps, max_steps, 2, quality, 0.1, grid=DEFAULT_GRID, decision=decision,
        shortfall_median={"l_snr": tuple(fall)}, **curves,
    )  # fmt: skip


@pytest.mark.parametrize("denoise", [0.05, 0.3, 0.5, 0.75, 0.87, 0.99, 1.0])
def test_an_executed_count_is_the_least_that_is_as_dense(denoise: float) -> None:
    for full in range(2, 60):
        executed = executed_count(full, denoise)
        assert executed >= min(FEWEST, full)
        assert full_count(executed, denoise) >= full
        if executed > min(FEWEST, full):
            assert full_count(executed - 1, denoise) < full


@pytest.mark.parametrize("denoise", [0.25, 0.5, 0.8])
def test_a_partial_plan_takes_the_share_of_the_full_one(denoise: float) -> None:
    full = plan()
    part = for_denoise(full, denoise)
    assert part.steps == executed_count(full.steps, denoise)
    assert part.steps < full.steps
    assert part.decision is not None and full.decision is not None
    assert part.decision.counts[-1] == executed_count(50, denoise)
    assert part.grid == part.decision.grid
    assert len(part.grid) == len(part.quality_low) == len(part.quality_high) == len(set(part.grid))
    assert part.quality_predicted == pytest.approx(full.decision.quality_at(full_count(part.steps, denoise)))


def test_more_quality_still_never_means_fewer_steps() -> None:
    steps = [for_denoise(plan(q), 0.4).steps for q in np.linspace(0.5, 0.99, 25)]
    assert steps == sorted(steps)
    assert steps[0] < steps[-1]


def test_the_limits_hold_for_what_runs() -> None:
    assert for_denoise(plan(0.99, max_steps=9), 0.5).steps == 9
    assert for_denoise(replace(plan(0.5), min_steps=15), 0.5).steps == 15


def test_warnings_name_the_counts_that_run() -> None:
    """As Planner.plan made them for a full render of twice the counts."""
    full = plan(0.99, max_steps=18)
    assert full.decision is not None
    few = message("too_few_prompts", n=5, risk=0.02, target=50)
    said = (*full.decision.limit_warnings(0.99, 2, 18), few)
    part = for_denoise(replace(full, warnings=said, max_steps=9), 0.5)
    assert part.decision is not None
    (low, prompts) = part.warnings
    assert (low.code, low.values["max"]) == ("max_too_low", 9)
    assert (
        low.values["steps"] == part.decision.steps(0.99, 1, 50) == executed_count(full.decision.steps(0.99, 1, 50), 0.5)
    )
    assert prompts == message("too_few_prompts", n=5, risk=0.02, target=part.decision.counts[-1])


def test_a_limit_that_suffices_for_the_part_is_no_warning() -> None:
    """A connected plan was made for a full render under the same max_steps."""
    full = plan(0.9, max_steps=9)
    assert full.decision is not None
    said = full.decision.limit_warnings(0.9, 2, 9)
    assert [one.code for one in said] == ["max_too_low"]
    assert for_denoise(replace(full, warnings=said), 0.3).warnings == ()


@pytest.mark.parametrize("denoise", [0.0, 1.0])
def test_a_full_render_and_no_render_keep_the_plan(denoise: float) -> None:
    assert for_denoise(plan(), denoise) == plan()


def test_a_fallback_keeps_its_count() -> None:
    fallback = Plan.fallback_plan(20, 2, 0.9, 0.1, message("plan_is_fallback"))
    assert for_denoise(fallback, 0.3) == fallback


def karras(steps: int) -> list[float]:
    low, high = 0.03 ** (1 / 7), 14.6 ** (1 / 7)
    return [(high + i / (steps - 1) * (low - high)) ** 7 for i in range(steps)] + [0.0]


@pytest.mark.parametrize("steps", [2, 3, 6, 12, 20, 37])
@pytest.mark.parametrize("at", [1, 4, 10, 19])
def test_a_split_stays_at_its_noise_level(steps: int, at: int) -> None:
    full, planned = karras(20), karras(steps)
    step = split_step(full, at, planned)
    assert 1 <= step <= steps - 1
    away = [abs(math.log(sigma / full[at])) for sigma in planned[1:-1]]
    assert away[step - 1] == min(away)
    assert split_step(full, at, full) == at


def test_the_ends_of_a_split_stay_ends() -> None:
    assert split_step(karras(20), 0, karras(8)) == 0
    assert split_step(karras(20), 20, karras(8)) == 8
    assert split_step(karras(20), 10_000, karras(8)) == 8
    assert split_step(karras(20), 10, [14.6, 0.0]) == 1
    assert split_step([1.0, 0.5, 0.0, 0.0], 2, [1.0, 0.5, 0.0, 0.0]) == 2
