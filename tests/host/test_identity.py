"""The model fingerprint: the same for the same weights however they were loaded or patched, and different otherwise."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from research.tiny_scenes_training.training_model import make_random_checkpoint
from tests.fixtures.said import code, codes


@pytest.fixture
def fingerprint(pack: Any) -> Any:
    return lambda model: pack("host.identity").model_fingerprint(model)[0]


def load(path: Any, dtype: torch.dtype | None = None) -> Any:
    options = {} if dtype is None else {"dtype": dtype}
    with torch.inference_mode():
        return sys.modules["comfy.sd"].load_checkpoint_guess_config(str(path), model_options=options)[0]


@pytest.fixture
def checkpoint(session: Any, loaded: Any) -> Any:
    del loaded
    return session.base_dir / "models" / "checkpoints" / "random.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_same_in_every_precision(fingerprint: Any, loaded: Any, checkpoint: Any, dtype: torch.dtype) -> None:
    other = load(checkpoint, dtype)
    weight = next(p for p in other.model.diffusion_model.parameters() if p.ndim > 1)
    assert weight.dtype == dtype, "the host did load it in this precision"
    assert fingerprint(other) == fingerprint(loaded.model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_precision_is_that_of_the_arithmetic(pack: Any, checkpoint: Any, dtype: torch.dtype) -> None:
    """Tiny Scenes computes in fp32 however its weights are stored; a model that is not cast computes in its own."""
    precision = pack("host.identity").model_precision
    other = load(checkpoint, dtype)
    assert precision(other) == "fp32"
    other.model.manual_cast_dtype = None
    assert precision(other) == {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    other.model.manual_cast_dtype = torch.float64
    assert precision(other) == "float64"


@pytest.mark.parametrize(
    "model", [None, object(), SimpleNamespace(model=SimpleNamespace(get_dtype_inference=lambda: 1))]
)
def test_a_model_that_does_not_say_its_precision_has_none(pack: Any, model: Any) -> None:
    assert pack("host.identity").model_precision(model) == ""


def test_name_is_the_files(pack: Any, loaded: Any) -> None:
    assert pack("host.identity").model_name(loaded.model) == "random"


def test_other_weights_are_another_model(fingerprint: Any, loaded: Any, pack: Any, tmp_path: Any) -> None:
    path = make_random_checkpoint(tmp_path / "other.safetensors", seed=1)
    assert fingerprint(load(path)) != fingerprint(loaded.model)


def test_a_slight_finetune_is_another_model(fingerprint: Any, loaded: Any, checkpoint: Any) -> None:
    tuned = load(checkpoint)
    torch.manual_seed(0)
    with torch.inference_mode():
        for weight in tuned.model.diffusion_model.parameters():
            weight.add_(0.02 * weight.std() * torch.randn_like(weight) if weight.ndim > 1 else 0.0)
    assert fingerprint(tuned) != fingerprint(loaded.model)


def lora(model: Any, strength: float = 2.0) -> Any:
    """A LoRA on every matrix of the network, large enough to flip most signs if it were read as the model."""
    patched = model.clone()
    keys = [k for k in model.model_state_dict() if k.startswith("diffusion_model.") and k.endswith("weight")]
    torch.manual_seed(0)
    weights = {key: model.model_state_dict()[key] for key in keys}
    patched.add_patches({k: (strength * torch.randn_like(w.float()),) for k, w in weights.items() if w.ndim > 1})
    return patched


def test_lora_leaves_it_and_is_reported(fingerprint: Any, pack: Any, loaded: Any) -> None:
    plain = fingerprint(loaded.model)
    patched = lora(loaded.model)
    load_models = sys.modules["comfy.model_management"].load_models_gpu
    assert fingerprint(patched) == plain
    with torch.inference_mode():
        load_models([patched])
        assert patched.backup, "the host has baked it in"
        assert fingerprint(patched) == plain
        load_models([loaded.model])
    assert fingerprint(loaded.model) == plain
    (note,) = pack("host.identity").read_identity(patched).changes
    assert code(note) == "model_lora"
    assert pack("host.identity").read_identity(loaded.model).changes == ()


def test_lora_is_a_warning_of_the_plan(bench: Any, loaded: Any, make_node: Any, to: Any) -> None:
    given = make_node("GivenMODEL", key=bench.value(lora(loaded.model, 0.01)))
    plan = bench.plan({**bench.base(), "7": given}, model=to("7"))
    assert plan.fallback is None
    assert "model_lora" in codes(plan.warnings)


def test_lora_after_the_planner_is_a_warning_of_the_render(bench: Any, loaded: Any, make_node: Any, to: Any) -> None:
    given = make_node("GivenMODEL", key=bench.value(lora(loaded.model, 0.01)))
    graph = {**bench.base(), "7": given, "9": bench.planner(), "5": bench.adaptive(model=to("7"), plan=to("9"))}
    run = bench.run(graph, show="5")
    assert "model_lora" not in codes(run.outputs["9"][0].warnings)
    (receipt,) = run.ui["5"]["receipt"]
    assert receipt["fallback"] is None
    assert codes(receipt["warnings"]).count("model_lora") == 1
