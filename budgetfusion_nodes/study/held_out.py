"""Held-out figures: what a planner does on test prompts, beside baselines and limits.

Curves at counts between the rendered ones are interpolated in log n. An allocation gives each test prompt one count,
before its seeds are known. `violation` is the share of renders with Q(steps) < q; `violation_controlled` counts the
tolerance rule (Q < q there or at a later count), which is what risk control bounds. Shortfall is max_m e_m / s_m, so
1 - shortfall is quality.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..core.curves import FloatArray, all_counts, interpolate_log_n, tail_max, tail_min, worst
from ..core.plan import DEFAULT_QUALITY, DEFAULT_RISK
from ..core.risk import controlled_theta, critical_thetas
from .dataset import SweepDataset, true_shortfall

IndexArray = NDArray[np.int64]

REPORT_QUALITIES = (0.80, 0.90, 0.95)
BOOTSTRAPS = 1000
NEIGHBOURS = 20
UPPER = 0.9
COMMON_STEPS = (30, 20)


@dataclass(frozen=True)
class HeldOut:
    """Truth of the test and calibration prompts at every integer count C."""

    counts: IndexArray
    """[C]"""
    test: FloatArray
    """[N, S, C] measured max_m e_m / s_m; NaN for absent seeds."""
    calibration: FloatArray
    """[N', S, C]"""

    @property
    def test_quality(self) -> FloatArray:
        return np.clip(1.0 - self.test, 0.0, 1.0)

    @property
    def calibration_quality(self) -> FloatArray:
        return np.clip(1.0 - self.calibration, 0.0, 1.0)


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
    outcome = per_prompt(held, ours, q)
    methods["planner"]["mean_quality_predicted"] = float(np.take_along_axis(median, ours[:, None], 1).mean())
    mean_steps = float(outcome["steps"].mean())
    return {
        "methods": methods,
        "uniform": _mixture_figures(outcome, uniform_outcome(held, mean_steps, q), seed),
        "permuted": _mixture_figures(outcome, permuted_outcome(held, ours, q), seed),
        "best_fixed_at_same_violation": best_fixed(held, q, float(outcome["violation"].mean())),
        **_oracles(held, outcome, q),
        "saved_pct": _saved(mean_steps, held.counts),
        "variance_share_prompt": variance_share(np.log(needed_steps(held, q))),
        "correlation_with_oracle_b": _correlation(outcome["steps"], held.counts[oracle_b(held, q)]),
    }


def planned_index(upper: FloatArray, theta: float) -> IndexArray:
    """Index of the planned count for each row: least n with u(n') <= theta for all n' >= n. [N, C] -> [N]."""
    enough = tail_max(upper) <= theta
    return np.where(enough.any(axis=1), enough.argmax(axis=1), upper.shape[1] - 1)


def per_prompt(held: HeldOut, index: IndexArray, q: float) -> dict[str, FloatArray]:
    """What an allocation does to each prompt, averaged over its seeds. index: [N] into counts. Values: [N]."""
    at = _at(held.test, index)  # [N, S]
    later = _at(tail_min(held.test_quality), index)
    return {
        "steps": held.counts[index].astype(np.float64),
        "violation": _seed_mean(1.0 - at < q, at),
        "violation_controlled": _seed_mean(later < q, at),
        "mean_quality": _seed_mean(np.clip(1.0 - at, 0.0, 1.0), at),
        "shortfall": _seed_mean(at, at),
    }


def _at(curves: FloatArray, index: IndexArray) -> FloatArray:
    return np.take_along_axis(curves, np.broadcast_to(index[:, None, None], (*curves.shape[:2], 1)), -1)[..., 0]


def _seed_mean(values: NDArray[Any], reference: FloatArray) -> FloatArray:
    return np.nanmean(np.where(np.isnan(reference), np.nan, values), axis=1)


def _figures(outcome: Mapping[str, FloatArray], seed: int) -> dict[str, Any]:
    """Means with 95 % bootstrap intervals over prompts, and the worst tenth of the prompts."""
    tail = np.sort(outcome["shortfall"])[-max(1, len(outcome["shortfall"]) // 10) :]
    named = {"mean_steps": outcome["steps"], "mean_shortfall": outcome["shortfall"]}
    named |= {key: outcome[key] for key in ("violation", "violation_controlled", "mean_quality")}
    return {key: bootstrap(values, seed) for key, values in named.items()} | {"worst_tenth": float(tail.mean())}


def bootstrap(values: FloatArray, seed: int) -> dict[str, float]:
    """Mean over prompts with its 95 % percentile interval."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (BOOTSTRAPS, len(values)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def _mixture_figures(
    ours: Mapping[str, FloatArray], other: Mapping[str, FloatArray], seed: int
) -> dict[str, dict[str, float]]:
    """Expected figures of a random allocation of equal mean steps, and the paired difference planner - it."""
    keys = ("violation", "mean_quality", "shortfall")
    return {
        **{key: bootstrap(other[key], seed) for key in keys},
        **{f"{key}_difference": bootstrap(ours[key] - other[key], seed) for key in keys},
    }


def uniform_outcome(held: HeldOut, mean_steps: float, q: float) -> dict[str, FloatArray]:
    """UNIFORM: each prompt draws one of two neighbouring counts so that the mean is exact; the expectation."""
    low = int(np.clip(np.searchsorted(held.counts, mean_steps, side="right") - 1, 0, len(held.counts) - 2))
    share = mean_steps - held.counts[low]
    prompts = np.zeros(len(held.test), np.int64)
    before, after = per_prompt(held, prompts + low, q), per_prompt(held, prompts + low + 1, q)
    return {key: (1.0 - share) * before[key] + share * after[key] for key in before}


def permuted_outcome(held: HeldOut, index: IndexArray, q: float) -> dict[str, FloatArray]:
    """PERMUTED: the planner's own step histogram dealt to random prompts; the expectation."""
    used, times = np.unique(index, return_counts=True)
    prompts = np.zeros(len(held.test), np.int64)
    parts = [(per_prompt(held, prompts + int(i), q), n / len(index)) for i, n in zip(used, times, strict=True)]
    return {key: np.sum([share * part[key] for part, share in parts], axis=0) for key in parts[0][0]}


def best_fixed(held: HeldOut, q: float, violation: float) -> int:
    """The smallest count for all prompts that violates no more than `violation`."""
    prompts = np.zeros(len(held.test), np.int64)
    for i, count in enumerate(held.counts):
        if per_prompt(held, prompts + i, q)["violation"].mean() <= violation + 1e-12:
            return int(count)
    return int(held.counts[-1])


def needed_steps(held: HeldOut, q: float) -> FloatArray:
    """t*(q) of each prompt and seed, [N, S]; NaN for absent seeds. This is oracle A."""
    tail = tail_min(held.test_quality)
    return np.where(np.isnan(tail[..., -1]), np.nan, held.counts[(tail >= q).argmax(axis=-1)])


def oracle_b(held: HeldOut, q: float) -> IndexArray:
    """Index of t*(q) of each prompt's seed-averaged quality: the ceiling of what a prompt can tell. [N]."""
    return (tail_min(np.nanmean(held.test_quality, axis=1)) >= q).argmax(axis=1)


def _oracles(held: HeldOut, ours: Mapping[str, FloatArray], q: float) -> dict[str, Any]:
    b = per_prompt(held, oracle_b(held, q), q)
    matched = oracle_b_at_violation(held, q, float(ours["violation_controlled"].mean()))
    c = per_prompt(held, oracle_c(held, float(ours["steps"].mean())), q)
    uniform = uniform_outcome(held, float(ours["steps"].mean()), q)
    gap = float(uniform["shortfall"].mean() - c["shortfall"].mean())
    gained = float(uniform["shortfall"].mean() - ours["shortfall"].mean())
    return {
        "oracle_a": {"mean_steps": float(np.nanmean(needed_steps(held, q), axis=1).mean())},
        "oracle_b": {"mean_steps": float(b["steps"].mean()), "violation": float(b["violation"].mean())},
        "oracle_b_at_same_violation": {"mean_steps": float(matched["steps"].mean())},
        "oracle_c": {"mean_steps": float(c["steps"].mean()), "shortfall": float(c["shortfall"].mean())},
        "gap_closed_uniform_to_oracle_c": gained / gap if gap > 1e-12 else None,
    }


def oracle_b_at_violation(held: HeldOut, q: float, violation: float) -> dict[str, FloatArray]:
    """Fewest mean steps of any allocation by prompt whose controlled violation is at most `violation` (by Lagrange
    multiplier; it sees the seeds it is judged on, so it is optimistic)."""
    tail = tail_min(held.test_quality)
    loss = np.nanmean(np.where(np.isnan(tail), np.nan, tail < q), axis=1)  # [N, C]

    def choose(price: float) -> IndexArray:
        return (held.counts + price * loss).argmin(axis=1)

    return per_prompt(held, _bisect(choose, lambda i: _mean_at(loss, i) <= violation + 1e-12), q)


def oracle_c(held: HeldOut, mean_steps: float) -> IndexArray:
    """The allocation by prompt with the least mean shortfall whose mean steps do not exceed `mean_steps`."""
    shortfall = np.nanmean(held.test, axis=1)  # [N, C]

    def choose(price: float) -> IndexArray:
        return (price * held.counts + shortfall).argmin(axis=1)

    return _bisect(choose, lambda index: bool(held.counts[index].mean() <= mean_steps + 1e-9))


def _bisect(
    choose: Callable[[float], IndexArray], good: Callable[[IndexArray], bool], low: float = 1e-9, high: float = 1e9
) -> IndexArray:
    """The allocation of the smallest multiplier, on a log scale, that is good; good at `high`."""
    best = choose(high)
    for _ in range(60):
        middle = float(np.sqrt(low * high))
        found = choose(middle)
        if good(found):
            best, high = found, middle
        else:
            low = middle
    return best


def _mean_at(values: FloatArray, index: IndexArray) -> float:
    return float(np.take_along_axis(values, index[:, None], 1).mean())


def _saved(mean_steps: float, counts: IndexArray) -> dict[str, float]:
    """Percent of steps saved against T and against the counts artists commonly set."""
    bases = {"target": int(counts[-1]), **{str(n): n for n in COMMON_STEPS}}
    return {key: float(100.0 * (1.0 - mean_steps / base)) for key, base in bases.items()}


def variance_share(values: FloatArray) -> float | None:
    """Share of the variance that the prompt explains: the intraclass correlation of a one-way random-effects analysis
    of variance (Fisher 1925; Donner 1986 for unequal group sizes). values: [N, S], NaN where absent."""
    groups = [row[~np.isnan(row)] for row in values]
    groups = [group for group in groups if len(group) >= 2]
    if len(groups) < 2:
        return None
    sizes = np.array([len(group) for group in groups], dtype=np.float64)
    means = np.array([group.mean() for group in groups])
    total, grand = sizes.sum(), float((sizes * means).sum() / sizes.sum())
    between = float((sizes * (means - grand) ** 2).sum() / (len(groups) - 1))
    within = float(sum(((g - g.mean()) ** 2).sum() for g in groups) / (total - len(groups)))
    typical = (total - (sizes**2).sum() / total) / (len(groups) - 1)
    spread = between + (typical - 1.0) * within
    return float((between - within) / spread) if spread > 0 else None


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
