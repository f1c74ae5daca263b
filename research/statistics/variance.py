"""Is there anything to predict? Variance of log t*(q) by source, and what else could stand behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from budgetfusion_nodes.core.curves import FloatArray, all_counts, interpolate_log_n, normalised
from budgetfusion_nodes.predictor.dataset import SweepDataset, true_quality

from .oracles import needed

OVERALL = "all metrics"
ROUNDING = 1e-12
"""A variance of logarithms below this is none."""


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
    return float((between - within) / spread) if spread > ROUNDING else None


def crossed_shares(values: FloatArray) -> dict[str, float] | None:
    """Shares of prompt, seed and rest, by a two-way random-effects analysis of variance without repeats (Searle,
    Casella & McCulloch 1992, section 4.3). values: [N, S] without gaps, column s from the same noise for all prompts.
    Negative estimates count as 0."""
    prompts, seeds = values.shape
    if prompts < 2 or seeds < 2:
        return None
    grand, by_prompt, by_seed = values.mean(), values.mean(axis=1), values.mean(axis=0)
    residual = values - by_prompt[:, None] - by_seed[None] + grand
    rest = float((residual**2).sum() / ((prompts - 1) * (seeds - 1)))
    prompt = (seeds * float(((by_prompt - grand) ** 2).sum()) / (prompts - 1) - rest) / seeds
    seed = (prompts * float(((by_seed - grand) ** 2).sum()) / (seeds - 1) - rest) / prompts
    parts = {"prompt": max(prompt, 0.0), "seed": max(seed, 0.0), "rest": rest}
    total = sum(parts.values())
    return {key: part / total for key, part in parts.items()} if total > ROUNDING else None


def is_crossed(seeds: FloatArray | Any) -> bool:
    """Whether every prompt was rendered from the same noise seeds in the same order, none missing. seeds: [N, S]."""
    return len(seeds) > 1 and bool((seeds >= 0).all() and (seeds == seeds[:1]).all())


def variance_report(
    dataset: SweepDataset, scale: tuple[float, ...], qualities: Sequence[float], rows: Any
) -> dict[str, Any]:
    """For each quality and metric: shares of the variance of log t*(q), and where t* lies. JSON-safe."""
    seeds, present = dataset.seeds[rows], dataset.present[rows]
    crossed = is_crossed(seeds)
    curves = quality_by_metric(dataset, scale, rows)
    counts = np.asarray(all_counts(dataset.grid))
    figures: dict[str, Any] = {}
    for q in qualities:
        figures[f"{q:.2f}"] = {
            name: _figures(needed(counts, curve, q), counts, crossed) for name, curve in curves.items()
        }
    return {
        "prompts": len(rows),
        "seeds": int(present.sum(axis=1).max()) if len(rows) else 0,
        "same_noise_for_all_prompts": crossed,
        "by_quality": figures,
        "checks": measurement_checks(dataset, scale, qualities, rows),
    }


def telling(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a benchmark's reports the one to quote: of crossed seeds, if they were rendered in the sweep's precision."""
    sweep = part["sweep"]
    crossed = part.get("crossed", sweep)
    return crossed if crossed.get("dtype") == sweep.get("dtype") else sweep


def quality_by_metric(dataset: SweepDataset, scale: tuple[float, ...], rows: Any) -> dict[str, FloatArray]:
    """OVERALL and each metric alone -> quality at every integer count, [N, S, C]."""
    curves = {OVERALL: true_quality(dataset, scale)[rows]}
    shortfall = normalised(np.nan_to_num(dataset.shortfall[rows]), scale)
    absent = ~dataset.present[rows][..., None]
    for m, metric in enumerate(dataset.metrics):
        each = interpolate_log_n(dataset.grid, shortfall[..., m], all_counts(dataset.grid))
        curves[metric] = np.where(absent, np.nan, np.clip(1.0 - each, 0.0, 1.0))
    return curves


def _figures(steps: FloatArray, counts: Any, crossed: bool) -> dict[str, Any]:
    known = steps[~np.isnan(steps)]
    shares = crossed_shares(np.log(steps)) if crossed else None
    one_way = variance_share(np.log(steps))
    return {
        "prompt": shares["prompt"] if shares else one_way,
        "seed": shares["seed"] if shares else None,
        "rest": shares["rest"] if shares else None,
        "seed_and_rest": (None if one_way is None else 1.0 - one_way) if shares is None else 1.0 - shares["prompt"],
        "median": float(np.median(known)),
        "tenth": float(np.quantile(known, 0.1)),
        "nine_tenths": float(np.quantile(known, 0.9)),
        "at_the_smallest_count": float((known == counts[0]).mean()),
        "at_the_target": float((known == counts[-1]).mean()),
    }


def measurement_checks(
    dataset: SweepDataset, scale: tuple[float, ...], qualities: Sequence[float], rows: Any
) -> dict[str, Mapping[str, float]]:
    """What a seed's share could be made of. For each metric: `last_step` is the median distance that is still there at
    the last count before the target, over the strictest tolerance (near 1 or above, t* is a matter of luck);
    `saturated` is the share of trajectories whose crudest render lies beyond the scale; `rises` is the share of steps
    along the grid at which the distance rises by more than a tenth of that tolerance; `sets_the_budget` is the share of
    counts at which this metric is the worst."""
    shortfall = normalised(dataset.shortfall[rows][dataset.present[rows]], scale)  # [R, K, M]
    tolerance = 1.0 - max(qualities)
    found = {}
    for m, metric in enumerate(dataset.metrics):
        curve = shortfall[..., m]
        found[metric] = {
            "last_step": float(np.median(curve[:, -2]) / tolerance),
            "saturated": float((curve[:, 0] > 1.0).mean()),
            "rises": float((np.diff(curve, axis=1) > 0.1 * tolerance).mean()),
            "sets_the_budget": float((shortfall.argmax(axis=-1)[:, :-1] == m).mean()),
        }
    return found
