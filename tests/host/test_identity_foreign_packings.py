"""Weights as other packs keep them: GGUF, torchao, bitsandbytes, HQQ; and those that nobody can read."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.small_flux import WIDTH, _flux, flux_weights  # noqa: F401 - fixture

CPU = torch.device("cpu")


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
