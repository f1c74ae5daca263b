"""What each choice is worth: the same test prompts, one choice changed at a time.

Every variant gives scores like the planner's and is put at the cost of our plans (misses, worst tenth), and under the
same risk control (steps that the promise costs). Variants that are trained have one network each; `reference` is ours
trained in the same way with several seeds, so their spread is what chance does. The density of the grid needs a sweep
of its own: see `grid_density`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from budgetfusion_nodes.core.curves import FloatArray, all_counts, interpolate_log_n
from budgetfusion_nodes.core.risk import controlled_theta, critical_thetas
from budgetfusion_nodes.predictor.dataset import select
from budgetfusion_nodes.predictor.features import ConditioningFeatures, collate
from budgetfusion_nodes.predictor.fit import FitOptions, fit_token_projection, project_prompts
from budgetfusion_nodes.predictor.network import QUANTILES, ensemble_quantiles
from research.statistics.allocation import IndexArray, outcome, per_prompt, planned_at_mean, planned_index
from research.statistics.bootstrap import worst_tenth
from research.statistics.variance import quality_by_metric

from .evidence import Evidence
from .rivals import BODIES, network_scores

REFERENCE_SEEDS = 3
PROMPT_COUNTS = (25, 50, 100, 200, 400, 800)
"""Of the learning curve, as far as there are so many; all there are come last."""

Job = tuple[str, str, Callable[[], FloatArray]]
"""(group, variant, scores [N, C] for every prompt)."""


def jobs(evidence: Evidence, seed: int, options: FitOptions) -> Iterator[Job]:
    """Every variant, cheap ones first. Nothing is computed before a job is called."""
    single = replace(options, networks=1)
    yield from _metric_jobs(evidence)
    yield from _level_jobs(evidence)
    if len(evidence.rows["train"]) < 20:
        return
    yield from _body_jobs(evidence, seed, single)
    yield from _feature_jobs(evidence, seed, single)
    yield from _prompt_jobs(evidence, seed, single)


def figures(evidence: Evidence, scores: FloatArray, q: float, alpha: float) -> dict[str, Any]:
    """JSON-safe."""
    held, rows = evidence.held, evidence.rows
    cost = float(held.counts[planned_index(evidence.upper[rows["test"]], evidence.threshold(alpha, q))].mean())
    alike = outcome(held, planned_at_mean(held.counts, scores[rows["test"]], cost), q)
    theta = controlled_theta(critical_thetas(scores[rows["calibration"]], held.calibration_quality, q), alpha)
    promised = per_prompt(held, planned_index(scores[rows["test"]], theta), q)
    return {
        "at_our_cost": {
            "mean_steps": cost,
            "missed": float(alike["violation_controlled"].mean()),
            "shortfall": float(alike["shortfall"].mean()),
            "worst_tenth": float(worst_tenth(alike["shortfall"])),
        },
        "at_our_promise": {
            "mean_steps": float(promised["steps"].mean()),
            "missed": float(promised["violation_controlled"].mean()),
        },
    }


def promise_by_metric(evidence: Evidence, q: float, alpha: float) -> dict[str, Any]:
    """If the promise were about one metric alone: what it would cost, and how often the whole one is missed then."""
    rows, metrics = evidence.rows, evidence.dataset.metrics
    curves = ensemble_quantiles(evidence.planner.networks, collate(evidence.features))[..., 2].double().numpy()
    by_metric = quality_by_metric(evidence.dataset, evidence.scale, rows["calibration"])
    found = {}
    for m, metric in enumerate(metrics):
        scores = _every_count(evidence, curves[..., m])
        theta = controlled_theta(critical_thetas(scores[rows["calibration"]], by_metric[metric], q), alpha)
        result = per_prompt(evidence.held, planned_index(scores[rows["test"]], theta), q)
        found[metric] = {
            "mean_steps": float(result["steps"].mean()),
            "whole_promise_missed": float(result["violation_controlled"].mean()),
        }
    return found


def _every_count(evidence: Evidence, on_grid: FloatArray) -> FloatArray:
    return interpolate_log_n(evidence.dataset.grid, on_grid, all_counts(evidence.dataset.grid))


def _metric_jobs(evidence: Evidence) -> Iterator[Job]:
    curves = ensemble_quantiles(evidence.planner.networks, collate(evidence.features))[..., 2].double().numpy()
    names = evidence.dataset.metrics

    def scores(chosen: list[int]) -> Callable[[], FloatArray]:
        return lambda: _every_count(evidence, curves[..., chosen].max(axis=-1))

    yield "metrics", "all", scores(list(range(len(names))))
    for m, name in enumerate(names):
        yield "metrics", f"{name} alone", scores([m])
    for m, name in enumerate(names):
        yield "metrics", f"without {name}", scores([i for i in range(len(names)) if i != m])


def _level_jobs(evidence: Evidence) -> Iterator[Job]:
    curves = ensemble_quantiles(evidence.planner.networks, collate(evidence.features)).double().numpy()
    for level, quantile in enumerate(QUANTILES):

        def scores(level: int = level) -> FloatArray:
            return _every_count(evidence, curves[..., level].max(axis=-1))

        yield "quantile level", f"{quantile:g}", scores


def _body_jobs(evidence: Evidence, seed: int, options: FitOptions) -> Iterator[Job]:
    for member in range(REFERENCE_SEEDS):
        yield "reference", f"seed {seed + member}", _trained(evidence, seed + member, options)
    for kind in BODIES[1:]:
        yield "LSTM direction", kind, _trained(evidence, seed, options, kind=kind)


def _trained(
    evidence: Evidence,
    seed: int,
    options: FitOptions,
    features: list[ConditioningFeatures] | None = None,
    kind: str = "bilstm",
) -> Callable[[], FloatArray]:
    given = evidence.features if features is None else features
    return lambda: network_scores(evidence.dataset, given, evidence.scale, seed, options, kind)


def _feature_jobs(evidence: Evidence, seed: int, options: FitOptions) -> Iterator[Job]:
    known = evidence.features
    order = np.random.default_rng(seed).permutation(len(known))
    variants = {
        "tokens alone": [replace(f, pooled=torch.zeros_like(f.pooled), has_pooled=False) for f in known],
        "pooled alone": [replace(f, tokens=torch.zeros_like(f.tokens[:1])) for f in known],
        "number of tokens alone": [
            ConditioningFeatures(torch.zeros_like(f.tokens[:1]), _length(text, f), True)
            for f, text in zip(known, evidence.dataset.prompts, strict=True)
        ],
        "of another prompt": [known[i] for i in order],
    }
    for name, features in variants.items():
        yield "conditioning", name, _trained(evidence, seed, options, features)


def _length(text: str, features: ConditioningFeatures) -> torch.Tensor:
    """Words of the prompt in the first of the pooled numbers, to about unit size."""
    pooled = torch.zeros(max(1, features.pooled.shape[0]))
    pooled[0] = (len(text.split()) - 12.0) / 8.0
    return pooled


def _prompt_jobs(evidence: Evidence, seed: int, options: FitOptions) -> Iterator[Job]:
    train = evidence.rows["train"]
    order = np.random.default_rng(seed).permutation(train)
    for count in (*(n for n in PROMPT_COUNTS if n < len(train)), len(train)):

        def scores(count: int = count) -> FloatArray:
            return _with_fewer_prompts(evidence, order[:count], seed, options)

        yield "training prompts", f"{count}", scores


def _with_fewer_prompts(evidence: Evidence, kept: IndexArray, seed: int, options: FitOptions) -> FloatArray:
    """Projection and network see these training prompts alone. Scores for every prompt of the data set."""
    dataset = evidence.dataset
    rows = np.concatenate([np.sort(kept), evidence.rows["calibration"], evidence.rows["test"]])
    smaller = select(dataset, rows)
    features = project_prompts(smaller, fit_token_projection(smaller, seed))
    scores = np.full(evidence.upper.shape, np.nan)
    scores[rows] = network_scores(smaller, features, evidence.scale, seed, options)
    return scores
