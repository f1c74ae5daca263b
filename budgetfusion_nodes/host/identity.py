"""Which model this is, without trusting its file name, and what was done to it since it was loaded.

The fingerprint is made of class names, the sampling that the model was loaded with, and a few thousand values of its
weights (see `weights`). It is that of the file: equal in fp32, fp16, bf16 and plain or scaled fp8, compiled, offloaded,
with LoRAs, patches and after any earlier run. Packed weights (GGUF, int8, 4 bits) have one of their own for each file.
A merge is another model. What the model now samples with is kept apart, so that it can be named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UnsupportedError
from ..core.messages import Message, message
from .changes import read_changes
from .fingerprint_cache import fingerprint_of
from .model_name import model_name
from .model_sampling import Sampling, loaded_sampling, read_sampling
from .patches import WeightPatches, describe, tensors_in, weight_patches
from .weights import FEWEST, PREFIX, UnreadableWeights, matrices, original_network, original_weights, sample, stored

PRECISIONS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}

VERSION = "2-"
"""How fingerprints of this kind begin. Those of before are 32 hex digits: see `former_fingerprint`."""
MIXED = 128
"""At most so many weights that a merge mixes in are looked at."""

FORMER_TENSORS = 64
FORMER_VALUES = 64


@dataclass(frozen=True)
class Identity:
    """A MODEL as a planner has to know it."""

    fingerprint: str | None
    """Equal for equal weights; None where they cannot be told apart from another model's: see `unknown`."""
    name: str
    """For display: the file's name, else the architecture's."""
    precision: str
    """Of the arithmetic, not of the storage: fp8 weights with activations in bf16 are bf16. See `model_precision`."""
    sampling: Sampling
    """Prediction type, sigmas and shift that this MODEL samples with; not part of the fingerprint."""
    changes: tuple[Message, ...]
    """What was done to the model since it was loaded, one for each kind of change."""
    unknown: Message | None = None
    """Why there is no fingerprint."""

    def known(self) -> str:
        """The fingerprint. UnsupportedError, with the reason, if there is none."""
        if self.fingerprint is None:
            raise UnsupportedError(self.unknown or message("model_unknown", name=self.name, kind=""))
        return self.fingerprint


def read_identity(model: Any) -> Identity:
    """Identity of a host MODEL. Reads some 4,000 values once for a loaded model, then some 800 to see that they still
    hold; never raises for the model's sake."""
    patches = weight_patches(model)
    name = model_name(model)
    try:
        fingerprint, unknown = _fingerprint(model, patches), None
    except UnreadableWeights as error:
        fingerprint, unknown = None, message("model_unknown", name=name, kind=str(error))
    return Identity(
        fingerprint,
        name,
        model_precision(model),
        read_sampling(model),
        read_changes(model, patches),
        unknown,
    )


def model_fingerprint(model: Any) -> tuple[str, str]:
    """(fingerprint, display name) of a host MODEL. UnsupportedError if it cannot be told from others."""
    identity = read_identity(model)
    return identity.known(), identity.name


def model_precision(model: Any) -> str:
    """The number format of the denoiser's activations: fp32, fp16, bf16 or PyTorch's name for another one; empty where
    the model does not say it (loaders of other packs).

    Storage does not count (fp8 and GGUF weights are cast to this format or multiplied with it), nor does what a patch
    of an earlier run left on the shared model.
    """
    ask = getattr(model, "get_model_object", None)
    if not callable(ask):
        return ""
    try:
        dtype = ask("manual_cast_dtype")
        dtype = getattr(original_network(model), "dtype", None) if dtype is None else dtype
    except AttributeError:  # an inner model that is not the host's
        return ""
    return PRECISIONS.get(dtype, str(dtype).removeprefix("torch.")) if isinstance(dtype, torch.dtype) else ""


def _fingerprint(model: Any, patches: WeightPatches) -> str:
    network = original_network(model)
    weights = original_weights(model, network)
    if len(weights) < FEWEST:
        raise UnreadableWeights(type(model.model).__name__)
    parts = (*_structure(model), loaded_sampling(model).text())
    if patches.merged:  # its tensors may be changed without a trace
        return _digest(parts, weights, patches)
    return fingerprint_of(network, parts, weights, lambda: _digest(parts, weights, patches))


def _digest(parts: Sequence[str], weights: Sequence[tuple[str, Tensor]], patches: WeightPatches) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    for part in sample((name, patches.sources.get(PREFIX + name, value)) for name, value in weights):
        digest.update(part)
    if patches.mixed or not _is_other_model(patches, [name for name, _ in weights]):
        for part in _mixture(patches):
            digest.update(part)
    return VERSION + digest.hexdigest()[:32]


def _is_other_model(patches: WeightPatches, names: Sequence[str]) -> bool:
    """True where no weight, or every one, was put in the place of the file's: then it is one file's model."""
    return not patches.sources or all(PREFIX + name in patches.sources for name in names)


def _mixture(patches: WeightPatches) -> Iterator[bytes]:
    """How much of other models is mixed in, and a sample of what."""
    for key in sorted(patches.sources.keys() | patches.mixed.keys()):
        yield f"{key}{''.join(map(describe, patches.mixed.get(key, ())))}\0".encode()
    tensors = [
        (f"{key} {index}", tensor)
        for key, mixes in sorted(patches.mixed.items())
        for index, tensor in enumerate(tensors_in([patch[1] for patch in mixes]))
    ]
    yield from sample(tensors[:: max(1, len(tensors) // MIXED)])


def _structure(model: Any) -> Iterator[str]:
    inner = model.model
    saved = getattr(model, "object_patches_backup", None) or {}
    for part in (inner, getattr(inner, "model_config", None), saved.get("latent_format", _latent_format(inner))):
        yield type(part).__name__
    yield getattr(getattr(inner, "model_type", None), "name", "")


def _latent_format(inner: Any) -> Any:
    return getattr(inner, "latent_format", None)


# ------------------------------------------------------------------------------------------ planners of before


def is_former(fingerprint: str) -> bool:
    """Whether a planner was calibrated before fingerprints were of this kind."""
    return not fingerprint.startswith(VERSION)


def former_fingerprint(model: Any) -> str | None:
    """The fingerprint that planners of before carry for this model at this sampling; None where they can have none
    (packed weights, merges).

    It was made of the signs of 64 of the matrices, and of the sampling with all patches.
    """
    if weight_patches(model).merged:
        return None
    everything = [item for item in matrices(model, original_network(model)) if item[0].endswith("weight")]
    count = len(everything)
    chosen = [everything[i * count // FORMER_TENSORS] for i in range(FORMER_TENSORS)] if count > 64 else everything
    digest = hashlib.sha256()
    for part in (*_structure(model), *_former_sampling(model)):
        digest.update(part.encode() + b"\0")
    for name, value in chosen:
        digest.update(f"{name}{tuple(value.shape)}".encode())
    try:
        for _, value in chosen:
            digest.update(_former_signs(value))
    except UnreadableWeights:
        return None
    return digest.hexdigest()[:32]


def _former_sampling(model: Any) -> Iterator[str]:
    sampling = model.get_model_object("model_sampling")
    yield " ".join(sorted({c.__name__ for c in type(sampling).__mro__} - {"object", "Module"}))
    for attribute in ("sigma_min", "sigma_max", "shift"):
        value = getattr(sampling, attribute, None)
        yield "" if value is None else f"{float(value):.3g}"


def _former_signs(value: Tensor) -> bytes:
    held = stored(value)
    if held.packing or not held.data.is_floating_point():
        raise UnreadableWeights(held.packing)
    flat = held.data.detach().reshape(-1)
    values = flat[:: max(1, flat.numel() // FORMER_VALUES)][:FORMER_VALUES].cpu()
    return (values.contiguous().view(torch.uint8).numpy()[values.itemsize - 1 :: values.itemsize] >> 7).tobytes()
