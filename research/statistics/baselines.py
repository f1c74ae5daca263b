"""Rules without a network: one curve for all prompts, by nearest prompts, by nearest prompt lengths.

Each gives scores [N, C] at every integer count, to be compared with a threshold as the planner's upper curves are.
"""

from __future__ import annotations

import numpy as np

from budgetfusion_nodes.core.curves import FloatArray, all_counts, interpolate_log_n, worst
from budgetfusion_nodes.predictor.dataset import SweepDataset

from .allocation import IndexArray

NEIGHBOURS = 20
UPPER = 0.9


def baseline_curves(dataset: SweepDataset, scale: tuple[float, ...], summaries: FloatArray) -> dict[str, FloatArray]:
    """Upper curves [N, C] without a network: one for all prompts, by nearest prompts, by nearest prompt lengths."""
    rows = dataset.rows("train")
    present = dataset.present[rows]
    measured = np.where(present[..., None], worst(np.nan_to_num(dataset.shortfall[rows]), scale), np.nan)
    lengths = np.array([[float(len(prompt.split()))] for prompt in dataset.prompts])
    spread = np.maximum(summaries[rows].std(axis=0), 1e-6)
    everyone = np.nanquantile(measured, UPPER, axis=(0, 1))[None].repeat(len(lengths), axis=0)
    on_grid = {
        "global": everyone,
        "nearest_prompts": _neighbour_curves(summaries / spread, rows, measured),
        "prompt_length": _neighbour_curves(lengths, rows, measured),
    }
    counts = all_counts(dataset.grid)
    return {key: interpolate_log_n(dataset.grid, curve, counts) for key, curve in on_grid.items()}


def _neighbour_curves(points: FloatArray, rows: IndexArray, measured: FloatArray) -> FloatArray:
    """Upper quantile over the nearest training prompts and their seeds, [N, K]; a prompt is not its own neighbour."""
    known = points[rows]
    gaps = (points**2).sum(1)[:, None] + (known**2).sum(1)[None] - 2.0 * points @ known.T
    gaps[rows, np.arange(len(rows))] = np.inf
    nearest = np.argsort(gaps, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(rows) - 1)]
    return np.nanquantile(measured[nearest], UPPER, axis=(1, 2))
