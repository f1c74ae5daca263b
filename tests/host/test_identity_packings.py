"""One identity for one model in every format that keeps its signs, and one of its own for each packed file.

The small Flux has random weights and the genuine architecture; it is loaded by the host's own loaders.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

CPU = torch.device("cpu")
WIDTH = 256
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def flux_weights(seed: int = 0, blocks: int | None = None) -> dict[str, Tensor]:
    """bf16 weights of a Flux of width 256 with 1 double and 2 single blocks. `blocks` seeds the blocks alone."""
    shapes = {"img_in": (WIDTH, 64), "txt_in": (WIDTH, 128), "final_layer.linear": (64, WIDTH)}
    shapes["final_layer.adaLN_modulation.1"] = (2 * WIDTH, WIDTH)
    for name, width in (("time_in", 256), ("vector_in", 64), ("guidance_in", 256)):
        shapes |= {f"{name}.in_layer": (WIDTH, width), f"{name}.out_layer": (WIDTH, WIDTH)}
    for part in ("img", "txt"):
        block = f"double_blocks.0.{part}"
        shapes |= {f"{block}_mod.lin": (6 * WIDTH, WIDTH), f"{block}_attn.qkv": (3 * WIDTH, WIDTH)}
        shapes |= {f"{block}_attn.proj": (WIDTH, WIDTH), f"{block}_mlp.0": (4 * WIDTH, WIDTH)}
        shapes |= {f"{block}_mlp.2": (WIDTH, 4 * WIDTH)}
    for index in range(2):
        block = f"single_blocks.{index}"
        shapes |= {f"{block}.linear1": (7 * WIDTH, WIDTH), f"{block}.linear2": (WIDTH, 5 * WIDTH)}
        shapes |= {f"{block}.modulation.lin": (3 * WIDTH, WIDTH)}
    norms = [
        f"double_blocks.0.{part}_attn.norm.{kind}_norm.scale" for part in ("img", "txt") for kind in ("query", "key")
    ]
    norms += [f"single_blocks.{index}.norm.{kind}_norm.scale" for index in range(2) for kind in ("query", "key")]
    weights = {name: torch.ones(128, dtype=torch.bfloat16) for name in norms}
    for index, (name, shape) in enumerate(sorted(shapes.items())):
        own = seed if blocks is None or "_blocks" not in name else blocks
        torch.manual_seed(1000 * own + index)
        weights[f"{name}.weight"] = (0.05 * torch.randn(shape)).bfloat16()
        weights[f"{name}.bias"] = torch.zeros(shape[0], dtype=torch.bfloat16)
    return weights


@pytest.fixture
def flux(session: Any) -> Callable[..., Any]:
    """Loads weights as the host's diffusion model loader does."""
    del session

    def load(weights: Mapping[str, Tensor], **options: Any) -> Any:
        with torch.inference_mode():
            return sys.modules["comfy.sd"].load_diffusion_model_state_dict(dict(weights), model_options=options)

    return load


@pytest.fixture
def read(pack: Any) -> Callable[[Any], Any]:
    return pack("host.identity").read_identity


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


# ----------------------------------------------------------------------------------------------------- other packs'


class GGMLTensor(torch.Tensor):
    """As the GGUF packs have it: raw bytes that say they have the shape of what they unpack to."""

    tensor_type: Any
    tensor_shape: torch.Size

    @staticmethod
    def make(data: Tensor, kind: Any, shape: Any) -> GGMLTensor:
        made = data.as_subclass(GGMLTensor)
        made.tensor_type, made.tensor_shape = kind, torch.Size(shape)
        return made

    def _like(self, other: Any) -> Any:
        other.tensor_type, other.tensor_shape = self.tensor_type, self.tensor_shape
        return other

    def to(self, *args: Any, **kwargs: Any) -> Any:
        return self._like(super().to(*args, **kwargs))

    def detach(self, *_: Any) -> Any:
        return self

    def clone(self, *_: Any, **__: Any) -> Any:
        return self

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return getattr(self, "tensor_shape", None) or self.size()


class GGMLLayer(torch.nn.Module):
    comfy_cast_weights = True
    weight: Any
    bias: Any

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()
        self.weight = self.bias = None

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *_: Any, **__: Any) -> None:  # type: ignore[override]
        for name in ("weight", "bias"):
            if prefix + name in state_dict:
                setattr(self, name, torch.nn.Parameter(state_dict[prefix + name], requires_grad=False))


@pytest.fixture
def gguf(session: Any, flux: Any) -> Callable[..., Any]:
    """A small Flux whose blocks are packed, loaded with the pack's layers and patched by a patcher of its own."""
    del session
    base = sys.modules["comfy.ops"].manual_cast

    class Ops(base):
        class Linear(GGMLLayer):
            pass

    class GGUFModelPatcher(sys.modules["comfy.model_patcher"].ModelPatcher):
        def patch_weight_to_device(
            self, key: str, device_to: Any = None, inplace_update: bool = False, **_: Any
        ) -> None:
            weight = sys.modules["comfy.utils"].get_attr(self.model, key)
            if key in self.patches and isinstance(weight, GGMLTensor):
                weight.to(device_to).patches = [(self.patches[key], key)]

    def load(seed: int = 0, blocks: int | None = None, kind: str = "Q4_K") -> Any:
        number, values, size = GGML[kind]
        weights = flux_weights(seed)
        model = flux({name: value.float() for name, value in weights.items()}, custom_operations=Ops)
        for name, value in flux_weights(seed, blocks).items():
            if "_blocks" in name and name.endswith("weight"):
                owner = model.model.diffusion_model.get_submodule(name.removesuffix(".weight"))
                if isinstance(owner, GGMLLayer):
                    torch.manual_seed(int(value.float().abs().sum() * 1e3) % 2**31)
                    rows, columns = value.shape
                    packed = torch.randint(0, 256, (rows, columns // values * size), dtype=torch.uint8)
                    if kind in GGML_FLOATS:
                        packed = value.to(GGML_FLOATS[kind])
                    made = GGMLTensor.make(packed, number, value.shape)
                    owner.weight = torch.nn.Parameter(made, requires_grad=False)
        made = GGUFModelPatcher(model.model, CPU, CPU)
        assert isinstance(made.model.diffusion_model.single_blocks[0].linear1.weight, GGMLTensor)
        return made

    return load


GGML: dict[str, tuple[int, int, int]] = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q2_K": (10, 256, 84),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "IQ2_XXS": (16, 256, 66),
    "IQ4_NL": (20, 32, 18),
    "IQ4_XS": (23, 256, 136),
    "BF16": (30, 1, 2),
}
"""GGUF's number of a kind, values in one of its blocks, bytes of it."""
GGML_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@pytest.mark.parametrize("kind", GGML)
def test_gguf_files_differ_by_their_blocks(gguf: Any, read: Any, kind: str) -> None:
    first, same, other = gguf(kind=kind), gguf(kind=kind), gguf(blocks=1, kind=kind)
    assert read(first).fingerprint is not None
    assert read(first).fingerprint == read(same).fingerprint
    assert read(first).fingerprint != read(other).fingerprint


def test_a_lora_on_gguf_is_a_note(gguf: Any, read: Any) -> None:
    model = gguf()
    patched = model.clone()
    key = "diffusion_model.single_blocks.0.linear1.weight"
    patched.add_patches({key: (torch.ones(7 * WIDTH, WIDTH),)})
    assert read(patched).fingerprint == read(model).fingerprint
    assert [change.code for change in read(patched).changes] == ["model_lora"]


class Opaque(torch.Tensor):
    """Answers every operation itself and shows no data, as some engines' weights do."""

    @staticmethod
    def __new__(cls: Any, shape: Any) -> Any:
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bfloat16)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "detach" in str(function):
            return args[0]
        raise NotImplementedError(f"no kernel for {function}")


class Packed4bit(torch.nn.Parameter):
    """A parameter of its own class around packed bytes, as bitsandbytes has it."""


class Nested(torch.Tensor):
    """As torchao has it: a wrapper without storage around an implementation, which is a wrapper itself."""

    parts: tuple[str, ...]

    @staticmethod
    def __new__(cls: Any, shape: Any, **parts: Any) -> Any:
        made = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bfloat16)
        made.parts = tuple(parts)
        for name, part in parts.items():
            setattr(made, name, part)
        return made

    def __tensor_flatten__(self) -> Any:
        return list(self.parts), None

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "detach" in str(function):
            return args[0]
        raise NotImplementedError(f"no kernel for {function}")


def _torchao(weight: Tensor) -> Any:
    weight = weight.detach().float()
    scale = weight.abs().amax(1)
    data = (weight / scale[:, None] * 127).round().to(torch.int8)
    inner = Nested(weight.shape, int_data=data, scale=scale.bfloat16(), zero_point=torch.zeros(len(scale)))
    return torch.nn.Parameter(Nested(weight.shape, tensor_impl=inner), requires_grad=False)


def _fp8_of_torchao(weight: Tensor) -> Any:
    inner = Nested(weight.shape, float8_data=weight.detach().to(torch.float8_e4m3fn), scale=torch.ones(()))
    return torch.nn.Parameter(Nested(weight.shape, tensor_impl=inner), requires_grad=False)


class Params4bit(torch.nn.Parameter):
    """As bitsandbytes has it: two values in a byte, flat, and what unpacks them beside."""

    quant_state: Any

    @staticmethod
    def of(weight: Tensor) -> Any:
        weight = weight.detach().float()
        half = (weight * 64 + 8).clamp(0, 15).to(torch.uint8).flatten().view(-1, 2)
        made = Params4bit((half[:, :1] * 16 + half[:, 1:]), requires_grad=False)
        made.quant_state = {"absmax": weight.abs().amax(), "shape": weight.shape, "quant_type": "nf4"}
        return made


PACKINGS = {"torchao int8": _torchao, "torchao fp8": _fp8_of_torchao, "bitsandbytes": Params4bit.of}


@pytest.mark.parametrize("kind", PACKINGS)
def test_wrappers_around_wrappers(flux: Any, read: Any, kind: str) -> None:
    first, same, other = (put(flux(flux_weights(0, blocks)), PACKINGS[kind]) for blocks in (None, None, 1))
    assert read(first).fingerprint is not None
    assert read(first).fingerprint == read(same).fingerprint
    assert read(first).fingerprint != read(other).fingerprint
    assert (read(first).fingerprint == read(flux(flux_weights())).fingerprint) is (kind == "torchao fp8")


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


def put(model: Any, wrap: Callable[[Tensor], Any]) -> Any:
    for module in model.model.diffusion_model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2:
            module._parameters["weight"] = wrap(weight)
    return model


def test_packed_bytes_of_an_unknown_class(flux: Any, read: Any) -> None:
    def wrap(weight: Tensor) -> Any:
        return Packed4bit(weight.to(torch.float8_e4m3fn).view(torch.uint8).flatten()[:, None], requires_grad=False)

    first, same, other = (put(flux(flux_weights(0, blocks)), wrap) for blocks in (None, None, 1))
    assert read(first).fingerprint not in (None, read(flux(flux_weights())).fingerprint)
    assert read(first).fingerprint == read(same).fingerprint
    assert read(first).fingerprint != read(other).fingerprint


def test_packed_parameters_that_are_not_named_weights(flux: Any, read: Any) -> None:
    """As HQQ has them: the packed blocks stand beside layers that kept their floats."""

    def packed(blocks: int | None) -> Any:
        model = flux(flux_weights(0, blocks))
        for name, module in model.model.diffusion_model.named_modules():
            if "_blocks" in name and isinstance(getattr(module, "weight", None), Tensor) and module.weight.ndim == 2:
                data = module.weight.to(torch.float8_e4m3fn).view(torch.uint8)
                module.W_q = torch.nn.Parameter(data, requires_grad=False)
                module._parameters["weight"] = None
        for index in range(20):  # more than enough floats to be a model by themselves
            model.model.diffusion_model.register_module(f"more_{index}", torch.nn.Linear(8, 8, bias=False))
            torch.nn.init.ones_(getattr(model.model.diffusion_model, f"more_{index}").weight)
        return model

    first, same, other = (read(packed(blocks)).fingerprint for blocks in (None, None, 1))
    assert first == same is not None
    assert first != other


def _emptied(weight: Tensor) -> Any:
    made = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
    made.untyped_storage().resize_(0)
    return made


def _around_itself(weight: Tensor) -> Any:
    made = Nested(weight.shape)
    made.parts = ("inner",)
    setattr(made, "inner", made)  # noqa: B010
    return torch.nn.Parameter(made, requires_grad=False)


HIDDEN = {
    "a tensor that says it is within itself": _around_itself,
    "a tensor that shows no data": lambda weight: torch.nn.Parameter(Opaque(weight.shape), requires_grad=False),
    "no storage": lambda weight: torch.nn.Parameter(weight.to("meta"), requires_grad=False),
    "storage that was taken away": _emptied,
    "no weights at all": lambda weight: None,
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_weights_that_cannot_be_read_are_said(
    flux: Any, read: Any, pack: Any, kind: str, loaded: Any, planner: Any
) -> None:
    """Never another's plan, and never a crash."""
    del planner
    model = put(flux(flux_weights()), HIDDEN[kind])
    identity = read(model)
    assert identity.fingerprint is None
    assert identity.unknown.code == "model_unknown"
    planning = pack("planning.service")
    for name in ("auto", "random_planner.safetensors"):
        request = planning.Request("dpmpp_2m", "karras", 3.0, max_steps=7, planner=name)
        plan = planning.plan_render(model, loaded.encode("a star"), request)
        assert plan.steps == 7
        assert plan.fallback == identity.unknown


# ------------------------------------------------------------------------------------------------------ placement


def test_channels_last_is_the_same_model(read: Any, session: Any, loaded: Any) -> None:
    model = tiny(session.base_dir / "models" / "checkpoints" / "random.safetensors")
    with torch.inference_mode():
        model.model.diffusion_model.to(memory_format=torch.channels_last)
    assert not all(p.is_contiguous() for p in model.model.diffusion_model.parameters())
    assert read(model).fingerprint == read(loaded.model).fingerprint


def test_every_part_of_the_network_counts(flux: Any, read: Any) -> None:
    """Whichever matrix is exchanged, it is another model."""
    plain, other = flux_weights(), flux_weights(seed=1)
    fingerprints = {read(flux(plain)).fingerprint}
    names = [name for name, value in plain.items() if value.ndim == 2]
    fingerprints |= {read(flux({**plain, name: other[name]})).fingerprint for name in names}
    assert len(fingerprints) == len(names) + 1
