"""The page's format read, and settings told, on graphs small enough to work out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from budgetfusion_nodes.command_line.page_format import to_prompt
from research.corpus.families import UNKNOWN, family_of, format_of
from research.corpus.swap import swap
from research.corpus.uses import uses_of

INFO: dict[str, Any] = {
    "Make": {"input": {"required": {"size": ["INT", {"default": 5}]}}},
    "Seeded": {"input": {"required": {"seed": ["INT", {"control_after_generate": True}], "mode": [["a", "b"], {}]}}},
    "Change": {"input": {"required": {"x": ["X", {}], "by": ["INT", {"default": 1}]}}},
    "Choose": {
        "input": {
            "required": {
                "how": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {"key": "fit", "inputs": {"required": {"side": ["INT", {}]}}},
                            {"key": "no", "inputs": {}},
                        ]
                    },
                ],
                "last": ["STRING", {}],
            }
        }
    },
    "Boxes": {"input": {"required": {"boxes": ["BOUNDING_BOXES", {}]}}},
    "BudgetFusion_AdaptiveKSampler": {"input": {"required": {"quality": ["FLOAT", {"default": 0.9}]}}},
    "BudgetFusion_BudgetPlanner": {"input": {"required": {"quality": ["FLOAT", {"default": 0.9}]}}},
}


def node(number: int, kind: str, values: list[Any] | None = None, mode: int = 0, **links: int) -> dict[str, Any]:
    slots = [{"name": name, "type": "X", "link": link} for name, link in links.items()]
    return {
        "id": number,
        "type": kind,
        "mode": mode,
        "inputs": slots,
        "outputs": [{"type": "X"}],
        "widgets_values": values or [],
    }


def chain(middle: dict[str, Any]) -> dict[str, Any]:
    """Make 1 -> middle 2 -> Change 3."""
    return {
        "nodes": [node(1, "Make", [7]), middle, node(3, "Change", [2], x=2)],
        "links": [[1, 1, 0, 2, 0, "X"], [2, 2, 0, 3, 0, "X"]],
    }


@pytest.mark.parametrize(
    ("middle", "source"),
    [
        (node(2, "Change", [4], x=1), ["2", 0]),
        (node(2, "Reroute", x=1), ["1", 0]),
        (node(2, "Change", [4], mode=4, x=1), ["1", 0]),
        (node(2, "Change", [4], mode=2, x=1), None),
        (node(2, "PrimitiveNode", [9]), 9),
    ],
)
def test_what_is_behind_a_link(middle: dict[str, Any], source: Any) -> None:
    assert to_prompt(chain(middle), INFO)["3"]["inputs"].get("x") == source


@pytest.mark.parametrize(
    ("kind", "values", "inputs"),
    [
        ("Make", [], {"size": 5}),
        ("Seeded", [12, "randomize", "b"], {"seed": 12, "mode": "b"}),
        ("Seeded", [12, "b"], {"seed": 12, "mode": "b"}),
        ("Choose", ["fit", 64, "end"], {"how": "fit", "how.side": 64, "last": "end"}),
        ("Choose", ["no", "end"], {"how": "no", "last": "end"}),
        ("Boxes", [[{"x": 1}]], {"boxes": {"__value__": [{"x": 1}]}}),
    ],
)
def test_widgets_by_the_order_of_the_definition(kind: str, values: list[Any], inputs: dict[str, Any]) -> None:
    assert to_prompt({"nodes": [node(1, kind, values)], "links": []}, INFO)["1"]["inputs"] == inputs


@pytest.mark.parametrize(("kept_outside", "by"), [([], 4), ([8], 8)])
def test_a_subgraph_and_its_promoted_widget(kept_outside: list[Any], by: int) -> None:
    """`by` of the node inside shows on the subgraph's node: its value is kept there, or inside."""
    inner = node(5, "Change", [4], x=10)
    inner["inputs"].append({"name": "by", "type": "INT", "link": 11, "widget": {"name": "by"}})
    definition = {
        "id": "sub",
        "nodes": [inner],
        "inputs": [{"name": "x", "linkIds": [10]}, {"name": "by", "linkIds": [11]}],
        "outputs": [{"name": "out", "linkIds": [12]}],
        "links": [
            {"id": 10, "origin_id": -10, "origin_slot": 0, "target_id": 5, "target_slot": 0},
            {"id": 11, "origin_id": -10, "origin_slot": 1, "target_id": 5, "target_slot": 1},
            {"id": 12, "origin_id": 5, "origin_slot": 0, "target_id": -20, "target_slot": 0},
        ],
    }
    page = {**chain(node(2, "sub", kept_outside, x=1)), "definitions": {"subgraphs": [definition]}}
    prompt = to_prompt(page, INFO)
    assert prompt["2:5"]["inputs"] == {"x": ["1", 0], "by": by}
    assert prompt["3"]["inputs"]["x"] == ["2:5", 0]
    assert set(prompt) == {"1", "2:5", "3"}


def api(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def two_experts(turbo: bool) -> dict[str, Any]:
    """One schedule split between two samplers; a switch puts a LoRA before the model."""
    return {
        "file": api("UNETLoader", unet_name="wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors"),
        "lora": api("LoraLoaderModelOnly", model=["file", 0], lora_name="x_4steps.safetensors", strength_model=1.0),
        "switch": api("ComfySwitchNode", switch=["on", 0], on_false=["file", 0], on_true=["lora", 0]),
        "on": api("PrimitiveBoolean", value=turbo),
        "steps": api("ComfySwitchNode", switch=["on", 0], on_false=20, on_true=4),
        "schedule": api("BasicScheduler", model=["switch", 0], scheduler="simple", steps=["steps", 0], denoise=1.0),
        "split": api("SplitSigmas", sigmas=["schedule", 0], step=["steps", 0]),
        "select": api("KSamplerSelect", sampler_name="euler"),
        "second": _custom(["split", 1], ["first", 0]),
        "first": _custom(["split", 0], ["latent", 0]),
        "latent": api("EmptyLatentImage"),
    }


def _custom(sigmas: list[Any], latent: list[Any]) -> dict[str, Any]:
    inputs = {"model": ["switch", 0], "positive": ["text", 0], "sampler": ["select", 0], "cfg": 3.5}
    return api("SamplerCustom", **inputs, sigmas=sigmas, latent_image=latent)


@pytest.mark.parametrize(("turbo", "loras", "steps"), [(True, ("x_4steps.safetensors",), 4), (False, (), 20)])
def test_a_setting_is_read_as_the_switches_stand(turbo: bool, loras: tuple[str, ...], steps: int) -> None:
    uses = {use.node: use for use in uses_of("g", two_experts(turbo))}
    first = uses["first"]
    assert (first.loras, first.steps, first.cfg) == (loras, steps, 3.5)
    assert (first.sampler_name, first.schedule, first.hand_set) == ("euler", "simple", False)
    assert (first.part, uses["second"].part) == ("first part", "second part")
    assert family_of(first.model_file).name == "Wan 2.2" and format_of(first.model_file) == "fp8"


def test_two_passes_of_one_schedule_take_the_plan_of_the_first() -> None:
    """Else the first pass would wait for a plan that waits for the first pass's picture."""
    swapped = swap(two_experts(False), INFO)
    assert swapped.prompt["schedule"]["inputs"]["steps"] == ["first-plan", 1]
    assert swapped.prompt["first-plan"]["inputs"]["max_steps"] == ["steps", 0], "the graph's own count is the limit"
    both = swap(two_experts(False), INFO, sigmas=True)
    assert both.prompt["split"]["inputs"]["sigmas"] == ["first-plan", 2], "split as before"
    assert both.prompt["first"]["inputs"]["sigmas"] == ["split", 0]
    assert both.prompt["second"]["inputs"]["sigmas"] == ["split", 1]


def test_a_file_of_no_known_family() -> None:
    assert family_of("my_finetune.safetensors") is UNKNOWN
    assert format_of("my_finetune.safetensors") == "unstated"
