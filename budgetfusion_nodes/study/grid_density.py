"""How many step counts should a sweep render? A sweep with twice the planner's counts, thinned out again.

From each thinned sweep a rule is made as an artist would make it, networks and thresholds from the thinned data alone,
and all of them are judged by every count that was rendered.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..core.curves import FloatArray, all_counts
from ..core.errors import InputError
from ..core.risk import controlled_theta, critical_thetas
from .allocation import HeldOut, IndexArray, per_prompt, planned_index
from .bootstrap import bootstrap, interval
from .dataset import SweepDataset, true_quality, true_shortfall
from .fit import FitOptions, fit_token_projection, project_prompts
from .oracles import needed
from .rivals import network_scores

FINE = 24
"""Counts of the sweep that the others are compared with."""
THINNED = (4, 6, 8)
"""Out of the planner's own counts, evenly; its own and all of the sweep's come after them."""
NETWORK_SEEDS = 3
"""A network's luck moves the figures as much as the grid may: each is a mean over this many."""

Progress = Callable[[int, int], None]
"""(done, of how many)."""


def refined(grid: Sequence[int], size: int = FINE) -> tuple[int, ...]:
    """`grid` and further counts, each in the middle (in log n) of the widest gap that still holds one."""
    counts = sorted(grid)
    while len(counts) < size:
        gaps = [(high / low, low, high) for low, high in itertools.pairwise(counts) if high - low > 1]
        if not gaps:
            break
        _, low, high = max(gaps)
        counts = sorted([*counts, min(max(round((low * high) ** 0.5), low + 1), high - 1)])
    return tuple(counts)


def grids(own: tuple[int, ...], fine: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Those that are compared, coarse to fine. InputError where `fine` does not hold the planner's own counts."""
    if not set(own) < set(fine):
        raise InputError(f"grid: the counts {fine} are not the planner's {own} and more. Sweep with both.")
    places = (np.unique(np.linspace(0, len(own) - 1, size).round().astype(int)) for size in THINNED if size < len(own))
    return [*(tuple(own[k] for k in kept) for kept in places), own, fine]


def thinned(dataset: SweepDataset, grid: tuple[int, ...]) -> SweepDataset:
    """The data set as if these counts alone had been rendered."""
    kept = [dataset.grid.index(count) for count in grid]
    return replace(dataset, grid=grid, shortfall=dataset.shortfall[:, :, kept], l_snr=dataset.l_snr[:, :, kept])


def compare_grids(
    dataset: SweepDataset,
    own: tuple[int, ...],
    scale: tuple[float, ...],
    q: float,
    alpha: float,
    seed: int,
    options: FitOptions,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """JSON-safe. For each grid: what the promise costs and how often it is missed, both also as differences from the
    planner's own grid, and how far t* on this grid lies from t* on the finest one. Of the test prompts."""
    truth = true_shortfall(dataset, scale)
    test, calibration = dataset.rows("test"), dataset.rows("calibration")
    held = HeldOut(np.asarray(all_counts(dataset.grid)), truth[test], truth[calibration])
    features = project_prompts(dataset, fit_token_projection(dataset, seed))
    listed = grids(own, dataset.grid)
    exact = needed(held.counts, held.test_quality, q)
    found: dict[tuple[int, ...], dict[str, Any]] = {}
    promised: dict[tuple[int, ...], _Promise] = {}
    for done, grid in enumerate(listed):
        if progress is not None:
            progress(done, len(listed))
        coarse = thinned(dataset, grid)
        seen = true_quality(coarse, scale)
        scores = [
            network_scores(coarse, features, scale, member, options) for member in range(seed, seed + NETWORK_SEEDS)
        ]
        promised[grid] = _promise(held, scores, seen[calibration], test, calibration, q, alpha)
        at = needed(held.counts, seen[test], q)
        found[grid] = {
            "grid": list(grid),
            "rendered_steps": sum(grid),
            "needed": {
                "mean": float(np.nanmean(at)),
                "mean_difference": float(np.nanmean(np.abs(at - exact))),
                "too_early": float((at < exact)[~np.isnan(at)].mean()),
            },
        }
    for grid in listed:
        found[grid]["at_our_promise"] = promised[grid].figures(promised[own], seed)
    prompts = {split: len(dataset.rows(split)) for split in ("train", "calibration", "test")}
    return {"prompts": prompts, "networks": NETWORK_SEEDS, "own": len(own), "grids": [found[g] for g in listed]}


@dataclass(frozen=True)
class _Promise:
    """What one grid's rules do to each test prompt."""

    steps: FloatArray
    """[networks, N]"""
    missed: FloatArray
    """[networks, N]"""

    def figures(self, own: _Promise, seed: int) -> dict[str, Any]:
        """Means over prompts and networks, and how far they are from those of `own` (paired over prompts)."""
        by_network = self.steps.mean(axis=1)
        return {
            "mean_steps": float(self.steps.mean()),
            "steps_of_networks": [float(by_network.min()), float(by_network.max())],
            "missed": bootstrap(self.missed.mean(axis=0), seed),
            "more_steps": interval(_difference, seed, self.steps.mean(axis=0), own.steps.mean(axis=0)),
            "more_misses": interval(_difference, seed, self.missed.mean(axis=0), own.missed.mean(axis=0)),
        }


def _difference(a: FloatArray, b: FloatArray) -> Any:
    return a.mean(axis=-1) - b.mean(axis=-1)


def _promise(
    held: HeldOut,
    scores: Sequence[FloatArray],
    calibration_quality: FloatArray,
    test: IndexArray,
    calibration: IndexArray,
    q: float,
    alpha: float,
) -> _Promise:
    """Thresholds from what the thinned sweep knows of the calibration prompts; steps and misses by all counts."""
    results = []
    for each in scores:
        theta = controlled_theta(critical_thetas(each[calibration], calibration_quality, q), alpha)
        results.append(per_prompt(held, planned_index(each[test], theta), q))
    return _Promise(
        np.stack([result["steps"] for result in results]),
        np.stack([result["violation_controlled"] for result in results]),
    )
