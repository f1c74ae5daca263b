"""Which model this is, without trusting its file name.

The fingerprint is made of class names and of the *signs* of some 4,000 weights. A sign survives loading as fp32, fp16
or bf16 unchanged, so one planner serves all of them; a finetune flips many. Weights that a LoRA has patched in place
are read from the host's backup, so a LoRA does not change the fingerprint: it is reported by `model_notes`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.messages import Message, message

TENSORS = 64
VALUES = 64
"""64 x 64 signs: about 1 ms; two models that differ in 1 % of their signs collide with probability .99^4096."""

PREFIX = "diffusion_model."
PRECISIONS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class Identity:
    """A MODEL as a planner has to know it."""

    fingerprint: str
    name: str
    precision: str
    changes: tuple[Message, ...]

    def known(self) -> str:
        return self.fingerprint


def read_identity(model: Any) -> Identity:
    """Identity of a host MODEL."""
    fingerprint, name = model_fingerprint(model)
    return Identity(fingerprint, name, model_precision(model), model_notes(model))


def model_fingerprint(model: Any) -> tuple[str, str]:
    """(fingerprint, display name) of a host MODEL. Equal in all host versions, precisions and devices."""
    digest = hashlib.sha256()
    for part in (*_structure(model), *_sampling(model)):
        digest.update(part.encode() + b"\0")
    weights = _sampled_weights(model)
    for name, values in weights:
        digest.update(f"{name}{tuple(values.shape)}".encode())
    digest.update(_signs(values for _, values in weights))
    return digest.hexdigest()[:32], model_name(model)


def model_name(model: Any) -> str:
    """The checkpoint's file name without folder and ending where the host remembers it, else the architecture."""
    origin = getattr(model, "cached_patcher_init", None)  # (loader, (path, ...)) in 0.16 and later
    path = origin[1][0] if isinstance(origin, tuple) and len(origin) > 1 and origin[1] else None
    if isinstance(path, (list, tuple)) and path:
        path = path[0]
    if isinstance(path, (str, Path)):
        return Path(path).stem
    return type(getattr(model, "model", model)).__name__


def model_precision(model: Any) -> str:
    """The number format that the denoiser computes in: fp32, fp16, bf16 or PyTorch's name for another one; empty where
    the model does not say it (loaders of other packs)."""
    asked = getattr(getattr(model, "model", None), "get_dtype_inference", None)
    dtype = asked() if callable(asked) else None
    return PRECISIONS.get(dtype, str(dtype).removeprefix("torch.")) if isinstance(dtype, torch.dtype) else ""


def model_notes(model: Any) -> tuple[Message, ...]:
    """One Message for each change to the model that a planner calibrated on the plain checkpoint cannot know of."""
    notes: list[Message] = []
    patches = getattr(model, "patches", None) or {}
    if patches:
        notes.append(message("model_lora", n=1, weights=len(patches)))
    if getattr(model, "hook_patches", None):
        notes.append(message("model_hooks"))
    wrappers = _keys(getattr(model, "wrappers", None))
    if wrappers:
        notes.append(message("model_wrappers", names=", ".join(wrappers)))
    options = getattr(model, "model_options", None) or {}
    changed = sorted(key for key in options if key.startswith(("sampler_", "model_function_wrapper")))
    changed += sorted(key for key in (options.get("transformer_options") or {}) if key.startswith("patches"))
    if changed:
        notes.append(message("model_functions", names=", ".join(changed)))
    return tuple(notes)


def _keys(wrappers: Mapping[str, Mapping[Any, list[Any]]] | None) -> list[str]:
    """Names under which wrappers are registered; the kind where they have no name."""
    found = {str(key or kind) for kind, by_key in (wrappers or {}).items() for key, listed in by_key.items() if listed}
    return sorted(found)


def _structure(model: Any) -> Iterable[str]:
    inner = model.model
    for part in (inner, getattr(inner, "model_config", None), model.get_model_object("latent_format")):
        yield type(part).__name__
    yield getattr(getattr(inner, "model_type", None), "name", "")


def _sampling(model: Any) -> Iterable[str]:
    """The noise schedule: another prediction type, shift or sigma range is another model to a planner."""
    sampling = model.get_model_object("model_sampling")
    yield " ".join(sorted({c.__name__ for c in type(sampling).__mro__} - {"object", "Module"}))
    for attribute in ("sigma_min", "sigma_max", "shift"):
        value = getattr(sampling, attribute, None)
        yield "" if value is None else f"{float(value):.3g}"


def _sampled_weights(model: Any) -> list[tuple[str, Tensor]]:
    """TENSORS matrices, evenly spread over the sorted names, as they were in the file."""
    network = getattr(model.model, "diffusion_model", model.model)
    named = sorted((name, value) for name, value in _matrices(network))
    chosen = [named[i * len(named) // TENSORS] for i in range(TENSORS)] if len(named) > TENSORS else named
    backup = getattr(model, "backup", None) or {}
    return [(name, _original(backup.get(PREFIX + name), value)) for name, value in chosen]


def _matrices(network: torch.nn.Module) -> Iterable[tuple[str, Tensor]]:
    for name, value in network.named_parameters():
        if value.ndim >= 2 and name.endswith("weight"):
            yield name, value


def _original(saved: Any, current: Tensor) -> Tensor:
    """The host keeps the unpatched weight in a backup while a LoRA is baked in."""
    weight = getattr(saved, "weight", saved)
    return weight if isinstance(weight, Tensor) else current


def _signs(weights: Iterable[Tensor]) -> bytes:
    """1 where a value is negative: an underflow to zero keeps a positive value's bit, and -0.0 counts as negative."""
    samples = [torch.signbit(_spread(weight.detach())) for weight in weights]
    if not samples:
        return b""
    on_device: dict[torch.device, list[int]] = {}
    for index, sample in enumerate(samples):
        on_device.setdefault(sample.device, []).append(index)
    for indices in on_device.values():  # one transfer for each device instead of one for each tensor
        parts = torch.cat([samples[i] for i in indices]).cpu().split([samples[i].numel() for i in indices])
        for i, part in zip(indices, parts, strict=True):
            samples[i] = part
    return torch.cat(samples).to(torch.uint8).numpy().tobytes()


def _spread(weight: Tensor) -> Tensor:
    """VALUES entries, evenly spread over the tensor."""
    flat = weight.reshape(-1)
    return flat[:: max(1, flat.numel() // VALUES)][:VALUES]
