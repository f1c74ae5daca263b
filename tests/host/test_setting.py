"""Whatever moves the image is named where it differs from the calibration, through the host's own nodes."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import pytest
import torch

from tests.fixtures.said import code, codes


@pytest.fixture(scope="module", autouse=True)
def more_nodes(session: Any) -> None:
    for name in ("nodes_flux.py", "nodes_edit_model.py"):
        path = session.host_dir / "comfy_extras" / name
        session.wait(importlib.import_module("nodes").load_custom_node(str(path), module_parent="comfy_extras"))


@pytest.fixture
def conditioned(bench: Any, make_node: Any, to: Any) -> Any:
    """`conditioned(node, **inputs)`: the plan with this node between prompt and planner; node 4 is the latent."""

    def plan(class_type: str, **inputs: Any) -> Any:
        graph = {**bench.base(), "7": make_node(class_type, conditioning=to("2"), **inputs)}
        return bench.plan(graph, positive=to("7"))

    return plan


def test_flux_guidance(conditioned: Any, bench: Any, save_variant: Any, setting: Any) -> None:
    plan = conditioned("FluxGuidance", guidance=30.0)
    assert plan.fallback is None
    assert codes(plan.warnings) == ["added guidance"]
    save_variant("a_guided.safetensors", name="guided", setting=dataclasses.replace(setting, guidance=3.5))
    told = conditioned("FluxGuidance", guidance=30.0)
    assert (told.planner, codes(told.warnings)) == ("guided", ["differs guidance"])
    assert (told.warnings[0].values["was"], told.warnings[0].values["now"]) == (3.5, 30.0)
    same = conditioned("FluxGuidance", guidance=3.5)
    assert (same.planner, same.warnings) == ("guided", ())
    assert bench.plan().planner == "random planner", "auto takes the one without guidance"


def test_reference_latents(conditioned: Any, to: Any) -> None:
    plan = conditioned("ReferenceLatent", latent=to("4"))
    assert codes(plan.warnings) == ["added reference_latents"]


@pytest.mark.parametrize(
    ("extras", "kind"),
    [
        # as the host's GLIGEN Textbox Apply, unCLIP Conditioning, Wan and inpainting nodes write them
        ({"gligen": ("position", None, [(torch.zeros(1, 8), 4, 4, 0, 0)])}, "gligen"),
        ({"unclip_conditioning": [{"clip_vision_output": None, "strength": 1.0, "noise_augmentation": 0.0}]}, "unclip"),
        ({"audio_embed": torch.zeros(1, 4)}, "audio"),
        ({"concat_latent_image": torch.zeros(1, 4, 8, 8), "concat_mask": torch.zeros(1, 1, 8, 8)}, "concat_image"),
        ({"clip_vision_output": object()}, "clip_vision"),
        ({"width": 64, "height": 64, "crop_w": 0, "crop_h": 0, "target_width": 64}, "size_conditioning"),  # SDXL
        ({"hooks": object()}, "hooks"),
        ({"strength": 0.5}, "strength"),
        ({"seconds_total": 30.0}, "seconds_total"),
        ({"camera_conditions": torch.zeros(1, 4)}, "camera_conditions"),
        ({"a_key_of_next_year": {"x": torch.zeros(3)}}, "a_key_of_next_year"),
    ],
)
def test_what_the_conditioning_carries_is_named(
    bench: Any, loaded: Any, make_node: Any, to: Any, extras: dict[str, Any], kind: str
) -> None:
    (tokens, own), *_ = loaded.encode("a red circle")
    given = make_node("GivenCONDITIONING", key=bench.value([[tokens, {**own, **extras}]]))
    plan = bench.plan({**bench.base(), "7": given}, positive=to("7"))
    assert plan.fallback is None
    assert codes(plan.warnings) == [f"added {kind}"]


def test_a_noise_mask_tells_its_share(bench: Any, make_node: Any, to: Any) -> None:
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :8] = 1.0
    graph = {**bench.base(), "8": make_node("GivenMASK", key=bench.value(mask))}
    graph["7"] = make_node("SetLatentNoiseMask", samples=to("4"), mask=to("8"))
    run = bench.run({**graph, "5": bench.adaptive(latent_image=to("7"), max_steps=4)}, show="5")
    (said,) = (one for one in run.ui["5"]["receipt"][0]["warnings"] if code(one) != "max_too_low")
    assert code(said) == "added noise_mask"
    assert said["values"]["detail"] == " (12%)"


def test_a_connected_plan_is_checked_against_the_prompt_at_the_sampler(bench: Any, make_node: Any, to: Any) -> None:
    graph = {**bench.base(), "7": make_node("FluxGuidance", conditioning=to("2"), guidance=30.0), "6": bench.planner()}
    run = bench.run({**graph, "5": bench.adaptive(positive=to("7"), plan=to("6"), max_steps=4)}, show="5")
    receipt = run.ui["5"]["receipt"][0]
    assert receipt["fallback"] is None
    assert codes(receipt["warnings"]) == ["added guidance"]


def test_a_lora_that_was_there_at_calibration_is_no_news(
    bench: Any, loaded: Any, setting: Any, pack: Any, save_variant: Any, make_node: Any, to: Any
) -> None:
    model = loaded.model.clone()
    weight = "diffusion_model.out.2.weight"
    shape = model.model.diffusion_model.out[2].weight.shape
    model.add_patches({weight: ("diff", (torch.full(shape, 0.01),))})
    changes = pack("core.setting").change_keys(pack("host.identity").read_identity(model).changes)
    assert changes
    save_variant("a_lora.safetensors", name="with it", setting=dataclasses.replace(setting, changes=changes))
    graph = {**bench.base(), "7": make_node("GivenMODEL", key=bench.value(model))}
    plan = bench.plan(graph, model=to("7"), planner="a_lora.safetensors")
    assert (plan.fallback, plan.warnings) == (None, ())
    assert codes(bench.plan(graph, planner="a_lora.safetensors").warnings) == ["missing change"]


# ---------------------------------------------------------------------------------------- the sampling of the model

FLUX = {"max_shift": 1.15, "base_shift": 0.5}


@pytest.fixture
def patched(bench: Any, make_node: Any, to: Any) -> Any:
    """`patched(node, **inputs)`: the plan with this node between the model and the planner."""

    def plan(class_type: str, **inputs: Any) -> Any:
        graph = {**bench.base(), "7": make_node(class_type, model=to("1"), **inputs)}
        return bench.plan(graph, model=to("7"), sampler_name="euler", scheduler="simple")

    return plan


@pytest.fixture
def calibrated_with(save_variant: Any, setting: Any, loaded: Any, pack: Any) -> Any:
    """`calibrated_with(node, **inputs)`: saves a planner that was calibrated behind this node of the host."""

    def save(class_type: str, **inputs: Any) -> None:
        nodes = importlib.import_module("comfy_extras.nodes_model_advanced").NODE_CLASS_MAPPINGS
        node = nodes[class_type]()
        (model,) = getattr(node, node.FUNCTION)(loaded.model, **inputs)
        identity = pack("host.identity").read_identity(model)
        changed = {
            "sampling": identity.sampling.text(),
            "changes": pack("core.setting").change_keys(identity.changes),
        }
        own = dataclasses.replace(setting, sampler_name="euler", scheduler="simple", **changed)
        save_variant("a_shifted.safetensors", name="shifted", setting=own)

    return save


@pytest.mark.parametrize(
    ("node", "inputs"),
    [
        ("ModelSamplingDiscrete", {"sampling": "eps", "zsnr": False}),
        ("ModelSamplingDiscrete", {"sampling": "lcm", "zsnr": False}),
        ("ModelSamplingFlux", {**FLUX, "width": 64, "height": 64}),
        ("ModelSamplingSD3", {"shift": 3.0}),
    ],
)
def test_another_prediction_is_refused_by_its_name(patched: Any, node: str, inputs: dict[str, Any]) -> None:
    plan = patched(node, **inputs)
    assert code(plan.fallback) == "other_sampling"
    assert plan.fallback.values["was"].startswith("V_PREDICTION")


def test_another_noise_range_of_the_same_prediction_is_a_warning(
    patched: Any, calibrated_with: Any, bench: Any
) -> None:
    calibrated_with("ModelSamplingDiscrete", sampling="v_prediction", zsnr=False)
    same = patched("ModelSamplingDiscrete", sampling="v_prediction", zsnr=False)
    assert (same.fallback, same.warnings) == (None, ())
    assert codes(patched("ModelSamplingDiscrete", sampling="v_prediction", zsnr=True).warnings) == ["differs sampling"]


def test_another_shift_is_a_warning(patched: Any, calibrated_with: Any) -> None:
    calibrated_with("ModelSamplingSD3", shift=3.0)
    same, other = patched("ModelSamplingSD3", shift=3.0), patched("ModelSamplingSD3", shift=5.0)
    assert (same.planner, same.fallback, same.warnings) == ("shifted", None, ())
    assert (other.planner, other.fallback, codes(other.warnings)) == ("shifted", None, ["differs sampling"])


def test_a_shift_that_follows_from_the_size_is_a_size(
    bench: Any, make_node: Any, to: Any, calibrated_with: Any
) -> None:
    calibrated_with("ModelSamplingFlux", **FLUX, width=64, height=64)
    same = make_node("ModelSamplingFlux", model=to("1"), **FLUX, width=64, height=64)
    plan = bench.plan({**bench.base(), "7": same}, model=to("7"), sampler_name="euler", scheduler="simple")
    assert (plan.planner, plan.fallback, plan.warnings) == ("shifted", None, ())
    graph = {**bench.base(width=128), "7": make_node("ModelSamplingFlux", model=to("1"), **FLUX, width=128, height=64)}
    plan = bench.plan(graph, model=to("7"), sampler_name="euler", scheduler="simple")
    assert (plan.planner, plan.fallback, codes(plan.warnings)) == ("shifted", None, ["differs size"])
    steeper = make_node("ModelSamplingFlux", model=to("1"), max_shift=2.0, base_shift=1.0, width=64, height=64)
    plan = bench.plan({**bench.base(), "7": steeper}, model=to("7"), sampler_name="euler", scheduler="simple")
    assert (plan.fallback, codes(plan.warnings)) == (None, ["differs sampling"])
