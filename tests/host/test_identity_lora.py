"""One LoRA is told from another, and from itself at another strength, however it is loaded: with another one the
planner's curves, and everything that is stored of them, are of another model."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.fixtures.said import codes

RANK = 4


@pytest.fixture
def keys(loaded: Any, pack: Any) -> Callable[[Any], tuple[str, ...]]:
    """What a Setting keeps of a model's changes."""
    del loaded
    read, change_keys = pack("host.identity").read_identity, pack("core.setting").change_keys
    return lambda model: change_keys(read(model).changes)


def file_of(model: Any, seed: int) -> dict[str, torch.Tensor]:
    """A LoRA file for the attention's output matrices."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, torch.Tensor] = {}
    for key, weight in model.model_state_dict().items():
        if key.endswith("to_out.0.weight"):
            name = "lora_unet_" + key.removeprefix("diffusion_model.").removesuffix(".weight").replace(".", "_")
            rows, columns = weight.shape
            found[f"{name}.lora_up.weight"] = torch.randn(rows, RANK, generator=generator)
            found[f"{name}.lora_down.weight"] = torch.randn(RANK, columns, generator=generator)
            found[f"{name}.alpha"] = torch.tensor(float(RANK))
    return found


def baked(model: Any, seed: int, strength: float) -> Any:
    return sys.modules["comfy.sd"].load_lora_for_models(model, None, file_of(model, seed), strength, 0.0)[0]


def beside(model: Any, seed: int, strength: float) -> Any:
    return sys.modules["comfy.sd"].load_bypass_lora_for_models(model, None, file_of(model, seed), strength, 0.0)[0]


def hooked(model: Any, seed: int, strength: float) -> Any:
    hooks = importlib.import_module("comfy.hooks")
    return hooks.load_hook_lora_for_models(model, None, file_of(model, seed), strength, 0.0)[0]


@pytest.mark.parametrize("load", [baked, beside, hooked])
def test_which_lora_and_how_strong(loaded: Any, keys: Any, load: Callable[..., Any]) -> None:
    first = keys(load(loaded.model, 0, 1.0))
    assert len(first) == 1
    assert keys(load(loaded.model, 0, 1.0)) == first
    assert keys(load(loaded.model, 1, 1.0)) != first
    assert keys(load(loaded.model, 0, 0.5)) != first


def test_a_stack_is_the_same_in_any_order(loaded: Any, keys: Any) -> None:
    both = keys(baked(baked(loaded.model, 0, 0.8), 1, 0.5))
    assert keys(baked(baked(loaded.model, 1, 0.5), 0, 0.8)) == both
    assert keys(baked(baked(loaded.model, 1, 0.8), 0, 0.5)) != both
    assert keys(baked(baked(loaded.model, 0, 0.8), 2, 0.5)) != both


def test_a_planner_for_one_lora_is_told_of_another(
    bench: Any, loaded: Any, setting: Any, keys: Any, save_variant: Any, make_node: Any, to: Any
) -> None:
    model, other = baked(loaded.model, 0, 1.0), baked(loaded.model, 1, 1.0)
    save_variant("a_lora.safetensors", name="with it", setting=dataclasses.replace(setting, changes=keys(model)))

    def said(given: Any) -> list[str]:
        graph = {**bench.base(), "7": make_node("GivenMODEL", key=bench.value(given))}
        return codes(bench.plan(graph, model=to("7"), planner="a_lora.safetensors").warnings)

    assert said(model) == []
    assert said(other) == ["missing change", "model_lora"]


def test_auto_takes_the_planner_of_this_very_lora(
    bench: Any, loaded: Any, setting: Any, keys: Any, save_variant: Any, make_node: Any, to: Any
) -> None:
    """The plain model's planner, whose file comes first by name, serves it with a warning and is further away."""
    model, other = baked(loaded.model, 0, 1.0), baked(loaded.model, 1, 1.0)
    save_variant("0_plain.safetensors", name="plain", setting=setting)
    save_variant("z_lora.safetensors", name="with it", setting=dataclasses.replace(setting, changes=keys(model)))

    def taken(given: Any) -> str | None:
        graph = {**bench.base(), "7": make_node("GivenMODEL", key=bench.value(given))}
        return bench.plan(graph, model=to("7")).planner

    assert taken(model) == "with it"
    assert taken(loaded.model) != "with it"
    assert taken(other) != "with it"


def test_a_large_stack_costs_little(loaded: Any, pack: Any) -> None:
    """However many weights a LoRA changes, the tensors of a few are looked at."""
    del loaded
    patches = pack("host.patches")
    seen: list[str] = []

    class Adapter:
        def __init__(self, key: str) -> None:
            self.key = key

        @property
        def weights(self) -> tuple[torch.Tensor, ...]:
            seen.append(self.key)
            return (torch.ones(4, 4), torch.ones(4, 4))

    named = [f"diffusion_model.block.{index}.weight" for index in range(1000)]
    found = patches.adapters_digest((key, 1.0, Adapter(key)) for key in named)
    assert len(set(seen)) <= patches.ADAPTED
    assert found == patches.adapters_digest((key, 1.0, Adapter(key)) for key in reversed(named))
    assert found != patches.adapters_digest((key, 1.0 + (key == named[7]), Adapter(key)) for key in named)


def test_a_set_of_loras_is_sorted_out_once_and_never_taken_for_another(
    loaded: Any, keys: Any, pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches, sorted_out = pack("host.patches"), []
    original = patches._sorted_out
    monkeypatch.setattr(patches, "_sorted_out", lambda held: sorted_out.append(1) or original(held))
    model = baked(loaded.model, 0, 1.0)
    first = keys(model)
    assert keys(model.clone()) == keys(model) == first
    assert len(sorted_out) == 1
    past_the_host = model.clone()  # as some packs do: the uuid stays
    changed = next(iter(past_the_host.patches))
    (strength, *rest), *others = past_the_host.patches[changed]
    past_the_host.patches[changed] = [(strength / 2, *rest), *others]
    assert past_the_host.patches_uuid == model.patches_uuid
    assert keys(past_the_host) != first
    assert keys(model) == first
    found = []
    for seed in (1, 2, 3, 4, 1, 0):  # each may get the memory of the one before
        found.append(keys(baked(loaded.model, seed, 1.0)))
        gc.collect()
    assert len(set(found)) == 5
    assert found[4] == found[0]
    assert found[5] == first


def test_nothing_of_a_merge_is_kept(loaded: Any, pack: Any) -> None:
    """It would keep the other model."""
    patches = pack("host.patches")
    other = loaded.model.clone()
    merged = loaded.model.clone()
    for key, held in other.get_key_patches("diffusion_model.").items():
        merged.add_patches({key: held}, 0.5, 0.5)
    before = list(patches._kept)
    assert patches.weight_patches(merged).merged
    assert list(patches._kept) == before
