"""The planner file that belongs to a setting and schedule, and what it plans for the held-out prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from budgetfusion_nodes.core.curves import FloatArray
from budgetfusion_nodes.core.errors import BudgetFusionError
from budgetfusion_nodes.core.schedule import STOCK
from budgetfusion_nodes.core.setting import Setting, differences
from budgetfusion_nodes.predictor.planner import Planner
from budgetfusion_nodes.predictor.planner_file import load_any_planner
from research.statistics.allocation import IndexArray

from .settings import BenchSetting


@dataclass(frozen=True)
class Plans:
    """Of P prompts by one planner."""

    planner: Planner
    upper: FloatArray
    """[P, C] what is compared with the threshold, at each of `counts`."""
    counts: IndexArray
    """[C]"""
    seconds: float
    """Median time of one plan on one core."""
    steps: dict[tuple[float, float], IndexArray]
    """(quality, risk) -> [P]."""


def planners_in(folder: Path) -> Iterator[tuple[Path, Planner]]:
    """Every readable planner of curves, with its file."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            planner = load_any_planner(file)
        except BudgetFusionError:
            continue
        if isinstance(planner, Planner):
            yield file, planner


def find_planner(folder: Path, setting: Setting, schedule: str) -> tuple[Path, Planner] | None:
    """The one that was calibrated for exactly this setting and schedule."""
    wanted = replace(setting, schedule=schedule)
    for file, planner in planners_in(folder):
        if planner.setting.schedule == schedule and not differences(planner.setting, wanted):
            return file, planner
    return None


def planned_schedule(folder: Path, setting: BenchSetting) -> str | None:
    """The nested schedule of the first planner for this model's name, sampler, scheduler and cfg."""
    wanted = (setting.sampler_name, setting.scheduler, setting.cfg)
    for _, planner in planners_in(folder):
        own = planner.setting
        named = own.model_name == Path(setting.checkpoint).stem
        if named and (own.sampler_name, own.scheduler, own.cfg) == wanted and own.schedule != STOCK:
            return own.schedule
    return None


def make_plans(
    planner: Planner, tokens: NDArray[Any], pooled: NDArray[Any], requests: Sequence[tuple[float, float]]
) -> Plans:
    """tokens: [P, L, D]; pooled: [P, E]. Every request (quality, risk) through `Planner.plan`, as a node does it."""
    steps: dict[tuple[float, float], list[int]] = {request: [] for request in requests}
    upper: list[tuple[float, ...]] = []
    seconds: list[float] = []
    counts: tuple[int, ...] = ()
    for prompt, pool in zip(torch.from_numpy(tokens), torch.from_numpy(pooled), strict=True):
        for quality, risk in requests:
            started = time.process_time()
            plan = planner.plan(
                prompt, pool if len(pool) else None, quality=quality, risk=risk, max_steps=planner.target_steps
            )
            steps[quality, risk].append(plan.steps)
            seconds.append(time.process_time() - started)
            if plan.decision is not None and (quality, risk) == requests[0]:
                upper.append(plan.decision.upper)
                counts = plan.decision.counts
    found = {request: np.array(values) for request, values in steps.items()}
    return Plans(planner, np.array(upper), np.array(counts), float(np.median(seconds)), found)
