"""What a planner of one model does on another: as it is, with thresholds from a few prompts, and against what the model
itself gives: its own planner, and its mean curve from a few prompts. The paper never checked another architecture.

Everything is measured on the target's test prompts, in the quality of its own planner (its own scale). A few-shot rule
sees nothing but its few calibration prompts: scale, curve and threshold come from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from budgetfusion_nodes.core.curves import FloatArray, all_counts
from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.plan import threshold_at
from budgetfusion_nodes.core.risk import capped_theta, critical_thetas
from budgetfusion_nodes.predictor.dataset import SweepDataset, select, true_quality, true_shortfall
from budgetfusion_nodes.predictor.fit import fit_scale, project_prompts, upper_curves
from budgetfusion_nodes.predictor.planner import Planner

from .allocation import HeldOut, IndexArray, per_prompt, planned_index
from .bootstrap import LEVELS, bootstrap

FIGURES = ("steps", "violation", "violation_controlled")
SHOTS = (16, 64)
SPLITS = 200
"""Random draws of the few prompts."""


@dataclass(frozen=True)
class Side:
    """A model: its measured pictures, and the planner that belongs to it."""

    dataset: SweepDataset
    planner: Planner

    @property
    def held(self) -> HeldOut:
        """Test prompts by the planner's own scale."""
        return _held(self.dataset, self.planner.scale)


def _held(dataset: SweepDataset, scale: tuple[float, ...]) -> HeldOut:
    truth = true_shortfall(dataset, scale)
    counts = np.asarray(all_counts(dataset.grid))
    return HeldOut(counts, truth[dataset.rows("test")])


def transfer(
    target: Side,
    other: Side,
    q: float,
    alpha: float,
    seed: int,
    shots: Sequence[int] = SHOTS,
    splits: int = SPLITS,
) -> dict[str, Any]:
    """JSON-safe figures of each rule on the target's test prompts: mean steps and violations.

    "own" and "other" with 95 % bootstrap intervals over the test prompts; the few-shot rules with the central 95 % of
    `splits` random draws of their prompts, and the share of draws that violate more than `alpha`. InputError where the
    two do not count the same steps or measure with other backends.
    """
    _check_comparable(target, other)
    test = target.dataset.rows("test")
    foreign = _upper(other.planner, target.dataset)
    held = target.held
    rules: dict[str, Any] = {
        "own": _planned(target.planner, _upper(target.planner, target.dataset)[test], held, q, alpha, seed),
        "other": _planned(other.planner, foreign[test], held, q, alpha, seed),
    }
    on_its_scale = _planned(other.planner, foreign[test], _held(target.dataset, other.planner.scale), q, alpha, seed)
    everyone = len(target.dataset.rows("calibration"))
    for count in (*(m for m in shots if m < everyone), everyone):
        draws = _draws(target.dataset, count, splits if count < everyone else 1, seed)
        rules[f"other_recalibrated_{count}"] = _few_shot(target, held, draws, lambda _: foreign, q, alpha)
        rules[f"mean_curve_{count}"] = _few_shot(target, held, draws, _mean_curve(target.dataset), q, alpha)
    distances = [
        other.planner.out_of_distribution.score(f) for f in project_prompts(target.dataset, other.planner.projection)
    ]
    return {
        "target": target.planner.setting.describe(),
        "other": other.planner.setting.describe(),
        "quality": q,
        "risk": alpha,
        "splits": splits,
        "prompts": {"calibration": everyone, "test": len(test)},
        "rules": rules,
        "other_on_its_own_scale": on_its_scale,
        "scale": {"target": list(target.planner.scale), "other": list(other.planner.scale)},
        "out_of_distribution": float(np.mean(np.asarray(distances)[test] > 1.0)),
    }


def _check_comparable(target: Side, other: Side) -> None:
    for side in (target, other):
        if all_counts(side.planner.grid) != all_counts(side.dataset.grid):
            raise InputError(f"transfer: {side.planner.name} has other step counts than the pictures.")
    if all_counts(target.planner.grid) != all_counts(other.planner.grid):
        raise InputError(
            f"transfer: the planners count {target.planner.grid[0]} to {target.planner.grid[-1]} and "
            f"{other.planner.grid[0]} to {other.planner.grid[-1]} steps. Both must be calibrated over the same counts."
        )
    if dict(target.planner.backends) != dict(other.planner.backends):
        raise InputError("transfer: the planners were made with different backends, so their qualities do not compare.")


def _upper(planner: Planner, dataset: SweepDataset) -> FloatArray:
    """[N, C] what the planner compares with its threshold, from the data set's own conditioning."""
    return upper_curves(planner, project_prompts(dataset, planner.projection))


def _planned(
    planner: Planner, upper: FloatArray, held: HeldOut, q: float, alpha: float, seed: int
) -> dict[str, dict[str, float]]:
    """A finished planner with its own thresholds."""
    theta = threshold_at(planner.risk_table.thresholds(alpha), q)
    result = per_prompt(held, planned_index(upper, theta), q)
    return {name: bootstrap(result[name], seed) for name in FIGURES}


# ---------------------------------------------------------------------------------------------------------- few shots

Scores = Callable[[IndexArray], FloatArray]
"""Rows of the few prompts -> scores [N, C] of every prompt of the data set."""


def _draws(dataset: SweepDataset, count: int, times: int, seed: int) -> list[IndexArray]:
    rng = np.random.default_rng([seed, count])
    return [np.sort(rng.choice(dataset.rows("calibration"), count, replace=False)) for _ in range(times)]


def _mean_curve(dataset: SweepDataset) -> Scores:
    """One curve for all prompts: the mean shortfall of the few, over their own scale."""

    def scores(rows: IndexArray) -> FloatArray:
        part = select(dataset, rows)
        mean = np.nanmean(true_shortfall(part, fit_scale(part)), axis=(0, 1))
        return np.broadcast_to(mean, (len(dataset.prompts), len(mean)))

    return scores


def _few_shot(
    target: Side, held: HeldOut, draws: Sequence[IndexArray], scores: Scores, q: float, alpha: float
) -> dict[str, Any]:
    """Over random draws: the threshold from the few prompts, the figures from the test prompts."""
    test = target.dataset.rows("test")
    found = []
    for rows in draws:
        part, upper = select(target.dataset, rows), scores(rows)
        theta = capped_theta(critical_thetas(upper[rows], true_quality(part, fit_scale(part)), q), q, alpha)
        result = per_prompt(held, planned_index(upper[test], theta), q)
        found.append([float(result[name].mean()) for name in FIGURES])
    values = np.array(found)  # [draws, figures]
    figures: dict[str, Any] = {}
    for name, column in zip(FIGURES, values.T, strict=True):
        low, high = np.quantile(column, LEVELS)
        figures[name] = {"value": float(column.mean()), "low": float(low), "high": float(high)}
    figures["splits_above_risk"] = float((values[:, FIGURES.index("violation_controlled")] > alpha).mean())
    return figures
