"""Does the promise hold? Observed misses for each risk and quality, on held-out prompts and on busier ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from budgetfusion_nodes.core.curves import FloatArray
from budgetfusion_nodes.core.risk import capped_theta, critical_thetas
from research.statistics.allocation import IndexArray, per_prompt, planned_index
from research.statistics.bootstrap import bootstrap

from .evidence import Evidence

REDEALS = 200


def risk_table(
    evidence: Evidence, alphas: Sequence[float], qualities: Sequence[float], seed: int
) -> list[dict[str, Any]]:
    """One row for each (alpha, q): misses of the shipped thresholds on the test split."""
    found = []
    test = evidence.upper[evidence.rows["test"]]
    for alpha in alphas:
        for q in qualities:
            result = per_prompt(evidence.held, planned_index(test, evidence.threshold(alpha, q)), q)
            missed = bootstrap(result["violation_controlled"], seed)
            found.append(
                {
                    "risk": alpha,
                    "quality": q,
                    "missed": missed,
                    "missed_at_the_count": bootstrap(result["violation"], seed),
                    "mean_steps": float(result["steps"].mean()),
                    "holds": missed["low"] <= alpha,
                    "expected_spread": calibration_spread(alpha, evidence.planner.risk_table.prompts),
                }
            )
    return found


def calibration_spread(alpha: float, prompts: int) -> float:
    """Standard deviation of the risk that one draw of calibration prompts gives, were each loss 0 or 1: that of
    Beta(l, n + 1 - l), l = floor((n + 1) alpha) (Vovk 2012)."""
    below = int(np.floor((prompts + 1) * alpha))
    if below < 1:
        return 0.0
    return float(np.sqrt(below * (prompts + 1 - below) / ((prompts + 1) ** 2 * (prompts + 2))))


def redealt(
    evidence: Evidence,
    alphas: Sequence[float],
    qualities: Sequence[float],
    seed: int,
    times: int = REDEALS,
    other: FloatArray | None = None,
) -> list[dict[str, Any]]:
    """Calibration and test prompts are put together and dealt again many times; thresholds from one part, misses and
    steps on the other. The mean misses are what the guarantee bounds, and both means are without the luck of one deal.
    other: scores [N, C] of a second rule, which goes through the same deals ("other" in each row)."""
    held, rows = evidence.held, evidence.rows
    seeds = max(held.calibration.shape[1], held.test.shape[1])
    truth = np.concatenate([_padded(held.calibration, seeds), _padded(held.test, seeds)])
    quality = np.clip(1.0 - truth, 0.0, 1.0)
    deals = make_deals(len(quality), len(rows["calibration"]), seed, times)
    rules = {"ours": evidence.upper} | ({} if other is None else {"other": other})
    scores = {name: np.concatenate([u[rows["calibration"]], u[rows["test"]]]) for name, u in rules.items()}
    found = []
    for q in qualities:
        critical = {name: critical_thetas(upper, quality, q) for name, upper in scores.items()}  # [N, S]
        for alpha in alphas:
            results = {
                name: over_deals(deals, scores[name], critical[name], critical[name], held.counts, q, alpha)
                for name in scores
            }
            row = {"risk": alpha, "quality": q, "deals": times, **means_over_deals(results["ours"])}
            if other is not None:
                row["other"] = means_over_deals(results["other"])
                row["more_steps"] = mean_and_spread(results["ours"][:, 1] - results["other"][:, 1])
            found.append(row)
    return found


Deals = Sequence[tuple[IndexArray, IndexArray]]
"""(calibration rows, test rows) of each deal."""


def make_deals(prompts: int, calibration: int, seed: int, times: int = REDEALS) -> Deals:
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(prompts) for _ in range(times)]
    return [(order[:calibration], order[calibration:]) for order in orders]


def over_deals(
    deals: Deals,
    scores: FloatArray,
    known: FloatArray,
    true: FloatArray,
    counts: IndexArray,
    q: float,
    alpha: float,
) -> FloatArray:
    """[deals, 2] misses and mean steps of a rule whose threshold comes from each deal's calibration prompts.

    scores: [N, C]; known, true: [N, S] critical thresholds (`critical_thetas`) by what the calibration knows of the
    renders, and by what they are."""
    found = []
    for calibration, test in deals:
        theta = capped_theta(known[calibration], q, alpha)
        found.append((miss_rate(true[test], theta), counts[planned_index(scores[test], theta)].mean()))
    return np.array(found)


def means_over_deals(pairs: FloatArray) -> dict[str, float]:
    """Of what `over_deals` gives."""
    missed, steps = mean_and_spread(pairs[:, 0]), mean_and_spread(pairs[:, 1])
    return {
        "missed": missed["mean"],
        "spread": missed["spread"],
        "mean_steps": steps["mean"],
        "steps_spread": steps["spread"],
    }


def mean_and_spread(values: FloatArray) -> dict[str, float]:
    return {"mean": float(values.mean()), "spread": float(values.std())}


def miss_rate(critical: FloatArray, theta: float) -> float:
    """Mean over prompts of the share of seeds that miss at theta: a plan misses exactly if critical <= theta.
    critical: [N, S], NaN for absent seeds."""
    missed = np.where(np.isnan(critical), np.nan, np.isfinite(critical) & (critical <= theta))
    return float(np.nanmean(missed, axis=1).mean())


def _padded(values: FloatArray, seeds: int) -> FloatArray:
    missing = np.full((len(values), seeds - values.shape[1], values.shape[2]), np.nan)
    return np.concatenate([values, missing], axis=1)


def shifted_figures(
    evidence: Evidence, shifted: Evidence, alphas: Sequence[float], qualities: Sequence[float], seed: int
) -> dict[str, Any]:
    """The same table on prompts busier than any in training, and how many of each kind the node calls unlike
    those that the planner was made with. `shifted` holds those prompts in its test split."""
    return {
        "prompts": len(shifted.rows["test"]),
        "rows": risk_table(shifted, alphas, qualities, seed),
        "noticed": {"test": noticed(evidence), "shifted": noticed(shifted)},
    }


def noticed(evidence: Evidence) -> dict[str, float]:
    """Distance from the planner's own prompts as the node computes it; above 1 it warns."""
    distances = np.array(
        [evidence.planner.out_of_distribution.score(evidence.features[i]) for i in evidence.rows["test"]]
    )
    return {
        "share_warned": float((distances > 1.0).mean()),
        "median_distance": float(np.median(distances)),
        "largest_distance": float(distances.max()),
    }
