"""One identity whatever a model is patched with, now or in an earlier run; merges are models of their own."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from research.tiny_scenes_training.training_model import make_random_checkpoint
from tests.fixtures.changes import BLOCK, host_node, named
from tests.fixtures.said import code
from tests.fixtures.said import codes as said

SHIPPED = Path(__file__).parents[2] / "weights"


@pytest.fixture
def fresh(session: Any, loaded: Any) -> Any:
    """The random checkpoint, loaded for this test alone."""
    del loaded
    return load(session.base_dir / "models" / "checkpoints" / "random.safetensors")


@pytest.fixture
def other(pack: Any, tmp_path: Any, session: Any) -> Any:
    del session
    return load(make_random_checkpoint(tmp_path / "other.safetensors", seed=1))


def load(path: Any) -> Any:
    with torch.inference_mode():
        return sys.modules["comfy.sd"].load_checkpoint_guess_config(str(path))[0]


def on_device(model: Any) -> None:
    """Patched and loaded, as a render leaves it."""
    with torch.inference_mode():
        sys.modules["comfy.model_management"].load_models_gpu([model])


def codes(identity: Any) -> list[str]:
    return [change.code for change in identity.changes]


# ---------------------------------------------------------------------------------------------------- torch.compile


def compiled_network(model: Any) -> Any:
    """What older compile nodes do: the compiled network as an object patch."""
    made = model.clone()
    made.add_object_patch("diffusion_model", torch.compile(model.model.diffusion_model, backend="eager"))
    return made


def compiled_blocks(model: Any) -> Any:
    """What compile nodes of other packs do for each block."""
    made = model.clone()
    made.add_object_patch(BLOCK, torch.compile(model.get_model_object(BLOCK), backend="eager"))
    return made


def compiled_by_wrapper(model: Any) -> Any:
    made = model.clone()
    helpers = importlib.import_module("comfy_api.torch_helpers")
    helpers.set_torch_compile_wrapper(model=made, backend="eager", keys=["diffusion_model"])
    return made


@pytest.mark.parametrize("compiled", [compiled_network, compiled_blocks, compiled_by_wrapper])
def test_compiling_changes_nothing(fresh: Any, read: Any, compiled: Any) -> None:
    """Before, while and after the compiled model is loaded; for itself and for the plain model."""
    plain = read(fresh)
    model = compiled(fresh)
    assert read(model) == plain
    on_device(model)
    assert read(model) == plain
    assert read(fresh) == plain
    on_device(fresh)
    assert read(fresh) == plain


def test_first_read_while_compiled(fresh: Any, read: Any, loaded: Any) -> None:
    """Nothing of the model was seen before its keys were renamed."""
    on_device(compiled_network(fresh))
    assert any("_orig_mod" in key for key in fresh.model.state_dict())
    assert read(fresh).fingerprint == read(loaded.model).fingerprint


def test_compiled_model_gets_a_plan_in_both_runs(bench: Any, make_node: Any, to: Any, fresh: Any) -> None:
    model = compiled_network(fresh)
    for given in (model, model, fresh):
        key = make_node("GivenMODEL", key=bench.value(given))
        with torch.compiler.set_stance("force_eager"):  # the module stays wrapped; compiling would take a minute
            run = bench.run({**bench.base(), "7": key, "5": bench.adaptive(model=to("7"), max_steps=50)}, show="5")
        (plan,) = run.ui["5"]["budget_plan"]
        assert plan["fallback"] is None
        assert plan["warnings"] == bench.plan().to_dict()["warnings"]


def test_another_network_as_object_patch_is_another_model(fresh: Any, other: Any, read: Any) -> None:
    model = fresh.clone()
    model.add_object_patch("diffusion_model", other.model.diffusion_model)
    assert read(model).fingerprint == read(other).fingerprint != read(fresh).fingerprint


# ----------------------------------------------------------------------------------------------------- weight patches


def lora(model: Any, strength: float, adapters: int = 1) -> Any:
    """LoRA adapters of the host's own class on the attention."""
    adapter = importlib.import_module("comfy.weight_adapter").LoRAAdapter
    keys = [k for k in model.model_state_dict() if "attn" in k and k.endswith("weight")]
    made = model.clone()
    for seed in range(adapters):
        torch.manual_seed(seed)
        patches = {}
        for key in keys:
            rows, columns = model.model_state_dict()[key].shape
            weights = (torch.randn(rows, 4), torch.randn(4, columns), 4.0, None, None, None)
            patches[key] = adapter(set(), weights)
        made.add_patches(patches, strength)
    return made


@pytest.mark.parametrize("adapters", [1, 2])
def test_lora(fresh: Any, read: Any, adapters: int) -> None:
    plain = read(fresh)
    model = lora(fresh, 3.0, adapters)
    for _ in range(2):
        assert read(model).fingerprint == plain.fingerprint
        assert f" {adapters} LoRA" in named(read(model), "model_lora")
        assert read(fresh) == plain
        on_device(model)
    assert model.backup, "the host has baked it in"


def test_lora_at_strength_0_is_no_change(fresh: Any, read: Any) -> None:
    assert read(lora(fresh, 0.0)) == read(fresh)


def test_bypass_lora(fresh: Any, read: Any) -> None:
    plain = read(fresh)
    key = next(k for k in fresh.model_state_dict() if "attn" in k and k.endswith("to_q.weight"))
    rows, columns = fresh.model_state_dict()[key].shape
    name = "lora_unet_" + key.removeprefix("diffusion_model.").removesuffix(".weight").replace(".", "_")
    weights = {f"{name}.lora_up.weight": torch.ones(rows, 2), f"{name}.lora_down.weight": torch.ones(2, columns)}
    model, _ = sys.modules["comfy.sd"].load_bypass_lora_for_models(fresh, None, weights, 1.0, 0.0)
    assert model.injections
    for _ in range(2):
        assert read(model).fingerprint == plain.fingerprint
        assert "bypass" in named(read(model), "model_bypass_lora")
        assert read(fresh) == plain
        on_device(model)


def _written_over(a: Any, b: Any) -> Any:
    made = a.clone()
    weights = b.model_state_dict()
    made.add_patches({k: ("set", (w,)) for k, w in weights.items() if k.startswith(BLOCK) and w.ndim > 1})
    return made


MERGES: dict[str, Callable[[Any, Any], Any]] = {
    "half": lambda a, b: host_node("comfy_extras.nodes_model_merging", "ModelMergeSimple").merge(a, b, 0.5)[0],
    "little": lambda a, b: host_node("comfy_extras.nodes_model_merging", "ModelMergeSimple").merge(a, b, 0.99)[0],
    "blocks": lambda a, b: host_node("comfy_extras.nodes_model_merging", "ModelMergeBlocks").merge(
        a, b, input=1.0, middle=0.0, out=1.0
    )[0],
    "sum": lambda a, b: host_node("comfy_extras.nodes_model_merging", "ModelAdd").merge(a, b)[0],
    "difference": lambda a, b: host_node("comfy_extras.nodes_model_merging", "ModelSubtract").merge(a, b, 1.0)[0],
    "written over": _written_over,
}


@pytest.mark.parametrize("kind", MERGES)
def test_a_merge_is_a_model_of_its_own(fresh: Any, other: Any, read: Any, kind: str, pack: Any) -> None:
    merged = MERGES[kind](fresh, other)
    found = read(merged)
    assert found.fingerprint not in (None, read(fresh).fingerprint, read(other).fingerprint)
    assert "merge" in named(found, "model_merge")
    assert read(MERGES[kind](fresh, other)).fingerprint == found.fingerprint, "a planner for it is found again"
    assert pack("host.identity").former_fingerprint(merged) is None
    on_device(merged)
    assert read(merged).fingerprint == found.fingerprint
    assert read(fresh).fingerprint != found.fingerprint


def test_merges_differ_by_ratio_and_by_model(fresh: Any, other: Any, read: Any, pack: Any, tmp_path: Any) -> None:
    third = load(make_random_checkpoint(tmp_path / "third.safetensors", seed=2))
    merge = host_node("comfy_extras.nodes_model_merging", "ModelMergeSimple").merge
    found = [read(merge(fresh, b, ratio)[0]).fingerprint for b in (other, third) for ratio in (0.3, 0.5)]
    assert len(set(found)) == 4


def test_ratio_0_is_the_second_model_and_1_the_first(fresh: Any, other: Any, read: Any) -> None:
    merge = host_node("comfy_extras.nodes_model_merging", "ModelMergeSimple").merge
    assert read(merge(fresh, other, 0.0)[0]).fingerprint == read(other).fingerprint
    assert read(merge(fresh, other, 1.0)[0]) == read(fresh)
    with_lora = read(merge(fresh, lora(other, 1.0), 0.0)[0])
    assert with_lora.fingerprint == read(other).fingerprint
    assert codes(with_lora) == ["model_merge", "model_lora"]


def test_a_merge_gets_no_plan_of_its_parts(bench: Any, make_node: Any, to: Any, loaded: Any, other: Any) -> None:
    for ratio in (0.0, 0.5):
        merged = host_node("comfy_extras.nodes_model_merging", "ModelMergeSimple").merge(loaded.model, other, ratio)[0]
        given = make_node("GivenMODEL", key=bench.value(merged))
        plan = bench.plan({**bench.base(), "7": given}, model=to("7"), max_steps=9)
        assert plan.steps == 9
        assert (code(plan.fallback), said(plan.warnings)) == ("no_planner_of_name", ["model_merge"])


# -------------------------------------------------------------------------------------------------------- staleness


def test_weights_changed_in_place_are_seen(fresh: Any, read: Any) -> None:
    before = read(fresh).fingerprint
    with torch.inference_mode():
        for weight in fresh.model.diffusion_model.parameters():
            weight.neg_()
    assert read(fresh).fingerprint != before


def test_modules_put_in_place_are_seen(fresh: Any, other: Any, read: Any) -> None:
    before = read(fresh).fingerprint
    fresh.model.diffusion_model.middle_block[1] = other.model.diffusion_model.middle_block[1]
    assert read(fresh).fingerprint != before


def test_no_model_is_kept_alive(read: Any, session: Any, loaded: Any) -> None:
    del loaded
    model = load(session.base_dir / "models" / "checkpoints" / "random.safetensors")
    read(model)
    inner = weakref.ref(model.model.diffusion_model)
    del model
    gc.collect()
    assert inner() is None


# ----------------------------------------------------------------------------------------------------------- sampling


def sampling_patches(model: Any) -> dict[str, Any]:
    nodes = "comfy_extras.nodes_model_advanced"
    return {
        "V_PREDICTION": host_node(nodes, "ModelSamplingDiscrete").patch(model, "v_prediction", True)[0],
        "EPS": host_node(nodes, "ModelSamplingDiscrete").patch(model, "eps", False)[0],
        "LCM": host_node(nodes, "ModelSamplingDiscrete").patch(model, "lcm", False)[0],
        "EDM": host_node(nodes, "ModelSamplingContinuousEDM").patch(model, "edm", 80.0, 0.002)[0],
        "shift 3": host_node(nodes, "ModelSamplingSD3").patch(model, 3.0)[0],
        "shift 5": host_node(nodes, "ModelSamplingSD3").patch(model, 5.0)[0],
        "shift 1.15": host_node(nodes, "ModelSamplingFlux").patch(model, 1.15, 0.5, 1024, 1024)[0],
    }


def test_sampling_is_apart_from_the_weights_and_named(fresh: Any, read: Any) -> None:
    plain = read(fresh)
    found = sampling_patches(fresh)
    for name, model in found.items():
        assert read(model).fingerprint == plain.fingerprint
        assert name in read(model).sampling.text()
        assert name in named(read(model), "model_sampling")
        on_device(model)
        assert read(fresh) == plain, "what an earlier run left on the model is not read"
    assert len({read(model).sampling for model in (*found.values(), fresh)}) == len(found) + 1


def test_the_sampling_it_was_loaded_with_is_no_change(fresh: Any, read: Any) -> None:
    discrete = host_node("comfy_extras.nodes_model_advanced", "ModelSamplingDiscrete")
    same = discrete.patch(fresh, "v_prediction", False)[0]
    assert read(same) == read(fresh)


@pytest.mark.parametrize("planner_file_name", ["auto", "random_planner.safetensors"])
def test_another_sampling_gets_no_plan(bench: Any, make_node: Any, to: Any, planner_file_name: str) -> None:
    patch = make_node("ModelSamplingDiscrete", model=to("1"), sampling="eps", zsnr=False)
    plan = bench.plan({**bench.base(), "7": patch}, model=to("7"), max_steps=6, planner=planner_file_name)
    assert plan.steps == 6
    assert code(plan.fallback) == "other_sampling"


def test_a_patch_between_planner_and_sampler_is_seen(bench: Any, make_node: Any, to: Any) -> None:
    patch = make_node("ModelSamplingDiscrete", model=to("1"), sampling="eps", zsnr=False)
    graph = {**bench.base(), "7": patch, "9": bench.planner(), "5": bench.adaptive(model=to("7"), plan=to("9"))}
    run = bench.run(graph, show="5")
    assert run.outputs["9"][0].fallback is None
    assert code(run.ui["5"]["budget_plan"][0]["fallback"]) == "other_sampling"


def test_precision_is_read_past_patches(fresh: Any, read: Any) -> None:
    forced = host_node("comfy_extras.nodes_model_advanced", "ModelComputeDtype").patch(fresh, "fp16")[0]
    assert read(forced).precision == "fp16"
    assert read(forced).changes == ()
    on_device(forced)
    assert read(fresh).precision == "fp32", "what an earlier run left on the model is not read"


# ------------------------------------------------------------------------------------------------ planners of before


def test_planners_of_before_know_their_model(
    bench: Any, pack: Any, session: Any, save_variant: Any, setting: Any, loaded: Any
) -> None:
    """Also where the model is in fp8. The fingerprint is that which the shipped planner had in the first release."""
    identity = pack("host.identity")
    model = load(SHIPPED / "checkpoints" / "tiny_scenes.safetensors")
    assert identity.former_fingerprint(model) == "77adef51d871cb90fb2ff3a62f3662b9"
    path = session.base_dir / "models" / "checkpoints" / "random.safetensors"
    with torch.inference_mode():
        options = {"dtype": torch.float8_e4m3fn}
        fp8 = sys.modules["comfy.sd"].load_checkpoint_guess_config(str(path), model_options=options)[0]
    former = identity.former_fingerprint(loaded.model)
    assert identity.former_fingerprint(fp8) == former
    known = dataclasses.replace(setting, model=former, sampling="", width=128)  # nearest at this width
    save_variant("of_before.safetensors", name="planner of before", setting=known)
    for name in ("auto", "of_before.safetensors"):
        (plan, *_) = bench.run({**bench.base(width=128), "5": bench.planner(planner=name)}).outputs["5"]
        assert (plan.planner, plan.fallback, plan.warnings) == ("planner of before", None, ())
        assert pack("planning.choice").planner_of(plan).name == "planner of before"


def test_planners_of_before_know_no_other_sampling(
    bench: Any, save_variant: Any, setting: Any, pack: Any, loaded: Any, make_node: Any, to: Any
) -> None:
    former = pack("host.identity").former_fingerprint(loaded.model)
    known = dataclasses.replace(setting, model=former, sampling="")
    save_variant("of_before.safetensors", name="planner of before", setting=known)
    patch = make_node("ModelSamplingDiscrete", model=to("1"), sampling="eps", zsnr=False)
    plan = bench.plan({**bench.base(), "7": patch}, model=to("7"), max_steps=6, planner="of_before.safetensors")
    assert plan.steps == 6
    assert code(plan.fallback) == "other_of_name"


def test_shipped_planner_is_for_the_shipped_model(session: Any, read: Any, pack: Any) -> None:
    del session
    found = read(load(SHIPPED / "checkpoints" / "tiny_scenes.safetensors"))
    for path in (SHIPPED / "planners").glob("tiny_scenes_dpmpp*.safetensors"):
        setting = pack("predictor.planner_file").load_planner(path).setting
        assert (setting.model, setting.sampling) == (found.fingerprint, found.sampling.text())
