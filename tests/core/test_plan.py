from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from budgetfusion_nodes.core.curves import DEFAULT_GRID, all_counts, interpolate_log_n
from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.messages import message, verbatim
from budgetfusion_nodes.core.plan import Decision, Plan, check_request, decide_steps, threshold_at

CASES = json.loads((Path(__file__).parents[1] / "cases" / "decide_cases.json").read_text())["cases"]
FALL = [2.0 / n - 2.0 / 50 for n in DEFAULT_GRID]


def decision() -> Decision:
    late = [x * (0.5 + n / 25) for x, n in zip(FALL, DEFAULT_GRID, strict=True)]
    high = {"l_snr": FALL, "d_sim": late, "i_clip": FALL}
    return Decision.from_curves(DEFAULT_GRID, high, [1.0 - x for x in FALL], [(0.5, 0.4), (0.9, 0.08), (0.99, 0.008)])


def by_definition(case: dict) -> int:
    """The rule of DESIGN.md word by word, with the threshold from numpy.interp."""
    knots = np.array(case["thresholds"])
    theta = float(np.interp(case["quality"], knots[:, 0], knots[:, 1]))
    fits = [n for i, n in enumerate(case["counts"]) if all(u <= theta for u in case["upper"][i:])]
    steps = min(fits, default=case["counts"][-1])
    return int(np.clip(max(steps, case["min_steps"]), None, case["max_steps"]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_shared_case(case):
    arguments = [case[key] for key in ("counts", "upper", "thresholds", "quality", "min_steps", "max_steps")]
    assert decide_steps(*arguments) == case["steps"] == by_definition(case)


def test_the_shared_table_covers_both_ends_of_the_rule():
    assert len(CASES) >= 25
    assert {"min_steps raises", "max_steps cuts", "a lucky dip at 3 does not count"} <= {c["name"] for c in CASES}


def test_thresholds_are_exact_at_knots_and_constant_outside():
    knots = [(0.5, 0.37), (0.7, 0.11), (0.9, 0.1)]
    assert [threshold_at(knots, q) for q, _ in knots] == [theta for _, theta in knots]
    assert threshold_at(knots, 0.1) == 0.37
    assert threshold_at(knots, 0.95) == 0.1
    assert threshold_at(knots, 0.6) == pytest.approx(0.24)


def test_more_quality_never_means_fewer_steps():
    d = decision()
    steps = [d.steps(q, 2, 50) for q in np.linspace(0.5, 0.99, 99)]
    assert all(a <= b for a, b in pairwise(steps))
    assert steps[0] < steps[-1]


def test_a_decision_carries_every_count_and_the_limiting_metric():
    d = decision()
    assert d.counts == all_counts(DEFAULT_GRID)
    np.testing.assert_allclose(d.upper, interpolate_log_n(DEFAULT_GRID, d.shortfall_high_norm, d.counts), atol=1e-12)
    assert d.limiting[0] in ("l_snr", "i_clip")
    assert d.limiting[30] == "d_sim"
    assert d.upper[-1] == 0.0


def test_set_by_names_the_metric_that_forbids_one_step_less():
    d = decision()
    steps = d.steps(0.9, 2, 50)
    assert d.set_by(0.9) == d.limiting[steps - 1 - d.counts[0]]
    free = Decision.from_curves((2, 4), {"l_snr": [0.1, 0.0]}, [0.9, 1.0], [(0.5, 1.0)])
    assert free.set_by(0.5) is None


def test_predicted_quality_at_any_count():
    d = decision()
    assert d.quality_at(50) == 1.0
    assert d.quality_at(80) == 1.0
    assert d.quality_at(1) is None
    assert d.quality_at(10) == pytest.approx(1.0 - FALL[DEFAULT_GRID.index(10)])


def test_a_plan_survives_json_and_is_frozen():
    plan = Plan(
        *(12, 50, 2, 0.9, 0.1),
        quality_predicted=0.93,
        set_by="l_snr",
        shortfall_median={"l_snr": (1.0, 0.0)},
        warnings=(message("no_pooled"),),
        fallback=message("other_model", planner="p", was="a", now="b"),
        decision=decision(),
        nfe=12,
        distance=0.4,
    )
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict(), allow_nan=False))) == plan
    with pytest.raises(FrozenInstanceError):
        plan.steps = 3  # type: ignore[misc]


def test_the_dict_has_what_the_browser_reads():
    data = Plan(12, 50, 2, 0.9, 0.1, decision=decision()).to_dict()["decision"]
    assert {"grid", "shortfall_high_norm", "counts", "upper", "thresholds", "limiting", "quality"} <= set(data)
    assert data["thresholds"][1] == [0.9, 0.08]
    assert decide_steps(data["counts"], data["upper"], data["thresholds"], 0.9, 2, 50) == decision().steps(0.9, 2, 50)


def test_infinite_numbers_become_null():
    assert Plan(5, 5, 2, 0.9, 0.1, distance=float("inf")).to_dict()["distance"] is None


def test_a_fallback_renders_every_step_and_says_why():
    plan = Plan.fallback_plan(40, 2, 0.9, 0.1, message("plan_is_fallback"), warnings=(verbatim("A note."),))
    assert (plan.steps, plan.max_steps, plan.nfe, plan.decision) == (40, 40, 40, None)
    assert plan.summary().splitlines() == [f"All 40 steps: {message('plan_is_fallback').text()}", "A note."]
    assert Plan.from_dict(plan.to_dict()) == plan


def test_a_plan_of_an_earlier_version_keeps_its_sentences():
    old = {**Plan(5, 5, 2, 0.9, 0.1).to_dict(), "fallback": "No planner.", "warnings": ["A LoRA."]}
    plan = Plan.from_dict(old)
    assert plan.summary().splitlines() == ["All 5 steps: No planner.", "A LoRA."]


def test_a_plan_that_saves_nothing_says_so_and_a_metric_of_another_version_is_named():
    plan = Plan(50, 50, 2, 0.9, 0.1, set_by="beauty")
    assert plan.summary().splitlines()[0] == "50 of 50 steps (none saved)"
    assert "Limited by beauty" in plan.summary()


def test_the_summary_names_saving_quality_and_metric():
    plan = Plan(
        10, 50, 2, 0.9, 0.1, quality_predicted=0.934, set_by="d_sim", planner="tiny", warnings=(verbatim("Careful."),)
    )
    assert plan.summary().splitlines() == [
        "10 of 50 steps (80% fewer)",
        "Quality 0.90 wanted, 0.93 predicted; chance of falling short: 10%",
        "Limited by shapes and layout (D-SIM)",
        "Planner: tiny",
        "Careful.",
    ]


def test_a_plan_of_another_version_is_refused():
    data = Plan(5, 5, 2, 0.9, 0.1).to_dict()
    del data["threshold"]
    with pytest.raises(InputError, match="threshold"):
        Plan.from_dict(data)


@pytest.mark.parametrize(
    ("quality", "risk", "low", "high", "said"),
    [
        (0.3, 0.1, 2, 50, "quality is 0.3; set it between 0.5 and 0.99"),
        (1.0, 0.1, 2, 50, "quality is 1"),
        (float("nan"), 0.1, 2, 50, "quality is nan"),
        (0.9, 0.5, 2, 50, "risk is 0.5; set it between 0.02 and 0.3"),
        (0.9, 0.0, 2, 50, "risk is 0;"),
        (0.9, 0.1, 0, 50, "min_steps is 0"),
        (0.9, 0.1, 51, 50, "min_steps 51 is above max_steps 50: lower min_steps"),
    ],
)
def test_requests_out_of_range_name_the_input_and_the_remedy(quality, risk, low, high, said):
    with pytest.raises(InputError, match=said):
        check_request(quality, risk, low, high, (0.02, 0.3))


@pytest.mark.parametrize("q", [0.5, 0.99, float(np.float32(0.99)), float(np.float32(0.5))])
def test_the_ends_of_the_slider_are_allowed(q):
    check_request(q, 0.02, 1, 1, (0.02, 0.3))
