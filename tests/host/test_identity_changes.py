"""Every kind of change to a model is named: by its kind, and by its own name where it has one."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.fixtures.said import codes
from tests.fixtures.tiny_models import make_tiny

BLOCK = "diffusion_model.middle_block.1"


@pytest.fixture
def read(pack: Any) -> Callable[[Any], Any]:
    return pack("host.identity").read_identity


@pytest.fixture
def fresh(loaded: Any) -> Any:
    """A MODEL of the random checkpoint for this test alone."""
    return loaded.model.clone()


def node(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)()


def named(identity: Any, code: str) -> str:
    """The sentence of that code; it is the only change."""
    (change,) = identity.changes
    assert change.code == code, change
    text = change.text()
    assert "{" not in text and not text.startswith(f"{code}:"), "it has its words"
    return text


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
    made = apply(node(module, name), fresh)
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
        made = SETTINGS[name](node(module, name), fresh, value)
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
    made = apply(node(module, name), one, other)
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


# -------------------------------------------------------------------------------- patches as other packs write them


class Attention:
    """As IP-Adapter packs have it: functions and what they were given, in lists, one more with each further node."""

    def __init__(self, function: Any, **kwargs: Any) -> None:
        self.functions, self.kwargs = [function], [kwargs]
        self.last: Any = None

    def add(self, function: Any, **kwargs: Any) -> None:
        self.functions.append(function)
        self.kwargs.append(kwargs)

    def __call__(self, q: Any, *_: Any, **__: Any) -> Any:
        self.last = q
        return q


class Embedding:
    """Keeps under another name what it was given, and counts its calls."""

    def __init__(self, network: torch.nn.Module, share: float) -> None:
        self.layers, self.part = [network], share
        self.calls = 0

    def __call__(self, x: Any, *_: Any) -> Any:
        self.calls += 1
        return x

    def method(self, x: Any, *_: Any) -> Any:
        return x


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Linear(8, 8)


def picture(seed: int) -> torch.Tensor:
    return torch.full((1, 4, 8), float(seed))


def _attend(*_: Any, **__: Any) -> None: ...


def _attend_too(*_: Any, **__: Any) -> None: ...


def _stacked(seed: int) -> Attention:
    made = Attention(_attend, weight=0.8)
    made.add(_attend, weight=0.1 * (1 + seed))
    return made


def _around(inner: Any) -> Any:
    def patch(*args: Any) -> Any:
        return inner(*args)

    return patch


def _default(seed: int) -> Any:
    return lambda x, _extra=None, share=0.1 * (1 + seed): x


OTHERS: dict[str, Callable[[int], Any]] = {
    "a weight among its arguments": lambda seed: Attention(_attend, weight=0.1 * (1 + seed), cond=picture(0)),
    "another function": lambda seed: Attention((_attend, _attend_too)[seed], weight=0.8),
    "another network": lambda seed: Attention(_attend, weight=0.8, adapter=network(seed)),
    "one more": _stacked,
    "an object that is called": lambda seed: Embedding(network(0), 0.1 * (1 + seed)),
    "its network": lambda seed: Embedding(network(seed), 0.5),
    "a method": lambda seed: Embedding(network(seed), 0.5).method,
    "a partial": lambda seed: functools.partial(_attend, network(seed)),
    "a partial by name": lambda seed: functools.partial(_attend, scale=0.1 * (1 + seed)),
    "a partial of an object": lambda seed: functools.partial(Embedding(network(seed), 0.5), 1.0),
    "a function in a function": lambda seed: _around(functools.partial(_attend, seed)),
    "an argument's default": _default,
    "a network as it is": network,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_patches_are_told_apart_by_what_they_were_made_with(fresh: Any, read: Any, kind: str) -> None:
    make = OTHERS[kind]

    def patched(seed: int, how: str) -> Any:
        model, patch = fresh.clone(), make(seed)
        if how == "attention replaced":
            for block in range(6):
                model.set_model_attn2_replace(patch, "input", block)
        elif how == "listed":
            model.set_model_attn2_patch(_attend)
            model.set_model_attn2_patch(patch)
        elif how == "wrapper":
            model.add_wrapper_with_key("diffusion_model", "a pack", patch)
        elif how == "around the call":
            model.set_model_unet_function_wrapper(patch)
        else:
            model.add_object_patch(f"{BLOCK}.forward", patch)
        return model

    for how in ("attention replaced", "listed", "wrapper", "around the call", "in place"):
        first = read(patched(0, how)).changes
        assert len(first) == 1
        assert "{" not in first[0].text()
        assert read(patched(0, how)).changes == first, how
        assert read(patched(1, how)).changes != first, how


def test_a_run_leaves_no_trace_in_an_object_that_is_called(fresh: Any, read: Any) -> None:
    for patch in (Attention(_attend, weight=0.8), Embedding(network(0), 0.5)):
        model = fresh.clone()
        model.set_model_attn2_replace(patch, "input", 1)
        before = read(model).changes
        patch(torch.zeros(1))
        assert read(model).changes == before


def test_which_blocks_are_patched_counts(fresh: Any, read: Any) -> None:
    def patched(block: int) -> Any:
        model = fresh.clone()
        model.set_model_attn2_replace(_attend, "input", block)
        return read(model).changes

    assert patched(1) != patched(2)


@pytest.mark.parametrize("path", ["forward", "middle_block.1.forward"])
def test_a_method_that_was_replaced_past_the_host_is_named(session: Any, read: Any, path: str) -> None:
    """As some packs do it: on the loaded network itself, so for every clone."""
    del session
    model = make_tiny("sd15", seed=11).model
    plain = read(model)
    owner = model.model.diffusion_model.get_submodule(path.rpartition(".")[0])

    def patch(*args: Any, strength: float = 0.5, **kwargs: Any) -> Any:
        return type(owner).forward(owner, *args, **kwargs)

    owner.forward = patch
    assert f"diffusion_model.{path} (" in named(read(model.clone()), "model_objects")
    owner.forward = types.MethodType(type(owner).forward, owner)  # as the host puts it back
    assert read(model) == plain


def test_many_names_are_told_apart_beyond_those_shown(fresh: Any, read: Any) -> None:
    def patched(last: int) -> Any:
        model = fresh.clone()
        for index in (*range(8), last):
            model.add_object_patch(f"diffusion_model.input_blocks.{index}.forward", _attend)
        return read(model).changes

    assert patched(8) != patched(9)


def test_the_picture_of_a_patch_makes_another_render_and_no_other_change(
    bench: Any, fresh: Any, read: Any, setting: Any, save_variant: Any, pack: Any
) -> None:
    """A planner that was calibrated with an IP-Adapter serves all its pictures; memory tells them apart."""
    keys = pack("core.setting").change_keys

    def patched(seed: int, weight: float = 0.8) -> Any:
        model = fresh.clone()
        model.set_model_attn2_replace(Attention(_attend, weight=weight, cond=picture(seed)), "input", 1)
        return model

    first = keys(read(patched(0)).changes)
    assert keys(read(patched(0)).changes) == first
    assert keys(read(patched(1)).changes) != first
    save_variant("0_plain.safetensors", name="plain", setting=setting)
    save_variant("z_adapter.safetensors", name="with it", setting=dataclasses.replace(setting, changes=first))

    def planned(model: Any) -> Any:
        graph = {**bench.base(), "7": {"class_type": "GivenMODEL", "inputs": {"key": bench.value(model)}}}
        return bench.plan(graph, model=["7", 0])

    for seed in (0, 1):
        plan = planned(patched(seed))
        assert (plan.planner, plan.warnings) == ("with it", ())
    assert codes(planned(patched(0, 0.4)).warnings)


def test_an_object_that_does_not_like_to_be_looked_at_stops_nothing(fresh: Any, read: Any) -> None:
    class Hostile:
        def __getattribute__(self, name: str) -> Any:
            if name in ("__class__", "to"):  # which the host asks for
                return object.__getattribute__(self, name)
            raise RuntimeError(name)

        def __call__(self, *_: Any) -> None: ...

    model = fresh.clone()
    model.set_model_attn2_patch(Hostile())
    assert "attn2_patch" in named(read(model), "model_attention")
