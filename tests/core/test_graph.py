"""Files above a node, in API graphs as the page sends them."""

from __future__ import annotations

from typing import Any

import pytest

from budgetfusion_nodes.core.graph import files_above, spaced_elsewhere


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


GRAPH = {
    "1": node("UNETLoader", unet_name="base.safetensors", weight_dtype="default"),
    "2": node("LoraLoaderModelOnly", model=["1", 0], lora_name="x-4steps.safetensors", strength_model=1.0),
    "3": node("LoraLoader", model=["2", 0], clip=["8", 0], lora_name="off.safetensors", strength_model=0),
    "4": node(
        "Power Lora Loader",
        model=["3", 0],
        lora_1={"on": True, "lora": "on.safetensors", "strength": 1},
        lora_2={"on": False, "lora": "no.safetensors", "strength": 1},
    ),
    "5": node("ModelSamplingSD3", model=["4", 0], shift=3.0),
    "6": node("CLIPTextEncode", clip=["8", 0], text="turbo.safetensors is only a word"),
    "8": node("CLIPLoader", clip_name="clip_turbo.safetensors"),
    "9": node("BudgetFusion_AdaptiveKSampler", model=["5", 0], positive=["6", 0], seed=1),
    "10": node("Merge", model1=["1", 0], model2=["11", 0]),
    "11": node("CheckpointLoaderSimple", ckpt_name="second.ckpt"),
    "12": node("BudgetFusion_AdaptiveKSampler", model=["10", 0]),
}


def test_every_file_on_the_way_of_the_model_and_no_other() -> None:
    assert files_above(GRAPH, "9") == ("on.safetensors", "x-4steps.safetensors", "base.safetensors")
    assert files_above(GRAPH, "12") == ("base.safetensors", "second.ckpt")


@pytest.mark.parametrize(
    ("prompt", "node_id"),
    [
        (None, "9"),
        ({}, "9"),
        (GRAPH, "77"),
        (GRAPH, None),
        ({"9": 3}, "9"),
        ({"9": {"inputs": {"model": "text"}}}, "9"),
    ],
)
def test_what_is_no_graph_gives_nothing(prompt: Any, node_id: Any) -> None:
    assert files_above(prompt, node_id) == ()


def test_a_circle_ends() -> None:
    graph = {"1": node("A", model=["2", 0], lora_name="a.safetensors"), "2": node("B", model=["1", 0])}
    assert files_above(graph, "2") == ("a.safetensors",)


COUNTS = (1, 3)
PLANNED = {
    "p": node("BudgetFusion_BudgetPlanner"),
    "a": node("BudgetFusion_AdaptiveKSampler", plan=["p", 0]),
    "k": node("KSampler", steps=20, latent_image=["a", 0]),
    "c": node("SamplerCustom", sigmas=["p", 2]),
    "show": node("PreviewAny", source=["p", 1]),
}


@pytest.mark.parametrize(
    ("more", "elsewhere"),
    [
        ({}, False),
        ({"k": node("KSampler", steps=["p", 1])}, True),
        ({"k": node("KSamplerAdvanced", steps=["12:m", 0]), "12:m": node("MathInt", a=["p", 1], b=0)}, True),
        ({"s": node("BasicScheduler", steps=["p", 1])}, True),
        ({"k": node("KSamplerAdvanced", steps=["q", 1], end_at_step=["p", 3])}, True),
        ({"s": node("SplitSigmas", sigmas=["p", 2], step=["p", 3])}, False),
        ({"s": node("BasicScheduler", steps=["other", 1]), "other": node("BudgetFusion_BudgetPlanner")}, False),
        ({"k": node("KSampler", steps=["a", 1])}, False),
        ({"x": node("Loop", a=["y", 0], b=["p", 1]), "y": node("Loop", a=["x", 0])}, False),
    ],
)
def test_whether_a_count_ends_where_steps_are_spaced(more: dict[str, Any], elsewhere: bool) -> None:
    assert spaced_elsewhere({**PLANNED, **more}, "p", COUNTS) is elsewhere


@pytest.mark.parametrize("prompt", [None, {}, {"p": None}, {"k": {"inputs": {"steps": ["p"]}}}, {"k": {"inputs": []}}])
def test_no_graph_is_no_reason_to_fail_for_outputs_either(prompt: Any) -> None:
    assert spaced_elsewhere(prompt, "p", COUNTS) is False
