"""Whatever moves the image is named where it differs from the calibration, through the host's own nodes."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import numpy as np
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


ODD: dict[str, dict[Any, Any]] = {
    "names that are no words": {1: 2, ("a",): 3},
    "a part that is no number": {"start_percent": None, "end_percent": "x"},
    "guidance in a tensor": {"guidance": torch.tensor(3.5)},
    "hooks of nobody": {"hooks": [1, 2]},
    "a control that is none": {"control": "x"},
    "no data": {"reference_latents": [torch.empty(1, 4, 8, 8, device="meta")]},
    "fp8": {"reference_latents": [torch.zeros(1, 4, 8, 8).to(torch.float8_e4m3fn)]},
    "arrays": {"x": np.zeros(4), "y": np.float32(3)},
}


@pytest.mark.parametrize("kind", ODD)
def test_whatever_other_packs_put_there_gets_a_plan(
    bench: Any, make_node: Any, to: Any, loaded: Any, kind: str
) -> None:
    prompt = [[tokens, {**extras, **ODD[kind]}] for tokens, extras in loaded.encode("a star")]
    given = make_node("GivenCONDITIONING", key=bench.value(prompt))
    plan = bench.plan({**bench.base(), "7": given}, positive=to("7"))
    assert plan.fallback is None
    assert plan.warnings or kind == "a part that is no number"


# ------------------------------------------------------------------------------------------------------ ControlNets


def network(seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)).to(device, dtype)


def control_net(seed: int = 0, hint: float = 0.5, kind: int | None = None, **options: Any) -> Any:
    """As ControlNet Loader, Set Union ControlNet Type and Apply ControlNet make it."""
    module = importlib.import_module("comfy.controlnet")
    control = module.ControlNet(network(seed, **options), load_device=torch.device("cpu"))
    if kind is not None:
        control.set_extra_arg("control_type", [kind])
    return control.set_cond_hint(torch.full((1, 3, 64, 64), hint), 0.8, (0.0, 1.0))


def control_lora(seed: int = 0) -> Any:
    module = importlib.import_module("comfy.controlnet")
    control = module.ControlLora(dict(network(seed).state_dict()))
    return control.set_cond_hint(torch.full((1, 3, 64, 64), 0.5), 0.8, (0.0, 1.0))


FP8 = torch.float8_e4m3fn


def test_controlnets_are_told_by_network_and_kind_of_hint(loaded: Any, pack: Any) -> None:
    read = pack("host.conditioning")

    def told(control: Any) -> tuple[Any, str]:
        prompt = [[tokens, {**extras, "control": control}] for tokens, extras in loaded.encode("a star")]
        return read.read_extras(prompt)[0], read.extras_digest(prompt)

    made = [control_net(), control_net(1), control_net(kind=0), control_net(kind=3), control_lora(), control_lora(1)]
    made += [control_net(dtype=FP8), control_net(1, dtype=FP8)]
    found = [told(control) for control in made]
    assert len({extras for extras, _ in found}) == len({digest for _, digest in found}) == len(made)
    assert told(control_net().copy().set_cond_hint(torch.full((1, 3, 64, 64), 0.5), 0.8, (0.0, 1.0))) == found[0]
    other = told(control_net(hint=0.6))
    assert other[0] == found[0][0], "the picture is no setting"
    assert other[1] != found[0][1]
    lora = control_lora()
    lora.control_model = network(3)  # as while it runs
    assert told(lora)[0] == found[4][0]


def test_another_controlnet_is_named(conditioned: Any, bench: Any, setting: Any, save_variant: Any, pack: Any) -> None:
    extras = pack("host.conditioning").read_extras([["", {"control": control_net()}]])[0]
    save_variant("a_control.safetensors", name="controlled", setting=dataclasses.replace(setting, extras=extras))
    prompt = bench.base()

    def planned(control: Any) -> Any:
        graph = {**prompt, "8": {"class_type": "GivenCONDITIONING", "inputs": {"key": bench.value(with_(control))}}}
        return bench.plan(graph, positive=["8", 0], planner="a_control.safetensors")

    def with_(control: Any) -> Any:
        return [[tokens, {**extra, "control": control}] for tokens, extra in encoded]

    encoded = bench.run({**prompt, "9": bench.planner()}).outputs["2"][0]
    del conditioned
    assert codes(planned(control_net(hint=0.7)).warnings) == []
    assert codes(planned(control_net(1)).warnings) == ["differs control"]
    hidden = planned(control_net(device="meta"))
    assert hidden.fallback is None
    assert codes(hidden.warnings) == ["differs control"]


def test_a_controlnet_that_cannot_be_read_is_not_calibrated_with(pack: Any, loaded: Any) -> None:
    renderer, errors = pack("calibration.host_renderer"), pack("core.errors")
    latent = {"samples": torch.zeros(1, 3, 64, 64)}
    extras = {"control": control_net(device="meta")}
    graph = renderer.Graph(
        loaded.model, loaded.clip, loaded.vae, loaded.encode(""), "euler", "normal", 3.0, latent, extras
    )
    with pytest.raises(errors.UnsupportedError, match="ControlNet"):
        graph.facts()
