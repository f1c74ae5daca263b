"""The plan that the browser's tests read is one that the core makes today.

    BUDGETFUSION_WRITE_CASES=1 pytest tests/web/test_plan_case.py

writes it again after a wanted change.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from budgetfusion_nodes.core.curves import DEFAULT_GRID, METRICS, all_counts, interpolate_log_n
from budgetfusion_nodes.core.messages import message
from budgetfusion_nodes.core.plan import Decision, Plan, threshold_at
from budgetfusion_nodes.core.setting import Setting

CASE = Path(__file__).parents[1] / "cases" / "plan_case.json"
SCALE = {"l_snr": 6.0, "d_sim": 0.5, "i_clip": 0.3}
KNOTS = [(0.5, 0.55), (0.8, 0.21), (0.9, 0.09), (0.95, 0.05), (0.99, 0.008)]
QUALITIES = [0.5, 0.62, 0.8, 0.87, 0.9, 0.93, 0.97, 0.99]


def shortfall(factor: float) -> dict[str, tuple[float, ...]]:
    """A hump in L-SNR, so that the plot and the rule meet a curve that is not monotone; 0 at T."""
    fall = {n: 2.0 / n - 2.0 / 50 for n in DEFAULT_GRID}
    return {
        "l_snr": tuple(factor * fall[n] * (1.6 if n == 8 else 0.8) for n in DEFAULT_GRID),
        "d_sim": tuple(factor * fall[n] for n in DEFAULT_GRID),
        "i_clip": tuple(factor * 0.5 * fall[n] for n in DEFAULT_GRID),
    }


def quality(curves: dict[str, tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(min(max(1.0 - max(values), 0.0), 1.0) for values in zip(*curves.values(), strict=True))


def make_case() -> dict:
    low, median, high = (shortfall(factor) for factor in (0.6, 0.9, 1.3))
    decision = Decision.from_curves(DEFAULT_GRID, high, quality(median), KNOTS)
    steps = decision.steps(0.9, 2, 50)
    plan = Plan(
        steps=steps,
        max_steps=50,
        min_steps=2,
        quality=0.9,
        risk=0.1,
        quality_predicted=decision.quality_at(steps),
        set_by=decision.set_by(0.9),
        grid=DEFAULT_GRID,
        quality_low=quality(high),
        quality_median=quality(median),
        quality_high=quality(low),
        shortfall_median={name: tuple(SCALE[name] * value for value in median[name]) for name in METRICS},
        threshold=threshold_at(KNOTS, 0.9),
        planner="case",
        setting=Setting("abc", "dpmpp_2m", "karras", 3.0, 64, 64, model_name="tiny_scenes"),
        warnings=(message("model_lora", n=1, weights=12),),
        nfe=steps,
        decision=decision,
    )
    counts = all_counts(DEFAULT_GRID)
    return {
        "about": "A plan of core/plan.py, and what Python makes of it; written by tests/web/test_plan_case.py.",
        "plan": plan.to_dict(),
        "decided": [{"quality": q, "steps": decision.steps(q, 2, 50), "set_by": decision.set_by(q)} for q in QUALITIES],
        "quality_at": [{"steps": n, "quality": decision.quality_at(n)} for n in (1, 2, 11, 50, 80)],
        "interpolated": {
            "quality_high": interpolate_log_n(DEFAULT_GRID, plan.quality_high, counts).tolist(),
            "l_snr": interpolate_log_n(DEFAULT_GRID, median["l_snr"], counts).tolist(),
        },
        "l_snr": list(median["l_snr"]),
    }


def test_the_case_is_what_the_core_makes():
    made = json.loads(json.dumps(make_case()))
    if os.environ.get("BUDGETFUSION_WRITE_CASES"):
        CASE.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    kept = json.loads(CASE.read_text(encoding="utf-8"))
    assert_close(kept, made)
    assert kept["plan"]["steps"] == kept["decided"][QUALITIES.index(0.9)]["steps"] > 2


def assert_close(kept: object, made: object) -> None:
    """Equal but for the last digits, which differ between builds of scipy."""
    if isinstance(made, dict):
        assert isinstance(kept, dict) and kept.keys() == made.keys()
        for key in made:
            assert_close(kept[key], made[key])
    elif isinstance(made, list):
        assert isinstance(kept, list) and len(kept) == len(made)
        for a, b in zip(kept, made, strict=True):
            assert_close(a, b)
    elif isinstance(made, float):
        assert kept == pytest.approx(made, abs=1e-12)
    else:
        assert kept == made
