"""A kept fingerprint is used again only while it holds: small models of the genuine host whose weights change."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.fixtures.tiny_models import make_tiny


@pytest.fixture
def read(pack: Any) -> Callable[[Any], str]:
    return lambda model: pack("host.identity").read_identity(model).known()


@pytest.fixture
def computed(pack: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How often a fingerprint was computed in full."""
    identity, seen = pack("host.identity"), []
    original = identity.sample

    def counting(*args: Any) -> Any:
        seen.append(1)
        return original(*args)

    monkeypatch.setattr(identity, "sample", counting)
    yield seen


@pytest.fixture
def model(session: Any) -> Any:
    del session
    return make_tiny("sd15", seed=7).model  # more matrices than are probed


def matrices(model: Any) -> list[torch.nn.Parameter]:
    return [p for n, p in model.model.diffusion_model.named_parameters() if p.ndim >= 2 and n.endswith("weight")]


def test_it_is_computed_once_for_a_model_whoever_patches_it(model: Any, read: Any, computed: list[int]) -> None:
    first = read(model)
    patched = model.clone()
    patched.add_object_patch("diffusion_model.middle_block.1.forward", max)
    keys = [k for k in model.model_state_dict() if k.endswith("weight")][:20]
    for strength in (0.5, 1.0):
        lora = model.clone()
        lora.add_patches({k: (torch.zeros_like(model.model_state_dict()[k]),) for k in keys}, strength)
        assert read(lora) == first
    assert [read(patched), read(model.clone()), read(model)] == [first] * 3
    assert len(computed) == 1


def test_weights_changed_in_place_are_another_model(model: Any, read: Any) -> None:
    """The host's weights are inference tensors: no version counter tells."""
    first = read(model)
    with torch.inference_mode():
        saved = [weight.clone() for weight in matrices(model)]
        for weight in matrices(model):
            weight.mul_(-1.0)
        assert read(model) != first
        for weight, before in zip(matrices(model), saved, strict=True):
            weight.copy_(before)
    assert read(model) == first


def test_a_finetune_in_place_that_keeps_most_signs_is_seen(model: Any, read: Any) -> None:
    first = read(model)
    torch.manual_seed(0)
    with torch.inference_mode():
        for weight in matrices(model):
            weight.add_(0.05 * weight.std() * torch.randn_like(weight))
    assert read(model) != first


def test_any_single_tensor_in_another_ones_place_is_looked_at(model: Any, read: Any, computed: list[int]) -> None:
    first = read(model)
    modules = [m for m in model.model.diffusion_model.modules() if getattr(m, "weight", None) is not None]
    seen: set[str] = set()
    for module in [m for m in modules if m.weight.ndim >= 2][::7]:
        before, count = module.weight, len(computed)
        module.weight = torch.nn.Parameter(-before.detach(), requires_grad=False)
        seen.add(read(model))
        assert len(computed) == count + 1
        module.weight = before
    assert first not in seen
    assert read(model) == first


def test_two_files_of_one_architecture_are_never_mixed_up(session: Any, read: Any) -> None:
    """The second may get the memory, and the id, of the first."""
    del session
    found = []
    for seed in (1, 2, 3, 1):
        found.append(read(make_tiny("flux", seed=seed).model))
        gc.collect()
    assert len(set(found)) == 3
    assert found[0] == found[3]


def test_nothing_of_a_model_is_kept_alive(session: Any, pack: Any, read: Any) -> None:
    del session
    kept = pack("host.fingerprint_cache")._kept
    model = make_tiny("flux", seed=9).model
    read(model)
    before = len(kept)
    del model
    gc.collect()
    assert len(kept) == before - 1


def test_a_cast_or_a_baked_lora_is_the_same_model(model: Any, read: Any, computed: list[int]) -> None:
    first = read(model)
    keys = [k for k in model.model_state_dict() if k.endswith("weight")]
    lora = model.clone()
    lora.add_patches({k: (torch.randn_like(model.model_state_dict()[k]),) for k in keys}, 3.0)
    load_models = sys.modules["comfy.model_management"].load_models_gpu
    with torch.inference_mode():
        for _ in range(2):
            load_models([lora])
            assert read(lora) == first
        count = len(computed)
        assert read(lora) == first
        assert len(computed) == count, "kept while the LoRA stays baked in"
        load_models([model])
    assert read(model) == first
    with torch.inference_mode():
        model.model.diffusion_model.to(torch.bfloat16)
    assert read(model) == first


def test_another_sampling_of_the_weights_is_kept_apart(model: Any, read: Any, pack: Any) -> None:
    identity = pack("host.identity")
    patched = model.clone()
    advanced = sys.modules["nodes"].NODE_CLASS_MAPPINGS["ModelSamplingDiscrete"]
    (patched,) = advanced().patch(patched, "v_prediction", False)
    assert read(patched) == read(model)
    assert identity.read_identity(patched).sampling != identity.read_identity(model).sampling
