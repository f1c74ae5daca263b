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


SHAPES: dict[str, dict[str, Callable[[int, int], tuple[int, ...]]]] = {
    "lora": {"lora_up.weight": lambda r, c: (r, RANK), "lora_down.weight": lambda r, c: (RANK, c)},
    "dora": {
        "lora_up.weight": lambda r, c: (r, RANK),
        "lora_down.weight": lambda r, c: (RANK, c),
        "dora_scale": lambda r, c: (r, 1),
    },
    "loha": {
        "hada_w1_a": lambda r, c: (r, RANK),
        "hada_w1_b": lambda r, c: (RANK, c),
        "hada_w2_a": lambda r, c: (r, RANK),
        "hada_w2_b": lambda r, c: (RANK, c),
    },
    "lokr": {"lokr_w1": lambda r, c: (4, 4), "lokr_w2": lambda r, c: (r // 4, c // 4)},
    "glora": {
        "a1.weight": lambda r, c: (RANK, c),
        "a2.weight": lambda r, c: (c, RANK),
        "b1.weight": lambda r, c: (RANK, c),
        "b2.weight": lambda r, c: (r, RANK),
    },
    "oft": {"oft_blocks": lambda r, c: (r // 8, 8, 8)},
    "boft": {"oft_blocks": lambda r, c: (2, r // 8, 8, 8)},
    "diff": {"diff": lambda r, c: (r, c)},
}
"""What a file of each kind holds for a matrix of r rows and c columns."""

File = dict[str, torch.Tensor]


def file_of(model: Any, seed: int, kind: str = "lora") -> File:
    """A LoRA file for the attention's output matrices."""
    generator = torch.Generator().manual_seed(seed)
    found: File = {}
    for key, weight in model.model_state_dict().items():
        if key.endswith("to_out.0.weight"):
            name = "lora_unet_" + key.removeprefix("diffusion_model.").removesuffix(".weight").replace(".", "_")
            for part, shape in SHAPES[kind].items():
                found[f"{name}.{part}"] = torch.randn(shape(*weight.shape), generator=generator)
            found[f"{name}.alpha"] = torch.tensor(float(RANK))
    return found


def baked(model: Any, file: int | File, strength: float) -> Any:
    given = file_of(model, file) if isinstance(file, int) else file
    return sys.modules["comfy.sd"].load_lora_for_models(model, None, given, strength, 0.0)[0]


def beside(model: Any, file: int | File, strength: float) -> Any:
    given = file_of(model, file) if isinstance(file, int) else file
    return sys.modules["comfy.sd"].load_bypass_lora_for_models(model, None, given, strength, 0.0)[0]


def hooked(model: Any, file: int | File, strength: float) -> Any:
    hooks = importlib.import_module("comfy.hooks")
    given = file_of(model, file) if isinstance(file, int) else file
    return hooks.load_hook_lora_for_models(model, None, given, strength, 0.0)[0]


@pytest.mark.parametrize("load", [baked, beside, hooked])
def test_which_lora_and_how_strong(loaded: Any, keys: Any, load: Callable[..., Any]) -> None:
    first = keys(load(loaded.model, 0, 1.0))
    assert len(first) == 1
    assert keys(load(loaded.model, 0, 1.0)) == first
    assert keys(load(loaded.model, 1, 1.0)) != first
    assert keys(load(loaded.model, 0, 0.5)) != first


def scaled(file: File, factor: float, part: str = "") -> File:
    return {name: value * factor if part in name else value for name, value in file.items()}


@pytest.mark.parametrize("load", [baked, beside, hooked])
@pytest.mark.parametrize("kind", SHAPES)
def test_a_file_is_told_from_one_with_the_same_signs(
    loaded: Any, keys: Any, load: Callable[..., Any], kind: str
) -> None:
    """As a LoRA that was saved at another strength, or with another alpha; whatever its kind."""
    file = file_of(loaded.model, 0, kind)
    first = keys(load(loaded.model, file, 1.0))
    assert len(first) == 1
    assert keys(load(loaded.model, dict(file), 1.0)) == first
    others = [scaled(file, 1.5, next(iter(SHAPES[kind])))]
    others += [] if kind in ("diff", "oft", "boft") else [scaled(file, 0.5, "alpha")]
    found = [keys(load(loaded.model, other, 1.0)) for other in others]
    assert len({first, *found}) == 1 + len(others)


@pytest.mark.parametrize("load", [baked, hooked])
def test_two_epochs_of_one_training_are_two_loras(loaded: Any, keys: Any, load: Callable[..., Any]) -> None:
    file = file_of(loaded.model, 0)
    assert keys(load(loaded.model, scaled(file, 1.001), 1.0)) != keys(load(loaded.model, file, 1.0))


def test_strengths_by_block_are_told_apart(loaded: Any, keys: Any) -> None:
    """As packs for block weights set them: the same strengths on other blocks."""
    file = file_of(loaded.model, 0)
    names = sorted({name.partition(".")[0] for name in file})
    parts = [{n: v for n, v in file.items() if n.startswith(name + ".")} for name in (names[0], names[-1])]
    found = [keys(baked(baked(loaded.model, parts[i], 1.0), parts[1 - i], 0.5)) for i in (0, 1)]
    assert found[0] != found[1]


def test_a_lora_that_the_host_has_cast_in_place_is_the_same(loaded: Any, keys: Any) -> None:
    """In bypass mode, when it is first read after a render."""
    file = {name: value.half() if "lora" in name else value for name, value in file_of(loaded.model, 0).items()}
    first = keys(beside(loaded.model, file, 1.0))
    model = beside(loaded.model, file, 1.0)
    with torch.inference_mode():
        model.inject_model()
        model.eject_model()
    assert keys(model) == first


@pytest.mark.parametrize("load", [beside, hooked])
def test_loras_that_are_not_baked_in_are_read_once(
    loaded: Any, keys: Any, pack: Any, monkeypatch: pytest.MonkeyPatch, load: Callable[..., Any]
) -> None:
    patches, read = pack("host.patches"), []
    original = patches.adapters_digest
    monkeypatch.setattr(patches, "adapters_digest", lambda *a, **k: read.append(1) or original(*a, **k))
    model = load(loaded.model, 0, 1.0)
    assert keys(model) == keys(model.clone()) == keys(model)
    before = len(read)
    assert keys(model)
    assert len(read) == before


# ------------------------------------------------------------------------------------------- hooks of a conditioning


def hook_group(model: Any, seed: int = 0, strength: float = 1.0, frames: tuple[tuple[float, float], ...] = ()) -> Any:
    """As Create Hook LoRA and Set Hook Keyframes make it. frames: (strength, start) of keyframes."""
    hooks = importlib.import_module("comfy.hooks")
    group = hooks.create_hook_lora(file_of(model, seed), strength, 0.0)
    if frames:
        keyframes = hooks.HookKeyframeGroup()
        for times, start in frames:
            keyframes.add(hooks.HookKeyframe(strength=times, start_percent=start))
        group.set_keyframes_on_hooks(keyframes)
    return group


HOOKS: dict[str, dict[str, Any]] = {
    "file": {"seed": 1},
    "strength": {"strength": 0.5},
    "keyframes": {"frames": ((1.0, 0.0), (0.0, 0.5))},
    "later keyframes": {"frames": ((1.0, 0.0), (0.0, 0.7))},
}


def test_hooks_are_told_apart_by_what_they_do(loaded: Any, pack: Any) -> None:
    conditioning = pack("host.conditioning")

    def told(group: Any) -> tuple[Any, str]:
        prompt = [[tokens, {**extras, "hooks": group}] for tokens, extras in loaded.encode("a star")]
        return conditioning.read_extras(prompt)[0], conditioning.extras_digest(prompt)

    plain = told(hook_group(loaded.model))
    assert told(hook_group(loaded.model)) == told(hook_group(loaded.model).clone()) == plain
    found = [told(hook_group(loaded.model, **changed)) for changed in HOOKS.values()]
    assert len({extras for extras, _ in (plain, *found)}) == len({digest for _, digest in (plain, *found)}) == 5
    group = hook_group(loaded.model, frames=((1.0, 0.0), (0.0, 0.5)))
    before = told(group)
    group.hooks[0].initialize_timesteps(loaded.model.model)
    assert told(group) == before, "a run leaves no trace in it"


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

    named = [f"diffusion_model.block.{index:03}.weight" for index in range(1000)]
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
