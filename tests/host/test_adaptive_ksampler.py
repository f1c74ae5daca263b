"""Adaptive KSampler in the genuine host: the stock latent, bit for bit, and a plan that never stops a render."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from research.in_process_host import HostInterrupted, HostRunError, HostSession, interrupted_after
from tests.fixtures.said import code, codes, message_of


def stock(make_node: Any, to: Any, adaptive: dict[str, Any]) -> dict[str, Any]:
    """The stock KSampler with the same settings, and as many steps as the Adaptive KSampler 5 decided."""
    own = {"quality", "max_steps", "min_steps", "risk", "planner", "plan"}
    inputs = {key: value for key, value in adaptive["inputs"].items() if key not in own}
    return make_node("KSampler", steps=to("5", 1), **inputs)


@pytest.mark.parametrize(
    ("changes", "batch"),
    [
        ({}, 1),
        ({}, 3),
        ({"sampler_name": "heun", "max_steps": 4}, 1),
        ({"sampler_name": "euler_ancestral", "max_steps": 4}, 1),
        ({"scheduler": "ddim_uniform", "max_steps": 6}, 1),
        ({"denoise": 0.6}, 1),
        ({"denoise": 0.0}, 1),
    ],
    ids=["plain", "batch", "heun", "ancestral", "ddim_uniform", "denoise", "denoise 0"],
)
def test_latent_is_the_stock_ksamplers_bit_for_bit(
    bench: Any, make_node: Any, to: Any, changes: dict[str, Any], batch: int
) -> None:
    adaptive = bench.adaptive(**changes)
    graph = {**bench.base(batch=batch), "5": adaptive, "6": stock(make_node, to, adaptive)}
    run = bench.run({**graph, "7": make_node("PreviewAny", source=to("6"))})
    ours, theirs = run.outputs["5"][0]["samples"], run.outputs["6"][0]["samples"]
    assert torch.equal(ours, theirs)
    assert ours.shape == (batch, 3, 64, 64)
    assert run.outputs["5"][1] == run.ui["5"]["budget_plan"][0]["steps"]


def test_noise_mask_and_encoded_picture(bench: Any, make_node: Any, to: Any) -> None:
    adaptive = bench.adaptive(latent_image=to("12"), denoise=0.7)
    graph = {
        **bench.base(),
        "9": make_node("EmptyImage", width=64, height=64, batch_size=1, color=0x3366CC),
        "10": make_node("VAEEncode", pixels=to("9"), vae=to("1", 2)),
        "11": make_node("SolidMask", value=1.0, width=32, height=64),
        "12": make_node("SetLatentNoiseMask", samples=to("10"), mask=to("11")),
        "5": adaptive,
        "6": stock(make_node, to, adaptive),
    }
    run = bench.run(graph, show="6")
    assert "noise_mask" in run.outputs["5"][0]
    assert torch.equal(run.outputs["5"][0]["samples"], run.outputs["6"][0]["samples"])
    assert not torch.equal(run.outputs["5"][0]["samples"], run.outputs["10"][0]["samples"])


def test_lora(bench: Any, loaded: Any, session: HostSession, make_node: Any, to: Any) -> None:
    weights = loaded.model.model.diffusion_model.state_dict()
    key = next(key for key in sorted(weights) if key.endswith("attn2.to_v.weight"))
    rows, columns = weights[key].shape
    made = torch.Generator().manual_seed(0)
    lora = {
        f"diffusion_model.{key.removesuffix('.weight')}.lora_up.weight": torch.randn(rows, 2, generator=made),
        f"diffusion_model.{key.removesuffix('.weight')}.lora_down.weight": torch.randn(2, columns, generator=made),
    }
    folder = session.base_dir / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(lora, folder / "tiny.safetensors")
    with_lora = make_node(
        "LoraLoader",
        model=to("1"),
        clip=to("1", 1),
        lora_name="tiny.safetensors",
        strength_model=1.0,
        strength_clip=1.0,
    )
    adaptive = bench.adaptive(model=to("9"))
    graph = {**bench.base(), "9": with_lora, "5": adaptive, "6": stock(make_node, to, adaptive)}
    graph["10"] = bench.adaptive()
    run = bench.run({**graph, "11": make_node("PreviewAny", source=to("10"))}, show="6")
    ours, theirs, plain = (run.outputs[node][0]["samples"] for node in ("5", "6", "10"))
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, plain), "the LoRA was not applied"
    assert run.outputs["5"][1] == run.outputs["10"][1], "the plan is the checkpoint's own"
    receipt, plain_receipt = (run.ui[node]["receipt"][0] for node in ("5", "10"))
    assert receipt["fallback"] is None
    assert "model_lora" in codes(receipt["warnings"])
    assert "model_lora" not in codes(plain_receipt["warnings"])


def control_net() -> Any:
    """The host's own kind of ControlNet, whose answer is the hint's mean in the middle of the UNet."""
    control = importlib.import_module("comfy.controlnet")

    class MeanOfHint(control.ControlBase):
        def copy(self) -> Any:
            made = MeanOfHint()
            self.copy_to(made)
            return made

        def get_control(self, x_noisy: Any, t: Any, cond: Any, batched_number: Any, transformer_options: Any) -> Any:
            del t, cond, batched_number, transformer_options
            value = self.cond_hint_original.mean() * self.strength
            return {"middle": [value.expand(x_noisy.shape[0], 1, 1, 1)]}

    return MeanOfHint()


def test_controlnet(bench: Any, make_node: Any, to: Any) -> None:
    given = make_node("GivenCONTROL_NET", key=bench.value(control_net()))
    applied = make_node(
        "ControlNetApplyAdvanced",
        positive=to("2"),
        negative=to("3"),
        control_net=to("9"),
        image=to("8"),
        strength=1.0,
        start_percent=0.0,
        end_percent=1.0,
    )
    adaptive = bench.adaptive(positive=to("10"), negative=to("10", 1))
    graph = {
        **bench.base(),
        "8": make_node("EmptyImage", width=64, height=64, batch_size=1, color=0xFFFFFF),
        "9": given,
        "10": applied,
        "5": adaptive,
        "6": stock(make_node, to, adaptive),
        "11": bench.adaptive(),
        "12": make_node("PreviewAny", source=to("11")),
    }
    run = bench.run(graph, show="6")
    ours, theirs, plain = (run.outputs[node][0]["samples"] for node in ("5", "6", "11"))
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, plain), "the ControlNet was not applied"
    assert "added control" in codes(run.ui["5"]["receipt"][0]["warnings"])


def test_a_chain_of_controlnets_is_told_whole(bench: Any, make_node: Any, to: Any) -> None:
    given = make_node("GivenCONTROL_NET", key=bench.value(control_net()))
    graph = {**bench.base(), "8": make_node("EmptyImage", width=64, height=64, batch_size=1, color=0), "9": given}
    rest = {"control_net": to("9"), "image": to("8"), "start_percent": 0.0}
    ends = {"positive": to("2"), "negative": to("3"), "strength": 0.5, "end_percent": 0.6}
    graph["10"] = make_node("ControlNetApplyAdvanced", **rest, **ends)
    ends = {"positive": to("10"), "negative": to("10", 1), "strength": 1.0, "end_percent": 1.0}
    graph["11"] = make_node("ControlNetApplyAdvanced", **rest, **ends)
    (said,) = (one for one in bench.plan(graph, positive=to("11")).warnings if code(one) == "added control")
    assert said.values["detail"] == " (1 + 0.5 0% - 60%)"


def test_flow_model(bench: Any, make_node: Any, to: Any) -> None:
    """A checkpoint sampled as a flow is another model to a planner: all steps, the reason, and the stock latent."""
    flow = make_node("ModelSamplingSD3", model=to("1"), shift=3.0)
    adaptive = bench.adaptive(model=to("9"), sampler_name="euler", scheduler="simple", max_steps=4)
    graph = {**bench.base(), "9": flow, "5": adaptive, "6": stock(make_node, to, adaptive)}
    run = bench.run(graph, show="6")
    ours = run.outputs["5"][0]["samples"]
    assert torch.equal(ours, run.outputs["6"][0]["samples"])
    assert torch.isfinite(ours).all()
    assert run.outputs["5"][1] == 4
    assert code(run.ui["5"]["receipt"][0]["fallback"]) == "other_sampling"


def test_planner_for_a_flow_model(
    bench: Any, loaded: Any, setting: Any, pack: Any, save_variant: Any, make_node: Any, to: Any
) -> None:
    """A planner that was calibrated on the flow plans it, by its own name and automatically."""
    shifted = importlib.import_module("comfy_extras.nodes_model_advanced").ModelSamplingSD3().patch(loaded.model, 3.0)
    sampling = pack("host.identity").read_identity(shifted[0]).sampling.text()
    assert sampling != setting.sampling
    own = dataclasses.replace(setting, sampling=sampling, sampler_name="euler", scheduler="simple")
    save_variant("flow.safetensors", name="flow planner", setting=own)
    flow = make_node("ModelSamplingSD3", model=to("1"), shift=3.0)
    adaptive = bench.adaptive(model=to("9"), sampler_name="euler", scheduler="simple", max_steps=50, quality=0.5)
    graph = {**bench.base(), "9": flow, "5": adaptive, "6": stock(make_node, to, adaptive)}
    run = bench.run(graph, show="6")
    assert torch.equal(run.outputs["5"][0]["samples"], run.outputs["6"][0]["samples"])
    (plan,) = run.ui["5"]["budget_plan"]
    assert plan["fallback"] is None
    assert plan["planner"] == "flow planner"
    assert run.outputs["5"][1] == plan["steps"] < 50


def test_plans_by_itself_and_writes_a_receipt(bench: Any) -> None:
    run = bench.run({**bench.base(), "5": bench.adaptive(max_steps=50)}, show="5")
    (plan,), (receipt,), (text,) = (run.ui["5"][key] for key in ("budget_plan", "receipt", "text"))
    assert plan["fallback"] is None
    assert 2 <= plan["steps"] < 50
    assert receipt["steps"] == receipt["nfe"] == plan["steps"] == run.outputs["5"][1]
    assert receipt["saved_vs_20"] == pytest.approx(1 - plan["steps"] / 20)
    assert receipt["seconds"] > 0
    assert receipt["seconds_per_step"] == pytest.approx(receipt["seconds"] / plan["steps"])
    assert receipt["seconds_saved_vs_max"] == pytest.approx(receipt["seconds_per_step"] * (50 - plan["steps"]))
    assert text == run.outputs["5"][2]
    assert f"{plan['steps']} of 50 steps" in text
    assert "Planner: random planner" in text


def test_steps_follow_quality(bench: Any) -> None:
    steps = [bench.plan(quality=q).steps for q in (0.5, 0.7, 0.9, 0.99)]
    assert steps == sorted(steps)
    assert steps[0] < steps[-1]


def test_max_and_min_steps_bound_the_plan(bench: Any) -> None:
    assert bench.plan(quality=0.95, max_steps=9).steps == 9
    assert bench.plan(quality=0.5, min_steps=40).steps == 40


@pytest.mark.parametrize(
    ("sampler", "reason"),
    [
        ("euler_ancestral", "sampler_noisy"),
        ("er_sde", "sampler_noisy"),
        ("dpm_adaptive", "sampler_adaptive"),
        ("euler", "other_sampler"),
    ],
)
def test_sampler_that_cannot_be_planned_renders_max_steps(bench: Any, sampler: str, reason: str) -> None:
    run = bench.run({**bench.base(), "5": bench.adaptive(sampler_name=sampler, max_steps=3)}, show="5")
    (receipt,), (text,) = run.ui["5"]["receipt"], run.ui["5"]["text"]
    assert run.outputs["5"][1] == receipt["max_steps"] == 3
    assert code(receipt["fallback"]) == reason
    assert message_of(receipt["fallback"]).text() in text
    assert torch.isfinite(run.outputs["5"][0]["samples"]).all()


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"cfg": 5.0}, "differs cfg"),
        ({"scheduler": "normal"}, "differs scheduler"),
        ({"denoise": 0.5}, "differs denoise"),
    ],
)
def test_another_setting_is_a_warning(bench: Any, changes: dict[str, Any], warning: str) -> None:
    run = bench.run({**bench.base(), "5": bench.adaptive(max_steps=4, quality=0.5, **changes)}, show="5")
    (receipt,) = run.ui["5"]["receipt"]
    assert receipt["fallback"] is None
    assert codes(receipt["warnings"]).count(warning) == 1
    assert all(message_of(said).text() in run.ui["5"]["text"][0] for said in receipt["warnings"])


def test_another_precision_is_a_warning_and_auto_takes_the_planner_of_ones_own(
    bench: Any, setting: Any, save_variant: Any
) -> None:
    """Rounding is part of every distance: a sweep in bf16 needs up to half as many steps again."""
    rough = dataclasses.replace(setting, precision="bf16")
    save_variant("rough.safetensors", name="rough planner", setting=rough)
    run = bench.run({**bench.base(), "5": bench.adaptive(max_steps=4, planner="rough.safetensors")}, show="5")
    (receipt,) = run.ui["5"]["receipt"]
    assert receipt["fallback"] is None
    assert "differs precision" in codes(receipt["warnings"])
    run = bench.run({**bench.base(), "5": bench.adaptive(max_steps=4)}, show="5")
    assert run.ui["5"]["budget_plan"][0]["planner"] == "random planner"
    assert "differs precision" not in codes(run.ui["5"]["receipt"][0]["warnings"])


def test_another_size_is_a_warning(bench: Any) -> None:
    plan = bench.plan(bench.base(width=128))
    assert codes(plan.warnings) == ["differs size"]
    assert (plan.warnings[0].values["was"], plan.warnings[0].values["now"]) == ("64 x 64", "128 x 64")
    assert bench.plan(bench.base(width=64)).warnings == ()


def test_connected_plan_overrides(bench: Any, to: Any) -> None:
    graph = {**bench.base(), "9": bench.planner(quality=0.6), "5": bench.adaptive(max_steps=3, plan=to("9"))}
    run = bench.run(graph, show="5")
    plan = run.outputs["9"][0]
    assert plan.steps > 3, "the node's own max_steps would have stopped at 3"
    assert run.outputs["5"][1] == run.ui["5"]["receipt"][0]["steps"] == plan.steps
    assert run.ui["5"]["budget_plan"][0]["quality"] == 0.6


def test_connected_plan_for_another_sampler_is_not_obeyed(bench: Any, to: Any) -> None:
    plan = bench.planner(quality=0.6, max_steps=7)
    graph = {**bench.base(), "9": plan, "5": bench.adaptive(sampler_name="euler", plan=to("9"))}
    run = bench.run(graph, show="5")
    assert run.outputs["5"][1] == 7
    assert code(run.ui["5"]["receipt"][0]["fallback"]) == "other_sampler"


def test_something_that_is_no_plan(bench: Any, make_node: Any, to: Any) -> None:
    given = make_node("GivenBUDGET_PLAN", key=bench.value({"steps": 3}))
    run = bench.run({**bench.base(), "9": given, "5": bench.adaptive(max_steps=3, plan=to("9"))}, show="5")
    assert code(run.ui["5"]["receipt"][0]["fallback"]) == "not_a_plan"


def test_unforeseen_fault_of_ours_does_not_stop_a_render(
    bench: Any, pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(pack("planning.service"), "extract_all", broken)
    run = bench.run({**bench.base(), "5": bench.adaptive(max_steps=3, seed=99)}, show="5")
    assert run.outputs["5"][1] == 3
    said = run.ui["5"]["receipt"][0]["fallback"]["values"]["error"]
    assert said.startswith("ZeroDivisionError: a bug [planning/service.py "), "what failed, and in which stage"


@pytest.mark.parametrize(("function", "count"), [("read_identity", 7), ("as_plan", 3)])
def test_unforeseen_fault_with_a_connected_plan_does_not_stop_a_render(
    bench: Any, pack: Any, to: Any, monkeypatch: pytest.MonkeyPatch, function: str, count: int
) -> None:
    graph = {**bench.base(), "9": bench.planner(quality=0.6, max_steps=7)}
    plan = bench.run(graph, show="9").outputs["9"][0]
    assert plan.fallback is None

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(pack("planning.service"), function, broken)
    run = bench.run({**graph, "5": bench.adaptive(max_steps=3, seed=98, plan=to("9"))}, show="5")  # 9: from the cache
    assert run.outputs["5"][1] == count
    said = run.ui["5"]["receipt"][0]["fallback"]["values"]["error"]
    assert said.startswith("ZeroDivisionError: a bug [planning/service.py "), "what failed, and in which stage"


def test_cancel_stops_it(bench: Any) -> None:
    graph = {**bench.base(), "5": bench.adaptive(seed=77, quality=0.9, max_steps=50)}
    with interrupted_after(2) as seen, pytest.raises(HostInterrupted):
        bench.run(graph, show="5")
    assert len(seen) <= 4
    assert bench.run(graph, show="5").outputs["5"][1] > 4, "the next run is not interrupted"


def test_batch_of_nothing(bench: Any, make_node: Any, to: Any) -> None:
    given = make_node("GivenLATENT", key=bench.value({"samples": torch.zeros(0, 3, 64, 64)}))
    with pytest.raises(HostRunError, match=r"latent_image holds no image.*Set batch_size"):
        bench.run({**bench.base(), "9": given, "5": bench.adaptive(latent_image=to("9"))}, show="5")


def test_progress_and_previews_are_the_hosts(bench: Any) -> None:
    run = bench.run({**bench.base(), "5": bench.adaptive(max_steps=4, quality=0.99)}, show="5")
    values = [data["value"] for event, data in run.messages if event == "progress" and data["node"] == "5"]
    assert (values[0], values[-1]) == (1, 4)  # newer hosts leave some out when steps are quick
    assert values == sorted(values)


def test_previews_are_the_stock_ksamplers(bench: Any, make_node: Any, to: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    latent_preview = importlib.import_module("latent_preview")
    args = importlib.import_module("comfy.cli_args")
    monkeypatch.setattr(args.args, "preview_method", args.LatentPreviewMethod.Latent2RGB)
    if hasattr(latent_preview, "default_preview_method"):  # newer hosts read it once
        monkeypatch.setattr(latent_preview, "default_preview_method", args.LatentPreviewMethod.Latent2RGB)
    utils = importlib.import_module("comfy.utils")
    before, shown = utils.PROGRESS_BAR_HOOK, {}

    def hook(value: int, total: int, preview: Any, **kwargs: Any) -> None:
        context = importlib.import_module("comfy_execution.utils").get_executing_context()
        if preview is not None:
            shown.setdefault(context.node_id, []).append((value, preview[1].tobytes()))
        before(value, total, preview, **kwargs)

    monkeypatch.setattr(utils, "PROGRESS_BAR_HOOK", hook)
    adaptive = bench.adaptive(max_steps=4, quality=0.99, seed=31)
    bench.run({**bench.base(), "5": adaptive, "6": stock(make_node, to, adaptive)}, show="6")
    assert len(shown["5"]) == 4
    assert shown["5"] == shown["6"]
