"""Digests of what a graph connects, to tell whether it is the same."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from .contents import PLAIN, Weights, leaves
from .weights import UnreadableWeights, sample, spread

LOOKED_AT = 96
"""Tensors of a network, or of a file of weights, that are looked at."""
LARGEST = 2**22
"""Values of a tensor of a patch that are read, evenly spread."""


def digest_of(value: Any) -> str:
    """16 hex digits of a nested value: tensors by their content, networks and files of weights by some of it, objects
    (ControlNets, hooks, functions) by what they were made with. UnreadableWeights for a network without readable ones.
    """
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
        for path, leaf in leaves(value, whole=True):
            digest.update("/".join(path).encode())
            if isinstance(leaf, Weights):
                digest.update(leaf.kind.encode() + weights_bytes(leaf))
            else:
                _feed(digest, leaf)


def weights_bytes(weights: Weights, *, signs: bool = False) -> bytes:
    """A digest of a network, read once: names and shapes of all tensors, some values of LOOKED_AT; of floats the signs
    alone where casting shall not count. UnreadableWeights if they cannot be read."""
    known = _known.setdefault(weights.owner, {}) if isinstance(weights.owner, torch.nn.Module) else {}
    if signs not in known:
        tensors = sorted(weights.tensors(), key=lambda item: item[0])
        names = [f"{name}{tuple(tensor.shape)}" for name, tensor in tensors]
        chosen = [tensors[place] for place in spread(names, LOOKED_AT)]
        parts = ("".join(names).encode(), *sample(chosen, 2 * LOOKED_AT, signs=signs))
        known[signs] = hashlib.sha256(b"".join(parts)).digest()
    return known[signs]


_known: weakref.WeakKeyDictionary[torch.nn.Module, dict[bool, bytes]] = weakref.WeakKeyDictionary()


def network_name(network: Any) -> str:
    """Its class and 16 hex digits of its weights, the same in every precision; the class alone where it has none that
    can be read."""
    name = type(network).__name__
    with suppress(UnreadableWeights):
        for _, leaf in leaves(network):
            if isinstance(leaf, Weights):
                return f"{name} {weights_bytes(leaf, signs=True).hex()[:16]}"
    return name


def tensor_bytes(tensor: Tensor) -> bytes:
    """Shape and content; of a large one LARGEST values, evenly spread."""
    flat = tensor.detach().reshape(-1)
    flat = flat[:: -(-max(1, flat.numel()) // LARGEST)].to("cpu", torch.float32)
    return f"{tuple(tensor.shape)}".encode() + flat.contiguous().numpy().tobytes()
