"""How many step counts should a sweep render? A sweep with twice the planner's counts, thinned out again.

From each thinned sweep a rule is made as an artist would make it, networks and thresholds from the thinned data alone,
and all of them are judged by every count that was rendered.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..core.curves import FloatArray, all_counts
from ..core.errors import InputError
from ..core.risk import controlled_theta, critical_thetas
from .allocation import HeldOut, outcome, per_prompt, planned_at_mean, planned_index
from .bootstrap import bootstrap
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
        raise InputError(f"grid: the finer sweep's counts {fine} do not hold the planner's {own}. Sweep with both.")
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
    """JSON-safe. For each grid: what the promise costs and how often it is missed, misses at the finest grid's cost,
    and how far t* on this grid lies from t* on the finest one. Test prompts; steps and misses are means over networks.
    """
    truth = true_shortfall(dataset, scale)
    test, calibration = dataset.rows("test"), dataset.rows("calibration")
    held = HeldOut(np.asarray(all_counts(dataset.grid)), truth[test], truth[calibration])
    features = project_prompts(dataset, fit_token_projection(dataset, seed))
    listed = grids(own, dataset.grid)
    exact = needed(held.counts, held.test_quality, q)
    found: dict[tuple[int, ...], dict[str, Any]] = {}
    scores: dict[tuple[int, ...], list[FloatArray]] = {}
    for done, grid in enumerate(listed):
        if progress is not None:
            progress(done, len(listed))
        coarse = thinned(dataset, grid)
        seen = true_quality(coarse, scale)
        seeds = range(seed, seed + NETWORK_SEEDS)
        scores[grid] = [network_scores(coarse, features, scale, member, options) for member in seeds]
        at = needed(held.counts, seen[test], q)
        found[grid] = {
            "grid": list(grid),
            "rendered_steps": sum(grid),
            "at_our_promise": _promise(held, scores[grid], seen[calibration], test, calibration, q, alpha, seed),
            "needed": {
                "mean": float(np.nanmean(at)),
                "mean_difference": float(np.nanmean(np.abs(at - exact))),
                "too_early": float((at < exact)[~np.isnan(at)].mean()),
            },
        }
    cost = found[dataset.grid]["at_our_promise"]["mean_steps"]
    for grid in listed:
        mixtures = [planned_at_mean(held.counts, each[test], cost) for each in scores[grid]]
        missed = np.mean([outcome(held, mixture, q)["violation_controlled"] for mixture in mixtures], axis=0)
        found[grid]["missed_at_equal_cost"] = bootstrap(missed, seed)
    prompts = {split: len(dataset.rows(split)) for split in ("train", "calibration", "test")}
    return {"prompts": prompts, "equal_cost": cost, "networks": NETWORK_SEEDS, "grids": [found[g] for g in listed]}


def _promise(
    held: HeldOut,
    scores: Sequence[FloatArray],
    calibration_quality: FloatArray,
    test: Any,
    calibration: Any,
    q: float,
    alpha: float,
    seed: int,
) -> dict[str, Any]:
    """Thresholds from what the thinned sweep knows of the calibration prompts."""
    results = []
    for each in scores:
        theta = controlled_theta(critical_thetas(each[calibration], calibration_quality, q), alpha)
        results.append(per_prompt(held, planned_index(each[test], theta), q))
    missed = np.mean([result["violation_controlled"] for result in results], axis=0)
    return {
        "mean_steps": float(np.mean([result["steps"] for result in results])),
        "missed": bootstrap(missed, seed),
    }
