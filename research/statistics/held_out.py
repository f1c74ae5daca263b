"""Held-out figures: what a planner does on test prompts, beside baselines and limits. Words: see allocation.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from budgetfusion_nodes.core.curves import FloatArray, all_counts
from budgetfusion_nodes.core.plan import DEFAULT_QUALITY, DEFAULT_RISK
from budgetfusion_nodes.core.risk import controlled_theta, critical_thetas
from budgetfusion_nodes.predictor.dataset import SweepDataset, true_shortfall

from .allocation import HeldOut, IndexArray, best_fixed, outcome, per_prompt, permuted, planned_index, uniform
from .baselines import baseline_curves
from .bootstrap import bootstrap, worst_tenth
from .oracles import needed_steps, oracle_b, oracle_b_at_violation, oracle_c
from .variance import variance_share

REPORT_QUALITIES = (0.80, 0.90, 0.95)
COMMON_STEPS = (30, 20)


def held_out_report(
    dataset: SweepDataset,
    scale: tuple[float, ...],
    upper: FloatArray,
    median: FloatArray,
    summaries: Tensor,
    seed: int,
    risk: float = DEFAULT_RISK,
) -> dict[str, Any]:
    """upper, median: [N, C] predicted u and median quality of every prompt; summaries: [N, F]. JSON-safe."""
    truth = true_shortfall(dataset, scale)
    rows = {split: dataset.rows(split) for split in ("train", "calibration", "test")}
    held = HeldOut(np.asarray(all_counts(dataset.grid)), truth[rows["test"]], truth[rows["calibration"]])
    methods = {"planner": upper, **baseline_curves(dataset, scale, summaries.double().numpy())}
    by_quality = {}
    for q in REPORT_QUALITIES:
        split_curves = {key: (curve[rows["calibration"]], curve[rows["test"]]) for key, curve in methods.items()}
        by_quality[f"{q:.2f}"] = _quality_figures(held, split_curves, median[rows["test"]], q, risk, seed)
    default = by_quality[f"{DEFAULT_QUALITY:.2f}"]
    return {
        "prompts": {split: len(index) for split, index in rows.items()},
        "seeds": {split: int(dataset.present[index].sum()) for split, index in rows.items()},
        "risk": risk,
        "scale": dict(zip(dataset.metrics, scale, strict=True)),
        "by_quality": by_quality,
        "calibration_fit": _prediction_figures(held.test, upper[rows["test"]], median[rows["test"]], dataset),
        "summary": {"quality": DEFAULT_QUALITY, "risk": risk, **_summary(default)},
    }


def _summary(figures: Mapping[str, Any]) -> dict[str, Any]:
    planner = figures["methods"]["planner"]
    return {
        "mean_steps": planner["mean_steps"]["value"],
        "violation": planner["violation"]["value"],
        "mean_quality": planner["mean_quality"]["value"],
        "saved_steps_pct": figures["saved_pct"]["target"],
        "oracle_b_mean_steps": figures["oracle_b"]["mean_steps"],
        "variance_share_prompt": figures["variance_share_prompt"],
    }


def _quality_figures(
    held: HeldOut,
    curves: Mapping[str, tuple[FloatArray, FloatArray]],
    median: FloatArray,
    q: float,
    risk: float,
    seed: int,
) -> dict[str, Any]:
    methods: dict[str, Any] = {}
    chosen: dict[str, IndexArray] = {}
    for key, (calibration, test) in curves.items():
        theta = controlled_theta(critical_thetas(calibration, held.calibration_quality, q), risk)
        chosen[key] = planned_index(test, theta)
        methods[key] = {"theta": float(min(theta, 1e6)), **_figures(per_prompt(held, chosen[key], q), seed)}
    ours = chosen["planner"]
    result = per_prompt(held, ours, q)
    methods["planner"]["mean_quality_predicted"] = float(np.take_along_axis(median, ours[:, None], 1).mean())
    mean_steps = float(result["steps"].mean())
    return {
        "methods": methods,
        "uniform": _mixture_figures(result, outcome(held, uniform(held, mean_steps), q), seed),
        "permuted": _mixture_figures(result, outcome(held, permuted(held, ours), q), seed),
        "best_fixed_at_same_violation": best_fixed(held, q, float(result["violation"].mean())),
        **_oracles(held, result, q),
        "saved_pct": _saved(mean_steps, held.counts),
        "variance_share_prompt": variance_share(np.log(needed_steps(held, q))),
        "correlation_with_oracle_b": _correlation(result["steps"], held.counts[oracle_b(held, q)]),
    }


def _figures(result: Mapping[str, FloatArray], seed: int) -> dict[str, Any]:
    """Means with 95 % bootstrap intervals over prompts, and the worst tenth of the prompts."""
    named = {"mean_steps": result["steps"], "mean_shortfall": result["shortfall"]}
    named |= {key: result[key] for key in ("violation", "violation_controlled", "mean_quality")}
    figures: dict[str, Any] = {key: bootstrap(values, seed) for key, values in named.items()}
    return figures | {"worst_tenth": float(worst_tenth(result["shortfall"]))}


def _mixture_figures(
    ours: Mapping[str, FloatArray], other: Mapping[str, FloatArray], seed: int
) -> dict[str, dict[str, float]]:
    """Expected figures of a random allocation of equal mean steps, and the paired difference planner - it."""
    keys = ("violation", "mean_quality", "shortfall")
    return {
        **{key: bootstrap(other[key], seed) for key in keys},
        **{f"{key}_difference": bootstrap(ours[key] - other[key], seed) for key in keys},
    }


def _oracles(held: HeldOut, ours: Mapping[str, FloatArray], q: float) -> dict[str, Any]:
    b = per_prompt(held, oracle_b(held, q), q)
    matched = oracle_b_at_violation(held, q, float(ours["violation_controlled"].mean()))
    c = outcome(held, oracle_c(held, float(ours["steps"].mean())), q)
    alike = outcome(held, uniform(held, float(ours["steps"].mean())), q)
    gap = float(alike["shortfall"].mean() - c["shortfall"].mean())
    gained = float(alike["shortfall"].mean() - ours["shortfall"].mean())
    return {
        "oracle_a": {"mean_steps": float(np.nanmean(needed_steps(held, q), axis=1).mean())},
        "oracle_b": {"mean_steps": float(b["steps"].mean()), "violation": float(b["violation"].mean())},
        "oracle_b_at_same_violation": {"mean_steps": float(matched["steps"].mean())},
        "oracle_c": {"mean_steps": float(c["steps"].mean()), "shortfall": float(c["shortfall"].mean())},
        "gap_closed_uniform_to_oracle_c": gained / gap if gap > 1e-12 else None,
    }


def _saved(mean_steps: float, counts: IndexArray) -> dict[str, float]:
    """Percent of steps saved against T and against the counts artists commonly set."""
    bases = {"target": int(counts[-1]), **{str(n): n for n in COMMON_STEPS}}
    return {key: float(100.0 * (1.0 - mean_steps / base)) for key, base in bases.items()}


def _correlation(a: NDArray[Any], b: NDArray[Any]) -> float | None:
    """Spearman rank correlation; None where one side is constant."""
    from scipy.stats import spearmanr

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.asarray(spearmanr(a, b))[0])


def _prediction_figures(truth: FloatArray, upper: FloatArray, median: FloatArray, dataset: SweepDataset) -> Any:
    """How well curves are predicted on the grid: share of truth under the upper curve (0.9 would be exact), mean
    absolute error of the median quality."""
    columns = np.asarray(dataset.grid) - dataset.grid[0]
    columns = columns[:-1]  # at T everything is exact
    under = np.where(np.isnan(truth), np.nan, truth <= upper[:, None])[..., columns]
    error = np.abs(np.clip(1.0 - truth, 0.0, 1.0) - median[:, None])[..., columns]
    return {
        "share_under_upper": np.nanmean(under, axis=(0, 1)).tolist(),
        "mean_absolute_error": np.nanmean(error, axis=(0, 1)).tolist(),
    }
