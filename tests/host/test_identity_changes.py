"""Every kind of change to a model is named: by its kind, and by its own name where it has one."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.fixtures.changes import BLOCK, host_node, named
from tests.fixtures.tiny_models import make_tiny


@pytest.fixture
def fresh(loaded: Any) -> Any:
    """A MODEL of the random checkpoint for this test alone."""
    return loaded.model.clone()


def _wrapper(model: Any) -> None:
    model.add_wrapper_with_key("outer_sample", "easycache", lambda executor, *a: executor(*a))


def _option_wrapper(model: Any) -> None:
    extension = sys.modules["comfy.patcher_extension"]
    options = model.model_options["transformer_options"]
    extension.add_wrapper_with_key("diffusion_model", "teacache", lambda executor, *a: executor(*a), options)


def _callback(model: Any) -> None:
    model.add_callback_with_key("on_pre_run", "a pack", lambda *_: None)


def _override(model: Any) -> None:
    model.model_options["transformer_options"]["optimized_attention_override"] = lambda f, *a, **k: f(*a, **k)


def _rope(model: Any) -> None:
    model.model_options["transformer_options"]["rope_options"] = {"scale_x": 2.0}


def _additional(model: Any) -> None:
    model.set_additional_models("control", [model.clone()])


def _injection(model: Any) -> None:
    injection = sys.modules["comfy.patcher_extension"].PatcherInjection
    model.set_injections("motion", [injection(inject=lambda _: None, eject=lambda _: None)])


def _hooks(model: Any) -> None:
    hook = importlib.import_module("comfy.hooks").WeightHook()
    model.add_hook_patches(hook, {k: (w,) for k, w in model.model_state_dict().items() if k.startswith(BLOCK)})


CHANGES: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "a wrapper": ("model_wrappers", "easycache", _wrapper),
    "a wrapper in the options": ("model_wrappers", "teacache", _option_wrapper),
    "a callback": ("model_callbacks", "a pack", _callback),
    "an injection": ("model_injections", "motion", _injection),
    "hooks": ("model_hooks", "hook", _hooks),
    "another model": ("model_additional", "control", _additional),
    "a block's forward": ("model_objects", f"{BLOCK}.forward", lambda m: m.add_object_patch(f"{BLOCK}.forward", max)),
    "a weight's function": ("model_weight_functions", "1", lambda m: m.add_weight_wrapper(f"{BLOCK}.weight", abs)),
    "attention": ("model_attention", "attn2_patch", lambda m: m.set_model_attn2_patch(lambda *a: a)),
    "attention replaced": ("model_attention", "attn1", lambda m: m.set_model_attn1_replace(max, "middle", 0)),
    "attention function": ("model_attention", "optimized_attention_override", _override),
    "positions": ("model_attention", "rope_options", _rope),
    "a block": ("model_attention", "input_block_patch", lambda m: m.set_model_input_block_patch(lambda *a: a)),
    "unet wrapper": (
        "model_functions",
        "model_function_wrapper",
        lambda m: m.set_model_unet_function_wrapper(lambda f, a: f(**a)),
    ),
    "cfg": ("model_functions", "sampler_cfg_function", lambda m: m.set_model_sampler_cfg_function(lambda args: args)),
    "post cfg": (
        "model_functions",
        "sampler_post_cfg_function",
        lambda m: m.set_model_sampler_post_cfg_function(lambda args: args),
    ),
    "mask": ("model_functions", "denoise_mask_function", lambda m: m.set_model_denoise_mask_function(max)),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_each_change_is_named(fresh: Any, read: Any, kind: str) -> None:
    code, name, change = CHANGES[kind]
    plain = read(fresh)
    model = fresh.clone()
    change(model)
    assert name in named(read(model), code)
    assert read(model).fingerprint == plain.fingerprint
    assert read(fresh) == plain


NODES = {
    "RescaleCFG": ("comfy_extras.nodes_model_advanced", lambda n, m: n.patch(m, 0.7)),
    "PerpNeg": ("comfy_extras.nodes_perpneg", lambda n, m: n.execute(m, [], 1.0)),
    "PerturbedAttentionGuidance": ("comfy_extras.nodes_pag", lambda n, m: n.execute(m, 3.0)),
    "SelfAttentionGuidance": ("comfy_extras.nodes_sag", lambda n, m: n.execute(m, 0.5, 2.0)),
    "CFGZeroStar": ("comfy_extras.nodes_cfg", lambda n, m: n.execute(m)),
    "FreeU": ("comfy_extras.nodes_freelunch", lambda n, m: n.execute(m, 1.1, 1.2, 0.9, 0.2)),
    "HyperTile": ("comfy_extras.nodes_hypertile", lambda n, m: n.execute(m, 256, 2, 0, False)),
    "TomePatchModel": ("comfy_extras.nodes_tomesd", lambda n, m: n.execute(m, 0.3)),
    "EasyCacheNode": ("comfy_extras.nodes_easycache", lambda n, m: n.execute(m, 0.2, 0.15, 0.95, False)),
    "FreeU_V2": ("comfy_extras.nodes_freelunch", lambda n, m: n.execute(m, 1.3, 1.4, 0.9, 0.2)),
    "PatchModelAddDownscale": (
        "comfy_extras.nodes_model_downscale",
        lambda n, m: n.execute(m, 3, 2.0, 0.0, 0.35, True, "bicubic", "bicubic"),
    ),
    "Mahiro": ("comfy_extras.nodes_mahiro", lambda n, m: n.execute(m)),
    "LazyCacheNode": ("comfy_extras.nodes_easycache", lambda n, m: n.execute(m, 0.2, 0.15, 0.95, False)),
    "WanContextWindowsManualNode": (
        "comfy_extras.nodes_context_windows",
        lambda n, m: n.execute(m, 81, 30, "standard_static", 1, False, "pyramid", False),
    ),
    "DifferentialDiffusion": ("comfy_extras.nodes_differential_diffusion", lambda n, m: n.execute(m)),
}


@pytest.mark.parametrize("name", NODES)
def test_the_hosts_own_patching_nodes(fresh: Any, read: Any, name: str) -> None:
    module, apply = NODES[name]
    made = apply(host_node(module, name), fresh)
    model = made[0] if isinstance(made, tuple) else made.result[0]
    found = read(model)
    assert found.changes
    assert found.fingerprint == read(fresh).fingerprint
    assert read(fresh).changes == ()


SETTINGS = {
    "RescaleCFG": lambda n, m, value: n.patch(m, 0.1 * value),
    "PerturbedAttentionGuidance": lambda n, m, value: n.execute(m, value),
    "FreeU_V2": lambda n, m, value: n.execute(m, 1.0 + 0.1 * value, 1.4, 0.9, 0.2),
    "TomePatchModel": lambda n, m, value: n.execute(m, 0.1 * value),
    "LazyCacheNode": lambda n, m, value: n.execute(m, 0.1 * value, 0.15, 0.95, False),
    "DifferentialDiffusion": lambda n, m, value: n.execute(m, 0.1 * value),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_a_patching_node_was_set_to_is_part_of_the_change(fresh: Any, bench: Any, read: Any, name: str) -> None:
    module = NODES[name][0]

    def patched(value: float) -> Any:
        made = SETTINGS[name](host_node(module, name), fresh, value)
        return made[0] if isinstance(made, tuple) else made.result[0]

    model = patched(3.0)
    before = read(model).changes
    assert read(patched(3.0)).changes == before
    assert read(patched(5.0)).changes != before
    graph = {**bench.base(), "7": {"class_type": "GivenMODEL", "inputs": {"key": bench.value(model)}}}
    bench.run({**graph, "5": bench.adaptive(model=["7", 0], max_steps=3)}, show="5")
    assert read(model).changes == before, "a render leaves no trace in it"


def test_our_own_wrappers_are_no_change(fresh: Any, read: Any, pack: Any) -> None:
    sampling = pack("host.sampling")
    for key in (sampling.CLOCK, sampling.PROGRESS):
        fresh.add_wrapper_with_key("outer_sample", key, lambda executor, *a: executor(*a))
    assert read(fresh).changes == ()


WEIGHTS = {
    "ModelMergeBlocks": (
        "comfy_extras.nodes_model_merging",
        lambda n, m, o: n.merge(m, o, input=0.3, middle=0.5, out=0.7),
    ),
    "ModelSubtract": ("comfy_extras.nodes_model_merging", lambda n, m, o: n.merge(m, o, 0.5)),
    "UNetSelfAttentionMultiply": (
        "comfy_extras.nodes_attention_multiply",
        lambda n, m, _: n.execute(m, 1.2, 1.0, 1.0, 1.0),
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_nodes_that_mix_or_scale_weights_make_another_model(session: Any, read: Any, name: str) -> None:
    del session
    module, apply = WEIGHTS[name]
    one, other = (make_tiny("sd15", seed=seed).model for seed in (3, 4))
    made = apply(host_node(module, name), one, other)
    found = read(made[0] if isinstance(made, tuple) else made.result[0])
    assert [change.code for change in found.changes] == ["model_merge"]
    assert found.fingerprint not in (read(one).fingerprint, read(other).fingerprint)


@pytest.mark.parametrize(("number", "value"), [("noise_scale", 8.0), ("multiplier", 1.0), ("sigma_data", 0.5)])
def test_a_sampling_that_leaves_the_sigmas_is_named_all_the_same(
    session: Any, read: Any, number: str, value: float
) -> None:
    """As Noise Scale does for flow models, and AuraFlow's shift node."""
    del session
    plain = make_tiny("wan", seed=3).model
    patched = plain.clone()
    sampling = copy.deepcopy(plain.get_model_object("model_sampling"))
    setattr(sampling, number, value)
    patched.add_object_patch("model_sampling", sampling)
    assert f"{number.replace('_', ' ')} {value:g}" in named(read(patched), "model_sampling")
    assert read(plain).changes == ()
