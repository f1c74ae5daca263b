"""A planner, fitted and judged at once on the test prompts of its own data."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from budgetfusion_nodes.predictor.dataset import SweepDataset
from budgetfusion_nodes.predictor.fit import (
    FitOptions,
    fit_planner,
    median_curves,
    project_prompts,
    summaries,
    upper_curves,
)
from budgetfusion_nodes.predictor.planner import Planner

from .held_out import held_out_report


def fit_and_report(
    dataset: SweepDataset, seed: int, *, name: str = "planner", options: FitOptions | None = None
) -> tuple[Planner, dict[str, Any]]:
    """The planner with its held-out figures in the provenance, and a JSON-safe report (keys: see held_out.py)."""
    started = time.perf_counter()
    planner = fit_planner(dataset, seed, name=name, options=options)
    features = project_prompts(dataset, planner.projection)
    report = held_out_report(
        dataset,
        planner.scale,
        upper_curves(planner, features),
        median_curves(planner, features),
        summaries(features),
        seed,
    )
    report["fit"] = {"seconds": round(time.perf_counter() - started, 1), **planner.provenance["fit"]}
    return replace(planner, provenance={**planner.provenance, "held_out": report["summary"]}), report
