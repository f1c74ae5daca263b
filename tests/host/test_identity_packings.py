"""One identity for one model in every format that keeps its signs, and one of its own for each packed file.

The small Flux has random weights and the genuine architecture; it is loaded by the host's own loaders.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tests.fixtures.small_flux import _flux, flux_weights  # noqa: F401 - fixture

CPU = torch.device("cpu")
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, *FP8])
def test_one_identity_in_every_cast(flux: Any, read: Any, dtype: torch.dtype) -> None:
    plain = read(flux(flux_weights()))
    cast = flux(flux_weights(), dtype=dtype)
    assert cast.model.diffusion_model.img_in.weight.dtype == dtype, "the host did load it so"
    assert plain.fingerprint is not None
    assert read(cast).fingerprint == plain.fingerprint
    assert read(flux(flux_weights(seed=1), dtype=dtype)).fingerprint != plain.fingerprint


def test_fp8_weights_of_values_that_underflow(flux: Any, read: Any) -> None:
    """Half the weights of real models are below the smallest fp8 number; their zeros keep the sign."""
    weights = {name: value * 1e-3 if value.ndim == 2 else value for name, value in flux_weights().items()}
    assert read(flux(weights, dtype=FP8[0])).fingerprint == read(flux(weights)).fingerprint


def test_fp8_storage_computes_in_its_compute_format(flux: Any, read: Any) -> None:
    model = flux(flux_weights(), dtype=FP8[0])
    model.model.manual_cast_dtype = torch.bfloat16  # as on a GPU
    assert read(model).precision == "bf16"


def test_unet_loader_with_fp8_and_its_file_name(session: Any, read: Any) -> None:
    path = session.base_dir / "models" / "diffusion_models" / "small_flux.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(flux_weights(), path)
    loader = sys.modules["nodes"].UNETLoader()
    with torch.inference_mode():
        models = [loader.load_unet(path.name, kind)[0] for kind in ("default", "fp8_e4m3fn", "fp8_e5m2")]
    assert len({read(model).fingerprint for model in models}) == 1
    assert {read(model).name for model in models} == {"small_flux"}


def tiny(path: Path, dtype: torch.dtype | None = None) -> Any:
    options = {} if dtype is None else {"dtype": dtype}
    with torch.inference_mode():
        return sys.modules["comfy.sd"].load_checkpoint_guess_config(str(path), model_options=options)[0]


@pytest.mark.parametrize("dtype", FP8)
def test_fp8_gets_the_plan_of_its_weights(
    bench: Any, session: Any, make_node: Any, to: Any, read: Any, loaded: Any, dtype: torch.dtype
) -> None:
    model = tiny(session.base_dir / "models" / "checkpoints" / "random.safetensors", dtype)
    assert read(model).fingerprint == read(loaded.model).fingerprint
    given = make_node("GivenMODEL", key=bench.value(model))
    plan = bench.plan({**bench.base(), "7": given}, model=to("7"))
    assert plan.fallback is None
    assert plan.steps == bench.plan().steps


# ------------------------------------------------------------------------------------------ the host's quantisations


def quantised(weights: Mapping[str, Tensor], layout: str, fmt: str) -> dict[str, Tensor]:
    """The blocks' weights as files with `comfy_quant` have them."""
    ops = sys.modules["comfy.quant_ops"]
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        if "_blocks" not in name or value.ndim != 2:
            found[name] = value
            continue
        scale = {"scale": "recalculate"} if "FP8" in layout and "MX" not in layout else {}
        packed = ops.QuantizedTensor.from_float(value.float(), layout, **scale)
        found |= packed.state_dict(name)
        conf = json.dumps({"format": fmt}).encode()
        found[name.removesuffix("weight") + "comfy_quant"] = torch.tensor(list(conf), dtype=torch.uint8)
    return found


FORMATS = {
    "float8_e4m3fn": ("TensorCoreFP8E4M3Layout", True),
    "float8_e5m2": ("TensorCoreFP8E5M2Layout", True),
    "mxfp8": ("TensorCoreMXFP8Layout", True),
    "nvfp4": ("TensorCoreNVFP4Layout", False),
    "int8_tensorwise": ("TensorWiseINT8Layout", False),
}


@pytest.mark.parametrize("fmt", FORMATS)
def test_comfy_quant_files(flux: Any, read: Any, fmt: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp8 keeps the signs and so the identity; the others have one of their own. None is dequantised to read it."""
    ops = sys.modules["comfy.quant_ops"]
    if fmt not in ops.QUANT_ALGOS:
        assert fmt in ("mxfp8", "int8_tensorwise"), "older hosts lack these"
        return
    layout, keeps_signs = FORMATS[fmt]
    model = flux(quantised(flux_weights(), layout, fmt))
    assert isinstance(model.model.diffusion_model.single_blocks[0].linear1.weight, ops.QuantizedTensor)
    again, other = flux(quantised(flux_weights(), layout, fmt)), flux(quantised(flux_weights(0, 1), layout, fmt))
    monkeypatch.setattr(ops.QuantizedTensor, "dequantize", lambda _: pytest.fail("dequantised"))
    found = read(model).fingerprint
    assert found is not None
    assert found == read(again).fingerprint
    assert found != read(other).fingerprint
    assert (found == read(flux(flux_weights())).fingerprint) is keeps_signs


def test_large_matrices_cost_no_more(session: Any, pack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As large as Flux's, scaled fp8: a few kilobytes are read, whatever the size."""
    del session
    weights = pack("host.weights")
    ops = sys.modules["comfy.quant_ops"]
    data = torch.zeros(21504, 3072, dtype=torch.float8_e4m3fn)
    params = (
        sys.modules["comfy.quant_ops"]
        .get_layout_class("TensorCoreFP8E4M3Layout")
        .Params(scale=torch.ones(()), orig_dtype=torch.bfloat16, orig_shape=(21504, 3072))
    )
    packed = ops.QuantizedTensor(data, "TensorCoreFP8E4M3Layout", params)
    monkeypatch.setattr(ops.QuantizedTensor, "dequantize", lambda _: pytest.fail("dequantised"))
    answers = list(weights.sample((f"{i}.weight", packed) for i in range(64)))
    assert sum(map(len, answers)) < 8192


def test_channels_last_is_the_same_model(read: Any, session: Any, loaded: Any) -> None:
    model = tiny(session.base_dir / "models" / "checkpoints" / "random.safetensors")
    with torch.inference_mode():
        model.model.diffusion_model.to(memory_format=torch.channels_last)
    assert not all(p.is_contiguous() for p in model.model.diffusion_model.parameters())
    assert read(model).fingerprint == read(loaded.model).fingerprint


def test_weights_that_a_file_holds_and_memory_does_not_yet(session: Any, flux: Any, read: Any, tmp_path: Any) -> None:
    """Mapped, as safetensors maps them: they are read where they are."""
    del session
    path = tmp_path / "mapped.safetensors"
    save_file(flux_weights(), path)
    mapped = flux(flux_weights())
    with safe_open(path, framework="pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, module in mapped.model.diffusion_model.named_modules():
            if f"{name}.weight" in held:
                module._parameters["weight"] = torch.nn.Parameter(held[f"{name}.weight"], requires_grad=False)
        assert read(mapped).fingerprint == read(flux(flux_weights())).fingerprint


def test_every_part_of_the_network_counts(flux: Any, read: Any) -> None:
    """Whichever matrix is exchanged, it is another model."""
    plain, other = flux_weights(), flux_weights(seed=1)
    fingerprints = {read(flux(plain)).fingerprint}
    names = [name for name, value in plain.items() if value.ndim == 2]
    fingerprints |= {read(flux({**plain, name: other[name]})).fingerprint for name in names}
    assert len(fingerprints) == len(names) + 1
