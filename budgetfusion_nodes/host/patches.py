"""Weight patches of a MODEL, told apart by what the host does with them: LoRAs, and weights of other models.

`patches[key]` is a list of (strength, value, strength_model, offset, function): the weight times strength_model, plus
strength times the value. A LoRA's value is an adapter or a difference and leaves strength_model at 1. A merge scales
the weight, or its value is a list: another model's weight (with a function), then that model's own patches.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .weights import UnreadableWeights, sample

ADAPTED = 16
"""At most so many of the weights that LoRAs change are looked at, to tell one LoRA from another."""
LOOKS = 64
"""Runs of neighbouring values that are read of their tensors."""
KEPT = 16
"""Sets of LoRAs whose digest is kept."""


@dataclass(frozen=True)
class WeightPatches:
    """What a MODEL's patches make of its weights."""

    lora_weights: int = 0
    """Weights that at least one LoRA changes."""
    loras: int = 0
    """LoRAs stacked on one weight, at most: at least so many were loaded."""
    lora_digest: str = ""
    """Equal for the same LoRAs at the same strengths, in whatever order they were loaded."""
    sources: Mapping[str, Tensor] = field(default_factory=dict)
    """Weights that are another model's altogether (a merge at ratio 0), by key."""
    mixed: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Patches that mix other weights in, by key."""

    @property
    def merged(self) -> int:
        """Number of weights that are not the loaded file's."""
        return len(self.sources.keys() | self.mixed.keys())


_kept: OrderedDict[Hashable, WeightPatches] = OrderedDict()
"""Of patch sets without a merge, which hold no tensor."""


def weight_patches(model: Any) -> WeightPatches:
    """Sorted out for all keys of a MODEL; once for a set of LoRAs, whichever clone has it. A patch of strength 0 that
    leaves the weight as it is counts as none."""
    patches: Mapping[str, Sequence[Any]] = getattr(model, "patches", None) or {}
    # the host gives a new uuid with each patch; the tuples tell what another pack writes past it
    uuid = getattr(model, "patches_uuid", None)
    key = (uuid, *((name, *map(id, listed)) for name, listed in patches.items()))
    known = _kept.get(key)
    if known is None:
        known = _sorted_out(patches)
        if uuid is None or known.merged:
            return known
        _kept[key] = known
    _kept.move_to_end(key)
    while len(_kept) > KEPT:
        _kept.popitem(last=False)
    return known


def _sorted_out(patches: Mapping[str, Sequence[Any]]) -> WeightPatches:
    lora_weights = loras = 0
    sources: dict[str, Tensor] = {}
    mixed: dict[str, Sequence[Any]] = {}
    adapters: list[tuple[str, float, Any]] = []
    for key, listed in patches.items():
        source, mixes, stacked = _sort(listed)
        if source is not None:
            sources[key] = source
        if mixes:
            mixed[key] = mixes
        adapters.extend((key, patch[0], patch[1]) for patch in stacked)
        lora_weights += bool(stacked)
        loras = max(loras, len(stacked))
    return WeightPatches(lora_weights, loras, adapters_digest(adapters), sources, mixed)


def adapters_digest(adapters: Iterable[tuple[str, Any, Any]]) -> str:
    """8 hex digits of (key of the weight, strength, value) of LoRAs, whatever their order; empty where there is none.

    The strengths of all count, and a few values of the tensors on ADAPTED of the weights.
    """
    listed = list(adapters)
    if not listed:
        return ""
    keys = sorted({str(key) for key, _, _ in listed})
    chosen = set(keys[:: -(-len(keys) // ADAPTED)])
    strengths = Counter(strength for _, strength, _ in listed)
    parts = sorted(f"{float(strength):.6g} {count}".encode() for strength, count in strengths.items())
    tensors = [
        (f"{key} {float(strength):.6g}", tensor)
        for key, strength, value in listed
        if str(key) in chosen
        for tensor in tensors_in(value)
    ]
    with suppress(UnreadableWeights):
        parts.extend(sorted(sample(tensors, LOOKS)))
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:8]


def _sort(listed: Sequence[Any]) -> tuple[Tensor | None, list[Any], list[Any]]:
    """(the weight that takes this one's place, patches that mix others in, patches of LoRAs)."""
    source: Tensor | None = None
    mixes: list[Any] = []
    loras: list[Any] = []
    for patch in listed:
        strength, value, strength_model, *rest = patch
        if isinstance(value, list) and value and (strength, strength_model, *rest) == (1, 0, *[None] * len(rest)):
            weight = value[0][0] if isinstance(value[0], tuple) else value[0]
            inner, mixes, loras = _sort(value[1:])
            source = weight if inner is None else inner
        elif strength == 0 and strength_model == 1 and not _sets(value):
            continue
        elif isinstance(value, list) or strength_model != 1 or _sets_matrix(value):
            mixes.append(patch)
        else:
            loras.append(patch)
    return source, mixes, loras


def _sets(value: Any) -> bool:
    """A patch that writes over the weight, whatever its strength."""
    return isinstance(value, tuple) and len(value) == 2 and value[0] == "set"


def _sets_matrix(value: Any) -> bool:
    """LoRA files set a few vectors (norms); a matrix that is set is another model's."""
    return _sets(value) and any(tensor.ndim >= 2 for tensor in tensors_in(value))


def describe(patch: Any) -> str:
    """Strengths and form of a patch, without its values."""
    strength, value, strength_model, *rest = patch
    inner = "".join(describe(part) for part in value[1:]) if isinstance(value, list) else type(value).__name__
    offset = rest[0] if rest else None
    return f"[{float(strength):.6g} {float(strength_model):.6g} {offset} {inner}]"


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors of a patch's value: nested lists and tuples, and the weights of an adapter."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)
    elif hasattr(value, "weights"):
        yield from tensors_in(value.weights)
