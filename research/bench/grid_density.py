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

from budgetfusion_nodes.core.curves import FloatArray, all_counts
from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.risk import critical_thetas
from budgetfusion_nodes.predictor.dataset import SweepDataset, true_quality
from budgetfusion_nodes.predictor.fit import FitOptions, fit_token_projection, project_prompts
from research.statistics.oracles import needed

from .risk_check import make_deals, mean_and_spread, means_over_deals, over_deals
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
    planner's own grid, and how far t* on this grid lies from t* on the finest one.

    Calibration and test prompts are dealt anew many times, the same way for every grid, so that the luck of one deal is
    in no figure: thresholds come from what the thinned sweep knows of one part, misses and steps are those of the other
    part by every count."""
    rows = np.concatenate([dataset.rows("calibration"), dataset.rows("test")])
    deals = make_deals(len(rows), len(dataset.rows("calibration")), seed)
    counts = np.asarray(all_counts(dataset.grid))
    truth = true_quality(dataset, scale)[rows]
    exact = needed(counts, truth, q)
    features = project_prompts(dataset, fit_token_projection(dataset, seed))
    listed = grids(own, dataset.grid)
    found: dict[tuple[int, ...], dict[str, Any]] = {}
    dealt: dict[tuple[int, ...], FloatArray] = {}
    for done, grid in enumerate(listed):
        if progress is not None:
            progress(done, len(listed))
        coarse = thinned(dataset, grid)
        seen = true_quality(coarse, scale)[rows]
        by_network = []
        for member in range(seed, seed + NETWORK_SEEDS):
            scores = network_scores(coarse, features, scale, member, options)[rows]
            known, true = critical_thetas(scores, seen, q), critical_thetas(scores, truth, q)
            by_network.append(over_deals(deals, scores, known, true, counts, q, alpha))
        dealt[grid] = np.array(by_network)  # [networks, deals, 2]
        at = needed(counts, seen, q)
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
        of_networks = dealt[grid].mean(axis=1)[:, 1]
        more = (dealt[grid] - dealt[own]).mean(axis=0)  # the same deals, so pair by pair
        found[grid]["at_our_promise"] = {
            **means_over_deals(dealt[grid].mean(axis=0)),
            "steps_of_networks": [float(of_networks.min()), float(of_networks.max())],
            "more_misses": mean_and_spread(more[:, 0]),
            "more_steps": mean_and_spread(more[:, 1]),
        }
    prompts = {split: len(dataset.rows(split)) for split in ("train", "calibration", "test")}
    return {
        "prompts": prompts,
        "networks": NETWORK_SEEDS,
        "deals": len(deals),
        "own": len(own),
        "grids": [found[grid] for grid in listed],
    }
