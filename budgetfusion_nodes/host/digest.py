"""Digests of what a graph connects, to tell whether it is the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .weights import raw_bytes

HINT = "cond_hint_original"
"""What every ControlNet of the host, and T2I adapter, has."""
CONTROL = (HINT, "strength", "timestep_percent_range", "extra_concat_orig", "control_model", "t2i_model")
CONTROL += ("previous_controlnet",)
"""Of a ControlNet. What else it has belongs to a run, or follows from these."""
PLAIN = (str, int, float, bool, type(None))


def digest_of(value: Any) -> str:
    """16 hex digits of a nested value: tensors by their content, networks by some of their weights,
    ControlNets and objects that hold nothing but data by what they hold, other objects by their type."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()[:16]


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{tuple(value.shape)}".encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            digest.update(str(key).encode())
            _feed(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            _feed(digest, item)
    elif isinstance(value, PLAIN):
        digest.update(repr(value).encode())
    else:
        digest.update(type(value).__name__.encode())
        if isinstance(value, nn.Module):
            digest.update(raw_bytes(value.named_parameters()))
        else:
            _feed(digest, _content(value))


def _content(thing: Any) -> dict[str, Any]:
    held: Mapping[str, Any] = getattr(thing, "__dict__", {})
    if HINT in held:
        return {name: held[name] for name in CONTROL if name in held}
    return dict(held) if all(map(_is_data, held.values())) else {}


def _is_data(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_data, value.values()))
    return all(map(_is_data, value)) if isinstance(value, (list, tuple)) else isinstance(value, (Tensor, *PLAIN))
