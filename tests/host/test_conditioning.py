"""Prompts and conditioning as artists make them, through the host's own nodes, into the Budget Planner."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.fixtures.said import code, codes

AREA, MASK, RANGE = "added area", "added mask", "added range"


@pytest.mark.parametrize(
    "prompt",
    ["", "a red circle " * 134, "qwertz blorp zzyzx", "a \U0001f431 on a \U0001f3d4\ufe0f \u7ea2\u8272", "((a:1.4) (b"],
    ids=["empty", "400 words", "unknown words", "emoji", "weights"],
)
def test_any_text_gives_a_plan(bench: Any, prompt: str) -> None:
    plan = bench.plan(bench.base(prompt))
    assert plan.fallback is None
    assert 2 <= plan.steps <= 50


@pytest.mark.parametrize(
    ("node_type", "inputs", "note"),
    [
        ("ConditioningSetArea", {"width": 64, "height": 64, "x": 0, "y": 0, "strength": 1.0}, AREA),
        ("ConditioningSetAreaPercentage", {"width": 0.5, "height": 1.0, "x": 0.0, "y": 0.0, "strength": 1.0}, AREA),
        ("ConditioningSetMask", {"mask": ["8", 0], "strength": 1.0, "set_cond_area": "default"}, MASK),
        ("ConditioningSetTimestepRange", {"start": 0.0, "end": 0.5}, RANGE),
        ("ConditioningSetTimestepRange", {"start": 0.2, "end": 1.0}, RANGE),
    ],
)
def test_parts_of_the_image_or_the_run_are_named(
    bench: Any, make_node: Any, to: Any, node_type: str, inputs: dict[str, Any], note: str
) -> None:
    graph = {
        **bench.base(),
        "7": make_node(node_type, conditioning=to("2"), **inputs),
        "8": make_node("SolidMask", value=1.0, width=64, height=64),
    }
    plan = bench.plan(graph, positive=to("7"))
    assert plan.fallback is None
    assert note in codes(plan.warnings), plan.warnings
    whole = bench.plan(graph, positive=to("2"))
    assert plan.steps == whole.steps
    assert whole.warnings == ()


def test_of_two_prompts_the_one_with_more_steps_decides(bench: Any, make_node: Any, to: Any) -> None:
    texts = ("a plain red background", "six small white crosses on a wall of pink bricks")
    graph = {**bench.base(texts[0]), "7": make_node("CLIPTextEncode", text=texts[1], clip=to("1", 1))}
    graph["8"] = make_node("ConditioningCombine", conditioning_1=to("2"), conditioning_2=to("7"))
    single = [bench.plan(graph, positive=to(n)).steps for n in ("2", "7")]
    both = bench.plan(graph, positive=to("8"))
    assert both.steps == max(single)
    assert [said.values["n"] for said in both.warnings if said.code == "prompts_each"] == [2]


def test_concatenated_and_averaged_prompts(bench: Any, make_node: Any, to: Any) -> None:
    concat = make_node("ConditioningConcat", conditioning_to=to("2"), conditioning_from=to("3"))
    average = make_node(
        "ConditioningAverage", conditioning_to=to("2"), conditioning_from=to("3"), conditioning_to_strength=0.5
    )
    for joined in (concat, average, make_node("ConditioningZeroOut", conditioning=to("2"))):
        assert bench.plan({**bench.base(), "7": joined}, positive=to("7")).fallback is None


def test_missing_pooled_output_is_a_warning(bench: Any, loaded: Any, make_node: Any, to: Any) -> None:
    tokens = loaded.encode("a red circle")[0][0]
    for extras in ({}, {"pooled_output": None}):
        given = make_node("GivenCONDITIONING", key=bench.value([[tokens, extras]]))
        plan = bench.plan({**bench.base(), "7": given}, positive=to("7"))
        assert plan.fallback is None
        assert "no_pooled" in codes(plan.warnings)


@pytest.mark.parametrize(
    ("conditioning", "reason"),
    [
        ([], "conditioning_empty"),
        ([["text", {}]], "conditioning_shape"),
        ([[torch.zeros(1, 0, 8), {}]], "conditioning_shape"),
        ([[torch.zeros(1, 5, 4096), {}]], "tokens_width"),
        ([[torch.zeros(77, 8), {}]], "conditioning_shape"),
    ],
)
def test_conditioning_that_cannot_be_read_falls_back(
    bench: Any, make_node: Any, to: Any, conditioning: Any, reason: str
) -> None:
    given = make_node("GivenCONDITIONING", key=bench.value(conditioning))
    plan = bench.plan({**bench.base(), "7": given}, positive=to("7"), max_steps=9)
    assert plan.steps == 9
    assert code(plan.fallback) == reason


def test_values_that_are_not_finite_fall_back(bench: Any, loaded: Any, make_node: Any, to: Any) -> None:
    tokens = loaded.encode("a red circle")[0][0].clone()
    tokens[0, 0, 0] = float("nan")
    given = make_node("GivenCONDITIONING", key=bench.value([[tokens, {}]]))
    plan = bench.plan({**bench.base(), "7": given}, positive=to("7"), max_steps=9)
    assert plan.steps == 9
    assert code(plan.fallback) == "tokens_not_finite"


def test_a_batch_of_prompts_is_planned_row_by_row(pack: Any, loaded: Any) -> None:
    entries = [loaded.encode(text)[0] for text in ("a red circle", "a blue square")]
    stacked = [
        [torch.cat([e[0] for e in entries]), {"pooled_output": torch.cat([e[1]["pooled_output"] for e in entries])}]
    ]
    prompts, notes = pack("host.conditioning").extract_all(stacked)
    assert len(prompts) == 2
    assert torch.equal(prompts[1].tokens, entries[1][0][0])
    assert torch.equal(prompts[1].pooled, entries[1][1]["pooled_output"][0])
    assert len(notes) == 1
