"""Patches as other packs write them: told apart by what they were made with, whatever they are."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.fixtures.changes import BLOCK, named
from tests.fixtures.said import codes
from tests.fixtures.tiny_models import make_tiny


@pytest.fixture
def fresh(loaded: Any) -> Any:
    """A MODEL of the random checkpoint for this test alone."""
    return loaded.model.clone()


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
