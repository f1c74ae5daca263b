"""Renders that run a part of a schedule: denoise below 1, and a change of model in the middle.

KSampler's own rule (comfy.samplers.KSampler.set_steps): `steps` at a denoise d are the last `steps` of a schedule of
int(steps / d). So k executed steps are as dense as int(k / d) steps of a full render.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from .messages import Message
from .plan import Decision, Plan

FEWEST = 4
"""A plan for a part of the schedule executes at least these: below, a curve of full renders says nothing."""
FULL = 0.9999
"""From this denoise on KSampler runs the whole schedule."""
LIMIT_CODES = ("max_too_low", "max_beyond", "min_beyond")
"""What `Decision.limit_warnings` says."""


def full_count(executed: int, denoise: float) -> int:
    """Steps of the full schedule whose end `executed` steps at this denoise in (0, 1] are: the host's own rule."""
    return executed if denoise > FULL else int(executed / denoise)


def executed_count(full: int, denoise: float) -> int:
    """The least executed count whose density at this denoise is that of `full` steps, at least FEWEST (or `full`)."""
    if denoise > FULL:
        return full
    count = max(1, math.floor(full * denoise))
    while full_count(count, denoise) < full:
        count += 1
    return max(count, min(FEWEST, full))


def for_denoise(plan: Plan, denoise: float) -> Plan:
    """`plan`, made for a full render, for one that starts at this denoise: every count is what really runs.

    Curves keep their values; only the counts they stand at, and those in its warnings, become executed ones. A fallback
    and a denoise of 1 stay as they are. nfe is left to the caller, who knows the sampler.
    """
    if plan.decision is None or plan.fallback is not None or denoise > FULL or denoise <= 0.0:
        return plan
    decision = _decision(plan.decision, denoise)
    target = decision.counts[-1]
    steps = decision.steps(plan.quality, plan.min_steps, plan.max_steps)
    kept = _kept(plan.grid, denoise)
    return replace(
        plan,
        steps=steps,
        quality_predicted=decision.quality_at(steps),
        limited_by=decision.limited_by(plan.quality),
        grid=tuple(executed_count(plan.grid[i], denoise) for i in kept),
        quality_low=tuple(plan.quality_low[i] for i in kept),
        quality_median=tuple(plan.quality_median[i] for i in kept),
        quality_high=tuple(plan.quality_high[i] for i in kept),
        shortfall_median=None
        if plan.shortfall_median is None
        else {name: tuple(values[i] for i in kept) for name, values in plan.shortfall_median.items()},
        warnings=(*_limits(plan, decision), *_other_warnings(plan, target)),
        decision=decision,
    )


def _limits(plan: Plan, decision: Decision) -> Iterator[Message]:
    """What the full plan said of its limits, where it still holds, in counts that run."""
    said = {warning.code for warning in plan.warnings}
    limits = decision.limit_warnings(plan.quality, plan.min_steps, plan.max_steps)
    return (warning for warning in limits if warning.code in said)


def _other_warnings(plan: Plan, target: int) -> Iterator[Message]:
    for warning in plan.warnings:
        if warning.code not in LIMIT_CODES:
            counts = {"target": target} if "target" in warning.values else {}
            yield replace(warning, values={**warning.values, **counts})


def _decision(full: Decision, denoise: float) -> Decision:
    """Counts: every executed one up to the target's; each with the values of the full count it is as dense as."""
    first, last = executed_count(full.counts[0], denoise), executed_count(full.counts[-1], denoise)
    counts = tuple(range(min(first, last), last + 1))
    at = [min(full_count(count, denoise), full.counts[-1]) - full.counts[0] for count in counts]
    kept = _kept(full.grid, denoise)
    return replace(
        full,
        grid=tuple(executed_count(full.grid[i], denoise) for i in kept),
        shortfall_high_norm=tuple(full.shortfall_high_norm[i] for i in kept),
        counts=counts,
        upper=tuple(full.upper[i] for i in at),
        limiting=tuple(full.limiting[i] for i in at),
        quality=tuple(full.quality[i] for i in at),
    )


def _kept(grid: Sequence[int], denoise: float) -> list[int]:
    """Indices of the grid counts that become different executed counts; of equal ones the densest."""
    last = {executed_count(count, denoise): index for index, count in enumerate(grid)}
    return sorted(last.values())


def split_step(full: Sequence[float], at: int, sigmas: Sequence[float]) -> int:
    """The step of `sigmas` nearest in log sigma to step `at` of `full`, so that a change of model stays where it was.

    full, sigmas: decreasing noise levels, one more than steps, the last may be 0. at: 0 to len(full) - 1. 0 stays 0 and
    the end stays the end; every step between leaves at least one step on each side where there are two.
    """
    last = len(sigmas) - 1
    if at <= 0:
        return 0
    if at >= len(full) - 1:
        return last
    if last < 2:
        return last
    wanted = math.log(max(full[at], TINY))
    inside = range(1, last)
    return min(inside, key=lambda step: abs(math.log(max(sigmas[step], TINY)) - wanted))


TINY = 1e-9
"""A noise level of 0 has no logarithm."""
