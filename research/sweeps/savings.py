"""What a calibration that leaves out decided counts saves, and what it costs in the plan: `study savings`.

Replays the rule of calibration/trajectory.py on a sweep that has every count, so nothing is rendered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from budgetfusion_nodes.calibration.records import Measurement
from budgetfusion_nodes.calibration.spec import AMOUNTS
from budgetfusion_nodes.calibration.trajectory import filled, next_count
from budgetfusion_nodes.core.curves import METRICS, FloatArray, all_counts, interpolate_log_n, tail_min, worst
from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.risk import QUALITIES, controlled_theta

RISK, QUALITY = 0.1, 0.9
CALIBRATION, DEALS = 28, 500


@dataclass(frozen=True)
class Savings:
    """Of one tolerance, against every count of the grid."""

    tolerance: float
    evaluations: float
    """Share of the full grid's, the shared first evaluations counted once."""
    steps: float
    """Share of the full grid's steps, without sharing."""
    plan_error: float
    """Mean over the slider (.50 to .99) of |planned - planned from the full grid|, one count for all at 10 % risk."""
    bias: float
    """The same without the bars: above 0 the calibration plans too many."""
    misses: float
    """Share of other trajectories below quality .90 at the count that 28 thinned ones promise at 10 % risk, over random
    deals."""
    trajectories: int

    def text(self) -> str:
        return (
            f"tolerance {self.tolerance:.2f}: {self.evaluations:.1%} of the evaluations ({self.steps:.1%} of steps), "
            f"plan {self.plan_error:.2f} steps off on average ({self.bias:+.2f}), {self.misses:.1%} misses at .90 "
            f"over {DEALS} deals; {self.trajectories} trajectories"
        )


def load_trajectories(folder: Path) -> tuple[tuple[int, ...], NDArray[np.float32]]:
    """(grid, [R, K, M] distances) of the finished shards of a sweep."""
    files = sorted((folder / "shards").glob("*.safetensors"))
    if not files:
        raise InputError(f"--sweep: {folder} holds no finished shard. Run 'study sweep' first.")
    grid = tuple(json.loads((folder / "sweep.json").read_text(encoding="utf-8"))["grid"])
    return grid, np.concatenate([load_file(file)["shortfall"] for file in files])


def savings(grid: Sequence[int], shortfall: NDArray[np.float32], tolerance: float) -> Savings:
    """shortfall: [R, K, M]."""
    left = [_replayed(grid, one, tolerance) for one in shortfall]
    scale = np.median(shortfall[:, 0], axis=0)
    thinned = np.stack([part for part, _ in left])
    full, thin = (_planned(grid, values, scale) for values in (shortfall, thinned))
    steps = np.array([sum(counts) for _, counts in left])
    shared = steps - np.array([len(counts) - 1 for _, counts in left])
    difference = thin - full
    return Savings(
        tolerance,
        float(shared.mean() / sum(grid)),
        float(steps.mean() / sum(grid)),
        float(np.abs(difference).mean()),
        float(difference.mean()),
        _misses(grid, shortfall, thinned),
        len(shortfall),
    )


def _replayed(grid: Sequence[int], one: NDArray[np.float32], tolerance: float) -> tuple[NDArray[np.float32], list[int]]:
    """([K, M] as the store would give it, the counts that were rendered)."""
    known: dict[int, Measurement] = {}
    while (steps := next_count(grid, known, tolerance)) is not None:
        row = one[list(grid).index(steps)]
        distances: Mapping[str, float] = dict(zip(METRICS, row.astype(float).tolist(), strict=True))
        known[steps] = Measurement(steps, distances, 0.0, steps, 0.0, 0.0)
    return filled(grid, known, METRICS)[0], sorted(known)


def _misses(grid: Sequence[int], shortfall: NDArray[np.float32], thinned: NDArray[np.float32]) -> float:
    """The scale is each deal's own, as in a calibration."""
    rng, rates = np.random.default_rng(0), []
    for _ in range(DEALS):
        order = rng.permutation(len(shortfall))
        own, new = order[:CALIBRATION], order[CALIBRATION:]
        scale = np.median(thinned[own][:, 0], axis=0)
        promised = controlled_theta(1.0 / (_needs(grid, thinned[own], scale, QUALITY) - 0.5)[:, None], RISK)
        sufficient = 1.0 / np.asarray(all_counts(grid)) <= promised
        steps = all_counts(grid)[int(sufficient.argmax())] if sufficient.any() else grid[-1]
        rates.append(float((_needs(grid, shortfall[new], scale, QUALITY) > steps).mean()))
    return float(np.mean(rates))


def _needs(grid: Sequence[int], shortfall: NDArray[np.float32], scale: NDArray[Any], q: float) -> FloatArray:
    """[R] the least count that is enough for q."""
    counts = all_counts(grid)
    quality = np.clip(1.0 - interpolate_log_n(grid, worst(shortfall, scale), counts), 0.0, 1.0)
    return np.asarray(counts, dtype=float)[(tail_min(quality) >= q).argmax(axis=-1)]


def _planned(grid: Sequence[int], shortfall: NDArray[np.float32], scale: NDArray[Any]) -> FloatArray:
    """[Q] the one count for all at RISK, for each tabulated quality."""
    counts = np.asarray(all_counts(grid))
    quality = np.clip(1.0 - interpolate_log_n(grid, worst(shortfall, scale), all_counts(grid)), 0.0, 1.0)
    enough = tail_min(quality)
    planned = []
    for q in QUALITIES:
        needs = counts[(enough >= q).argmax(axis=-1)]
        theta = controlled_theta(1.0 / (needs - 0.5)[:, None], RISK)  # a curve that falls: only its order matters
        sufficient = counts[1.0 / counts <= theta]
        planned.append(sufficient[0] if len(sufficient) else counts[-1])
    return np.asarray(planned, dtype=float)


def print_savings(folder: Path) -> None:
    """One line for each thoroughness."""
    grid, shortfall = load_trajectories(folder)
    for name, amount in AMOUNTS.items():
        print(f"{name:>9}, {savings(grid, shortfall, amount.tolerance).text()}")  # noqa: T201 - a command's output
