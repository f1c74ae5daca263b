"""The planner beside its rivals and limits: at equal mean cost, and at equal promised risk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from budgetfusion_nodes.core.curves import FloatArray
from budgetfusion_nodes.core.risk import controlled_theta, critical_thetas
from budgetfusion_nodes.predictor.fit import FitOptions
from research.statistics.allocation import (
    HeldOut,
    Mixture,
    best_fixed,
    expected,
    outcome,
    per_prompt,
    permuted,
    planned,
    planned_at_mean,
    planned_index,
    uniform,
    uniform_at_violation,
)
from research.statistics.baselines import baseline_curves
from research.statistics.bootstrap import (
    LEVELS,
    bootstrap,
    draws,
    interval,
    mean,
    mean_difference,
    ratio_of_means,
    worst_tenth,
    worst_tenth_ratio,
)
from research.statistics.oracles import (
    needed_steps,
    oracle_a_at_mean,
    oracle_b_at_mean,
    oracle_b_at_violation,
    oracle_b_fewest_violations,
    oracle_c,
)

from .evidence import Evidence
from .rivals import knee_index, network_scores, plateau_scores, step_classifier_scores

OURS = "ours"
Scores = Mapping[str, FloatArray]
"""Name -> [N, C] for every prompt of the data set; a rule takes the least n whose score stays below a threshold."""


def rival_scores(evidence: Evidence, seed: int, options: FitOptions) -> dict[str, FloatArray]:
    """Every rule to compare with that serves all qualities, ours first. Those that learn do so from the training split
    of the same data."""
    dataset, scale, features = evidence.dataset, evidence.scale, evidence.features
    free = baseline_curves(dataset, scale, evidence.summaries)
    return {
        OURS: evidence.upper,
        "mean curve": free["global"],
        "prompt length": free["prompt_length"],
        "nearest prompts": free["nearest_prompts"],
        "plain network": network_scores(dataset, features, scale, seed, options, "plain"),
        "BiLSTM, plateau of the median": plateau_scores(evidence.median, dataset.grid),
    }


def classifier_scores(evidence: Evidence, q: float, seed: int, options: FitOptions) -> dict[str, FloatArray]:
    """StepSaver's kind: trained for one quality."""
    found = step_classifier_scores(evidence.dataset, evidence.features, evidence.scale, q, seed, options)
    return {"step classifier": found}


def at_equal_cost(evidence: Evidence, scores: Scores, q: float, alpha: float, seed: int) -> dict[str, Any]:
    """Every rule at the mean steps of our plans for (q, alpha). JSON-safe."""
    held, test = evidence.held, evidence.rows["test"]
    ours = planned(evidence.upper[test], evidence.threshold(alpha, q))
    mean_steps = float(held.counts[ours[0][1]].mean())
    mixtures: dict[str, Mixture] = {OURS: ours}
    for name, values in scores.items():
        if name != OURS:
            mixtures[name] = planned_at_mean(held.counts, values[test], mean_steps)
    mixtures["UNIFORM"] = uniform(held, mean_steps)
    mixtures["PERMUTED"] = permuted(held, ours[0][1])
    mixtures["oracle A"] = oracle_a_at_mean(held, mean_steps)
    mixtures["oracle B"] = oracle_b_at_mean(held, mean_steps)
    mixtures["oracle B, fewest misses"] = oracle_b_fewest_violations(held, q, mean_steps)
    mixtures["oracle C"] = oracle_c(held, mean_steps)
    results = {name: outcome(held, mixture, q) for name, mixture in mixtures.items()}
    judged = {name: _judged(evidence, mixture) for name, mixture in mixtures.items()}
    return {
        "quality": q,
        "risk": alpha,
        "mean_steps": mean_steps,
        "rules": {
            name: _row(result, results[OURS], judged[name], judged[OURS], seed) for name, result in results.items()
        },
        "knee_at_its_own_cost": knee_row(evidence, q, seed),
    }


def _judged(evidence: Evidence, mixture: Mixture) -> dict[str, FloatArray]:
    if evidence.judges is None:
        return {}
    rows, grid = evidence.rows["test"], evidence.dataset.grid
    return {name: expected(evidence.judges.curve(name, grid, rows), mixture) for name in evidence.judges.names}


def _row(
    result: Mapping[str, FloatArray],
    ours: Mapping[str, FloatArray],
    judged: Mapping[str, FloatArray],
    judged_ours: Mapping[str, FloatArray],
    seed: int,
) -> dict[str, Any]:
    keys = ("violation", "violation_controlled", "mean_quality", "shortfall", "gain_per_step")
    row: dict[str, Any] = {"mean_steps": float(result["steps"].mean())}
    row |= {key: bootstrap(result[key], seed) for key in keys}
    row["worst_tenth"] = interval(worst_tenth, seed, result["shortfall"])
    row["judges"] = {name: bootstrap(values, seed) for name, values in judged.items()}
    row["ours_minus_it"] = {
        **{key: interval(mean_difference, seed, ours[key], result[key]) for key in keys},
        "worst_tenth": interval(_worst_tenth_difference, seed, ours["shortfall"], result["shortfall"]),
        **{name: interval(mean_difference, seed, judged_ours[name], values) for name, values in judged.items()},
    }
    return row


def _worst_tenth_difference(a: FloatArray, b: FloatArray) -> Any:
    return worst_tenth(a) - worst_tenth(b)


def knee_row(evidence: Evidence, q: float, seed: int) -> dict[str, Any]:
    """The knee finder has no slider: its misses and cost, beside UNIFORM at its cost."""
    held, test = evidence.held, evidence.rows["test"]
    index = knee_index(evidence.median[test], evidence.dataset.grid)
    found = per_prompt(held, index, q)
    cost = float(found["steps"].mean())
    alike = outcome(held, uniform(held, cost), q)
    return {
        "mean_steps": cost,
        "violation_controlled": bootstrap(found["violation_controlled"], seed),
        "shortfall": bootstrap(found["shortfall"], seed),
        "uniform_violation_controlled": bootstrap(alike["violation_controlled"], seed),
        "uniform_shortfall": bootstrap(alike["shortfall"], seed),
    }


def at_equal_risk(evidence: Evidence, scores: Scores, q: float, alpha: float, seed: int) -> dict[str, Any]:
    """Every rule under the same risk control on the calibration split: what the promise costs with it. JSON-safe."""
    held, rows = evidence.held, evidence.rows
    found: dict[str, Any] = {}
    for name, values in scores.items():
        critical = critical_thetas(values[rows["calibration"]], held.calibration_quality, q)
        result = per_prompt(held, planned_index(values[rows["test"]], controlled_theta(critical, alpha)), q)
        found[name] = {
            key: bootstrap(result[key], seed) for key in ("steps", "violation_controlled", "shortfall", "mean_quality")
        }
    return found


def gains(evidence: Evidence, q: float, alpha: float, seed: int) -> dict[str, Any]:
    """The figures behind the table of goals, ours at (q, alpha) against UNIFORM, one fixed count and the oracles."""
    held, test = evidence.held, evidence.rows["test"]
    index = planned_index(evidence.upper[test], evidence.threshold(alpha, q))
    ours = per_prompt(held, index, q)
    mean_steps = float(ours["steps"].mean())
    alike = outcome(held, uniform(held, mean_steps), q)
    shuffled = outcome(held, permuted(held, index), q)
    missed = float(ours["violation_controlled"].mean())
    start = np.nanmean(held.test_quality[..., 0], axis=1)  # of each prompt, so that it is drawn with it
    b_steps = float(oracle_b_at_violation(held, q, missed)["steps"].mean())
    uniform_steps = uniform_at_violation(held, q, missed)
    return {
        "prompts": len(held.test),
        "mean_steps": bootstrap(ours["steps"], seed),
        "target": int(held.counts[-1]),
        "saved": interval(lambda steps: 1.0 - steps.mean(axis=-1) / held.counts[-1], seed, ours["steps"]),
        "violation_controlled": bootstrap(ours["violation_controlled"], seed),
        "violation": bootstrap(ours["violation"], seed),
        "gain_per_step": {
            "of_means": interval(
                lambda a, b: ratio_of_means(a, b) - 1.0,
                seed,
                ours["mean_quality"] - start,
                alike["mean_quality"] - start,
            ),
            "ceiling_of_means": _ceiling(start, alike["mean_quality"]),
            "mean_of_ratios": _relative(ours["gain_per_step"], alike["gain_per_step"], seed),
            "mean_of_ratios_permuted": _relative(shuffled["gain_per_step"], alike["gain_per_step"], seed),
        },
        "fixed": {
            "count_at_our_violation": best_fixed(held, q, missed, "violation_controlled"),
            "mix_at_our_violation": uniform_steps,
            "fewer_steps": 1.0 - mean_steps / best_fixed(held, q, missed, "violation_controlled"),
            "fewer_steps_interval": fewer_than_fixed(held, index, q, seed),
        },
        "gap_to_oracle_b": {
            "steps_at_our_violation": _share(uniform_steps - mean_steps, uniform_steps - b_steps),
            **_gap_at_cost(held, ours, alike, q, mean_steps, seed),
        },
        "worst_tenth": {
            "ours": float(worst_tenth(ours["shortfall"])),
            "uniform": float(worst_tenth(alike["shortfall"])),
            "ratio": interval(worst_tenth_ratio, seed, ours["shortfall"], alike["shortfall"]),
            "ratio_oracle_b": interval(
                worst_tenth_ratio,
                seed,
                outcome(held, oracle_b_at_mean(held, mean_steps), q)["shortfall"],
                alike["shortfall"],
            ),
        },
        "oracle_mean_steps": {
            "a": float(np.nanmean(needed_steps(held, q), axis=1).mean()),
            "b_at_our_violation": b_steps,
        },
    }


def _ceiling(start: FloatArray, alike: FloatArray) -> float:
    """Gain per step of full quality for every prompt over `alike`'s, both from `start` and at equal cost, less 1."""
    return float((1.0 - start).mean() / max((alike - start).mean(), 1e-12) - 1.0)


def fewer_than_fixed(held: HeldOut, index: Any, q: float, seed: int, times: int = 200) -> dict[str, float]:
    """1 - our mean steps / the best single count at our violation, with both found again in each resample."""
    ours = per_prompt(held, index, q)
    zeros = np.zeros(len(held.test), np.int64)
    misses = np.stack([per_prompt(held, zeros + i, q)["violation_controlled"] for i in range(len(held.counts))])

    def saving(rows: Any) -> float:
        enough = misses[:, rows].mean(axis=1) <= ours["violation_controlled"][rows].mean() + 1e-12
        fixed = held.counts[enough.argmax()] if enough.any() else held.counts[-1]
        return 1.0 - float(ours["steps"][rows].mean()) / float(fixed)

    low, high = np.quantile([saving(rows) for rows in draws(len(held.test), seed, times)], LEVELS)
    return {"value": saving(np.arange(len(held.test))), "low": float(low), "high": float(high)}


def _gap_at_cost(
    held: HeldOut,
    ours: Mapping[str, FloatArray],
    alike: Mapping[str, FloatArray],
    q: float,
    mean_steps: float,
    seed: int,
) -> dict[str, dict[str, float] | None]:
    fewest = outcome(held, oracle_b_fewest_violations(held, q, mean_steps), q)
    even = outcome(held, oracle_b_at_mean(held, mean_steps), q)
    best = outcome(held, oracle_c(held, mean_steps), q)

    def closed(key: str, limit: Mapping[str, FloatArray], of: Any = mean) -> dict[str, float] | None:
        return _closed(of, seed, ours[key], alike[key], limit[key])

    return {
        "misses_at_our_cost": closed("violation_controlled", fewest),
        "worst_tenth_at_our_cost": closed("shortfall", even, worst_tenth),
        "shortfall_to_oracle_c": closed("shortfall", best),
    }


def _closed(of: Any, seed: int, ours: FloatArray, alike: FloatArray, limit: FloatArray) -> dict[str, float] | None:
    """Share of the gap between `alike` and `limit` that `ours` closes, with its interval over the draws of prompts that
    have a gap (the allocations stay). None where there is no gap to close."""
    value = _share(float(of(alike) - of(ours)), float(of(alike) - of(limit)))
    if value is None:
        return None
    rows = draws(len(ours), seed)
    gained, gap = of(alike[rows]) - of(ours[rows]), of(alike[rows]) - of(limit[rows])
    some = gap > 1e-9
    low, high = np.quantile(gained[some] / gap[some], LEVELS) if some.any() else (value, value)
    return {"value": value, "low": float(low), "high": float(high)}


def _share(gained: float, gap: float) -> float | None:
    """None where there is no gap to close."""
    return gained / gap if gap > 1e-9 else None


def _relative(a: FloatArray, b: FloatArray, seed: int) -> dict[str, float]:
    return interval(lambda x, y: ratio_of_means(x, y) - 1.0, seed, a, b)
