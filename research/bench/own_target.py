"""One schedule against its own target: what renders need, what plans guarantee, and how much the prompt tells.

Violations are by the tolerance rule, which the guarantee bounds: quality below q at the count or at any higher one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from budgetfusion_nodes.core.curves import METRICS, FloatArray, all_counts, interpolate_log_n, tail_max, worst
from budgetfusion_nodes.core.risk import controlled_theta, critical_thetas
from research.statistics.allocation import (
    HeldOut,
    IndexArray,
    at_index,
    best_fixed,
    needed,
    outcome,
    per_prompt,
    permuted,
    planned_index,
    uniform,
)
from research.statistics.bootstrap import (
    bootstrap,
    cvar,
    cvar_difference,
    interval,
    mean_difference,
    relative_difference,
)
from research.statistics.variance import prompt_share_interval

from .measures import HELD_OUT, Curves

QUALITIES = (0.8, 0.9, 0.95)
RISKS = (0.05, 0.1, 0.2)
QUALITY, RISK = 0.9, 0.1
SPLITS = 200
LOW_QUALITY = 0.6
"""The slider's low end for changes of the composition."""
VIOLATION = "violation_controlled"


@dataclass(frozen=True)
class Truth:
    """Every integer count of one schedule."""

    held: HeldOut
    scale: tuple[float, ...]
    d_sim: FloatArray
    """[P, S, C] D-SIM to the target over its scale."""
    held_out: FloatArray
    """[P, S, C, HELD_OUT]"""


def truth_of(curves: Curves, scale: tuple[float, ...]) -> Truth:
    """scale: [M] of METRICS, that of the planner under test or of the stock schedule's least count."""
    counts = all_counts(curves.counts)
    columns = np.moveaxis(curves.distances, -1, 0)  # [columns, P, S, K]
    short = interpolate_log_n(curves.counts, worst(curves.distances[..., : len(METRICS)], scale), counts)
    place = METRICS.index("d_sim")
    d_sim = interpolate_log_n(curves.counts, columns[place] / scale[place], counts)
    others = [interpolate_log_n(curves.counts, column, counts) for column in columns[len(METRICS) :]]
    return Truth(HeldOut(np.asarray(counts), short), scale, d_sim, np.stack(others, axis=-1))


def median_scale(curves: Curves) -> tuple[float, ...]:
    """Medians at the least rendered count."""
    values = np.median(curves.distances[:, :, 0, : len(METRICS)], axis=(0, 1))
    return tuple(float(value) for value in values)


def needs(truth: Truth, q: float, seed: int) -> dict[str, Any]:
    """Oracles, the one count, and the prompt's share of log t*."""
    held = truth.held
    steps = needed(held.counts, held.quality, q)  # [P, S]
    share = prompt_share_interval(np.log(steps), seed)
    return {
        "oracle_a": bootstrap(steps.mean(axis=1), seed),
        "oracle_b": bootstrap(steps.max(axis=1), seed),
        "one_count": {f"{risk:g}": best_fixed(held, q, risk, VIOLATION) for risk in RISKS},
        "prompt_share": share,
    }


def index_of(held: HeldOut, steps: IndexArray) -> IndexArray:
    """Of planned counts; below the least rendered one that one is taken."""
    return np.clip(steps, held.counts[0], held.counts[-1]) - held.counts[0]


def planned_row(truth: Truth, steps: IndexArray, q: float, risk: float, seed: int) -> dict[str, Any]:
    """Violations and cost of plans [P], beside the one count with as many violations on these very prompts."""
    held = truth.held
    found = per_prompt(held, index_of(held, steps), q)
    violation = bootstrap(found[VIOLATION], seed)
    fixed = best_fixed(held, q, violation["value"], VIOLATION)
    one = interval(relative_difference, seed, found["steps"], np.full(len(steps), float(fixed)))
    return {
        "quality": q,
        "risk": risk,
        "steps": bootstrap(found["steps"], seed),
        "violations": violation,
        "violations_at_count": bootstrap(found["violation"], seed),
        "within": violation["low"] <= risk,
        "below": violation["value"] <= risk,
        "one_count": fixed,
        "against_one_count": one,
    }


def at_equal_cost(truth: Truth, steps: IndexArray, q: float, seed: int) -> dict[str, Any]:
    """Plans [P] beside UNIFORM and PERMUTED at the same mean evaluations; paired intervals of planned - other."""
    held, index = truth.held, index_of(truth.held, steps)
    planned = ((1.0, index),)
    rivals = {"UNIFORM": uniform(held, float(held.counts[index].mean())), "PERMUTED": permuted(held, index)}
    own = _figures(truth, planned, q)
    rows: dict[str, Any] = {"planned": {name: bootstrap(values, seed) for name, values in own.items()}}
    rows["planned"]["cvar"] = interval(cvar, seed, own["shortfall"])
    for name, mixture in rivals.items():
        other = _figures(truth, mixture, q)
        rows[name] = {key: bootstrap(values, seed) for key, values in other.items()}
        rows[name]["cvar"] = interval(cvar, seed, other["shortfall"])
        rows[name]["difference"] = {key: interval(mean_difference, seed, own[key], other[key]) for key in own}
        rows[name]["difference"]["cvar"] = interval(cvar_difference, seed, own["shortfall"], other["shortfall"])
    return rows


def _figures(truth: Truth, mixture: tuple[tuple[float, IndexArray], ...], q: float) -> dict[str, FloatArray]:
    found = outcome(truth.held, mixture, q)
    others = {
        name: np.sum([share * at_index(truth.held_out[..., i], index).mean(axis=1) for share, index in mixture], axis=0)
        for i, name in enumerate(HELD_OUT)
    }
    return {"violations": found[VIOLATION], "shortfall": found["shortfall"], **others}


def random_splits(
    held: HeldOut, upper: FloatArray, q: float, risk: float, seed: int, times: int = SPLITS
) -> dict[str, float]:
    """The threshold calibrated on one half of the prompts, tested on the other. upper: [P, C] at held.counts.

    By conformal risk control the mean over splits is at most `risk` for plans and for one count for all.
    """
    rng = np.random.default_rng(seed)
    one = np.broadcast_to(1.0 / held.counts, upper.shape)  # falls: only its order matters
    found: dict[str, list[tuple[float, float]]] = {"planned": [], "one": []}
    critical = {name: critical_thetas(curve, held.quality, q) for name, curve in (("planned", upper), ("one", one))}
    for _ in range(times):
        order = rng.permutation(len(upper))
        own, new = order[: len(order) // 2], order[len(order) // 2 :]
        for name, curve in (("planned", upper), ("one", one)):
            theta = controlled_theta(critical[name][own], risk)
            steps = held.counts[planned_index(curve[new], theta)].mean()
            found[name].append((float((critical[name][new] <= theta).mean()), float(steps)))
    planned, single = (np.array(found[name]) for name in ("planned", "one"))
    return {
        "violations": float(planned[:, 0].mean()),
        "splits_above": float((planned[:, 0] > risk).mean()),
        "steps": float(planned[:, 1].mean()),
        "one_violations": float(single[:, 0].mean()),
        "one_steps": float(single[:, 1].mean()),
    }


def upper_at(held: HeldOut, upper: FloatArray, counts: IndexArray) -> FloatArray:
    """A planner's curves at the counts of the truth; outside its own counts the value at the nearer end."""
    return upper[:, np.clip(held.counts - counts[0], 0, len(counts) - 1)]


def composition(truth: Truth, steps: IndexArray, seed: int) -> dict[str, float]:
    """Share of renders whose D-SIM to the target is above half its scale at the plan's count or a higher one: moving
    the slider from there to its top changes the composition. steps: [P] planned for LOW_QUALITY."""
    changed = at_index(tail_max(truth.d_sim), index_of(truth.held, steps)) > 0.5
    return bootstrap(changed.mean(axis=1), seed)
