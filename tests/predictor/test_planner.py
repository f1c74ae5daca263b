from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from budgetfusion_nodes.core.errors import InputError, UnsupportedError
from budgetfusion_nodes.core.messages import message
from budgetfusion_nodes.core.plan import Plan, decide_steps
from budgetfusion_nodes.core.risk import ALPHAS


def test_a_plan_states_its_reasons(planner, conditioning):
    plan = planner.plan(*conditioning, quality=0.9, setting=planner.setting)
    assert 2 <= plan.steps < 50
    assert plan.nfe == plan.steps
    assert plan.fallback is None
    assert plan.limited_by in planner.metrics
    assert plan.grid == planner.grid
    assert len(plan.quality_low) == len(plan.quality_median) == len(plan.quality_high) == len(planner.grid)
    low, median, high = (np.array(getattr(plan, f"quality_{k}")) for k in ("low", "median", "high"))
    assert (low <= median).all()
    assert (median <= high).all()
    assert plan.quality_median[-1] == 1.0
    assert set(plan.shortfall_median) == set(planner.metrics)
    assert plan.planner == "test planner"
    assert plan.setting == planner.setting
    assert plan.seconds > 0
    assert plan.quality_predicted == plan.decision.quality[plan.steps - 2]


def test_the_dict_alone_repeats_the_decision(planner, conditioning):
    data = json.loads(json.dumps(planner.plan(*conditioning, max_steps=50).to_dict(), allow_nan=False))
    for q in (0.5, 0.75, 0.9, 0.99):
        d = data["decision"]
        again = decide_steps(d["counts"], d["upper"], d["thresholds"], q, 2, 50)
        assert again == planner.plan(*conditioning, quality=q, max_steps=50).steps
    assert Plan.from_dict(data).to_dict() == data


def test_steps_rise_with_quality_and_fall_with_risk(planner, conditioning):
    by_quality = [planner.plan(*conditioning, quality=q).steps for q in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)]
    by_risk = [planner.plan(*conditioning, risk=alpha).steps for alpha in ALPHAS]
    assert by_quality == sorted(by_quality)
    assert by_quality[0] < by_quality[-1]
    assert by_risk == sorted(by_risk, reverse=True)
    assert by_risk[0] > by_risk[-1]


def test_no_plan_along_a_nested_schedule_ends_inside_its_prefix(planner, conditioning):
    nested = replace(planner, setting=replace(planner.setting, schedule="nested 9@1.0"))
    assert planner.plan(*conditioning, quality=0.5).steps < 10
    assert nested.plan(*conditioning, quality=0.5).steps == 10
    assert nested.plan(*conditioning, quality=0.5, max_steps=6).steps == 6  # no room: such a render is a stock one
    rough = nested.plan(*conditioning, quality=0.5)
    data = rough.decision
    assert data.steps(0.5, rough.min_steps, rough.max_steps) == 10  # the page decides the same


def test_the_median_shortfall_is_in_the_metrics_own_unit(planner, conditioning):
    prediction = planner.predict(*conditioning)
    plan = planner.plan(*conditioning)
    for m, metric in enumerate(planner.metrics):
        expected = prediction.normalised[:, m, 1] * planner.scale[m]
        np.testing.assert_allclose(plan.shortfall_median[metric], expected)
    assert set(prediction.limiting()) <= set(planner.metrics)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"quality": 0.2}, "quality"),
        ({"quality": float("nan")}, "quality"),
        ({"risk": 0.9}, "risk"),
        ({"min_steps": 0}, "min_steps"),
        ({"min_steps": 30, "max_steps": 20}, "lower min_steps or raise max_steps"),
    ],
)
def test_values_out_of_range_are_input_errors(planner, conditioning, values, said):
    with pytest.raises(InputError, match=said):
        planner.plan(*conditioning, **values)


@pytest.mark.parametrize(
    ("tokens", "pooled"),
    [
        (torch.zeros(10, 25), torch.zeros(16)),
        (torch.zeros(10, 24), torch.zeros(17)),
        (torch.zeros(2, 10, 24), None),
        (torch.full((10, 24), float("nan")), None),
    ],
)
def test_another_encoder_is_unsupported(planner, tokens, pooled):
    with pytest.raises(UnsupportedError):
        planner.plan(tokens, pooled)


def test_max_steps_below_the_need_clips_and_warns(planner, conditioning):
    free = planner.plan(*conditioning, quality=0.95, max_steps=50)
    tight = planner.plan(*conditioning, quality=0.95, max_steps=free.steps - 1)
    assert tight.steps == free.steps - 1
    assert tight.warnings == (message("max_too_low", quality=0.95, steps=free.steps, max=free.steps - 1),)
    assert free.warnings == ()


def test_max_steps_below_the_target_is_silent_when_it_suffices(planner, conditioning):
    free = planner.plan(*conditioning, quality=0.8)
    assert planner.plan(*conditioning, quality=0.8, max_steps=free.steps).warnings == ()


def test_max_steps_beyond_the_target_stays_within_it(planner, conditioning):
    plan = planner.plan(*conditioning, quality=0.99, risk=0.02, max_steps=120)
    assert plan.steps <= 50
    assert plan.warnings[0] == message("max_beyond", max=plan.max_steps, target=50)


def test_min_steps_is_kept_even_beyond_the_target(planner, conditioning):
    assert planner.plan(*conditioning, quality=0.5, min_steps=20).steps == 20
    plan = planner.plan(*conditioning, min_steps=60, max_steps=80)
    assert plan.steps == 60
    assert plan.quality_predicted == 1.0
    assert message("min_beyond", min=60, target=50) in plan.warnings


def test_other_settings_are_warned_about(planner, conditioning):
    actual = replace(planner.setting, cfg=9.0, scheduler="simple")
    warnings = planner.plan(*conditioning, max_steps=50, setting=actual).warnings
    assert [said.values["what"] for said in warnings] == [message("name_scheduler"), message("name_cfg")]
    assert (warnings[1].values["was"], warnings[1].values["now"]) == (3.0, 9.0)


def test_missing_pooled_output_is_said(planner, conditioning, make_planner):
    assert message("no_pooled") in planner.plan(conditioning[0], None).warnings
    without = make_planner(pooled_in=0)
    assert without.plan(conditioning[0], None, max_steps=50).warnings == ()
    assert without.plan(conditioning[0], torch.zeros(5), max_steps=50).warnings == ()  # it never knew a pooled output


def test_an_ordinary_prompt_is_not_called_unlike_for_a_missing_pooled_output(planner, conditioning):
    tokens, pooled = conditioning
    assert planner.plan(tokens, None).distance <= planner.plan(tokens, pooled).distance + 1e-6
    assert planner.plan(tokens * 5 + 30, None).distance > 1.0


def test_a_prompt_unlike_the_planners_own_is_said(planner, conditioning):
    tokens, pooled = conditioning
    plan = planner.plan(tokens * 5 + 30, pooled)
    assert plan.distance > 1.0
    assert "out_of_distribution" in [warning.code for warning in plan.warnings]


def test_too_few_calibration_prompts_are_said(planner, conditioning):
    table = replace(planner.risk_table, prompts=30, theta=((0.0,) * 50, *planner.risk_table.theta[1:]))
    plan = replace(planner, risk_table=table).plan(*conditioning, risk=0.02, max_steps=50)
    assert plan.steps == 50
    assert any(w.code == "too_few_prompts" and w.values["n"] == 30 for w in plan.warnings)


def test_evaluations_follow_the_sampler(planner, conditioning):
    plan = planner.plan(*conditioning, nfe_of=lambda steps: 2 * steps - 1)
    assert plan.nfe == 2 * plan.steps - 1


def test_planning_leaves_the_hosts_random_state_alone(planner, conditioning):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    threads = torch.get_num_threads()
    planner.plan(*conditioning)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_plans_are_the_same_every_time_and_work_inside_inference_mode(planner, conditioning):
    first = planner.plan(*conditioning)
    with torch.inference_mode():
        second = planner.plan(*conditioning)
    assert replace(first, seconds=0.0) == replace(second, seconds=0.0)


@pytest.mark.parametrize("length", [1, 77, 539, 5000])
def test_any_prompt_length_plans(planner, length):
    tokens = torch.randn(length, 24, generator=torch.Generator().manual_seed(length))
    assert 2 <= planner.plan(tokens, None).steps <= 50
