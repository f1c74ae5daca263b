"""Weight patches of a MODEL, told apart by what the host does with them: LoRAs, and weights of other models.

`patches[key]` is a list of (strength, value, strength_model, offset, function): the weight times strength_model, plus
strength times the value. A LoRA's value is an adapter or a difference and leaves strength_model at 1. A merge scales
the weight, or its value is a list: another model's weight (with a function), then that model's own patches.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn

from ..core.recent import Recent
from .weights import UnreadableWeights, magnitude, sample, spread

ADAPTED = 32
"""At most so many of the adapters are looked at, evenly over the network, to tell one LoRA from another; ..."""
FEWEST_ADAPTED = 12
"""... but those of so many weights, however many LoRAs are stacked."""
LOOKS = 96
"""Runs of neighbouring values that are read of their tensors."""
KEPT = 16
"""Sets of LoRAs whose digest is kept."""

PLAIN = (float, int, str, type(None))

T = TypeVar("T")


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


_kept: Recent[Hashable, Any] = Recent(KEPT)
"""Of patch sets without a merge, which hold no tensor."""
_bypassed: weakref.WeakKeyDictionary[Any, tuple[Hashable, str]] = weakref.WeakKeyDictionary()


def weight_patches(model: Any) -> WeightPatches:
    """Sorted out for all keys of a MODEL; once for a set of LoRAs, whichever clone has it. A patch of strength 0 that
    leaves the weight as it is counts as none."""
    patches: Mapping[str, Sequence[Any]] = getattr(model, "patches", None) or {}
    key = (_state("", patches),)
    return _once(model, key, lambda: _sorted_out(patches), lambda found: not found.merged)


def hook_digest(model: Any) -> str:
    """`adapters_digest` of the LoRAs that a MODEL's own hooks apply while sampling; once for a set of hooks."""
    hooks: Mapping[Any, Mapping[Any, Sequence[Any]]] = getattr(model, "hook_patches", None) or {}
    key = tuple(_state(id(hook), by_key) for hook, by_key in hooks.items())
    stacked = (item for by_key in hooks.values() for item in by_key.items())
    return _once(model, key, lambda: adapters_digest(_adapter(k, patch) for k, held in stacked for patch in held))


def bypass_digest(manager: Any) -> str:
    """`adapters_digest` of the LoRAs that the host runs beside the weights. manager: the host's, with `adapters` by key
    as pairs of an adapter and its strength."""
    listed = [(str(key), pair[1], pair[0]) for key, pair in manager.adapters.items()]
    state = tuple((key, strength, id(adapter)) for key, strength, adapter in listed)
    known = _bypassed.get(manager)
    if known is None or known[0] != state:
        known = _bypassed[manager] = (state, adapters_digest(listed, cast=True))
    return known[1]


def _state(name: Hashable, patches: Mapping[Any, Sequence[Any]]) -> Hashable:
    """The patches' tuples tell what another pack writes past the host, which gives a new uuid with each patch."""
    return (name, *((key, *map(id, listed)) for key, listed in patches.items()))


def _once(model: Any, key: Hashable, make: Callable[[], T], keep: Callable[[T], bool] = lambda _: True) -> T:
    uuid = getattr(model, "patches_uuid", None)
    place = (uuid, key)
    known = _kept.used(place)
    if known is not None:
        return known
    found = make()
    if uuid is not None and keep(found):
        _kept[place] = found
    return found


def _sorted_out(patches: Mapping[str, Sequence[Any]]) -> WeightPatches:
    lora_weights = loras = 0
    sources: dict[str, Tensor] = {}
    mixed: dict[str, Sequence[Any]] = {}
    adapters: list[tuple[str, Any, Any]] = []
    for key, listed in patches.items():
        source, mixes, stacked = _sort(listed)
        if source is not None:
            sources[key] = source
        if mixes:
            mixed[key] = mixes
        adapters.extend(_adapter(key, patch) for patch in stacked)
        lora_weights += bool(stacked)
        loras = max(loras, len(stacked))
    return WeightPatches(lora_weights, loras, adapters_digest(adapters), sources, mixed)


def _adapter(key: Any, patch: Sequence[Any]) -> tuple[str, Any, Any]:
    """(key of the weight and the part of it, strength, value) of a patch."""
    part = patch[3] if len(patch) > 3 else None
    return str(key) if part is None else f"{key} {part}", patch[0], patch[1]


def adapters_digest(adapters: Iterable[tuple[str, Any, Any]], cast: bool = False) -> str:
    """8 hex digits of (key of the weight, strength, value) of LoRAs, whatever their order; empty where there is none.

    All keys and strengths count, and of ADAPTED of them the kind of adapter, its numbers (alpha) and a few values
    of its tensors, bit by bit. cast: the host may have cast the tensors in place, so of their values the signs
    count, and to two digits the magnitude of all.
    """
    by_strength: dict[float, list[str]] = {}
    listed = list(adapters)
    for key, strength, _ in listed:
        by_strength.setdefault(float(strength), []).append(key)
    if not listed:
        return ""
    parts = [f"{strength:.6g} {' '.join(sorted(keys))}" for strength, keys in sorted(by_strength.items())]
    chosen = _chosen([key for key, _, _ in listed])
    named: list[tuple[str, Tensor]] = []
    for key, strength, value in listed:
        if key in chosen:
            taken = list(_taken_apart(value))
            parts.append(" ".join([key, f"{float(strength):.6g}", *(part for part in taken if isinstance(part, str))]))
            tensors = (part for part in taken if isinstance(part, Tensor))
            named.extend((f"{parts[-1]} {index}", tensor) for index, tensor in enumerate(tensors))
    return hashlib.sha256(b"\0".join((*sorted(map(str.encode, parts)), *_values(named, cast)))).hexdigest()[:8]


def _chosen(keys: Sequence[str]) -> set[str]:
    """The keys whose adapters are looked at."""
    different = sorted(set(keys))
    count = max(FEWEST_ADAPTED, ADAPTED * len(different) // len(keys))
    return {different[place] for place in spread(different, count)}


def _values(named: Sequence[tuple[str, Tensor]], cast: bool) -> list[bytes]:
    with suppress(UnreadableWeights):
        found = sorted(sample(named, LOOKS, signs=cast))
        return [*found, f"{magnitude(named):.1e}".encode()] if cast else found
    return []


def _taken_apart(value: Any) -> Iterator[Tensor | str]:
    """The tensors of a patch's value, and what else there is as words: nested lists, an adapter's kind and numbers."""
    if isinstance(value, PLAIN):
        yield repr(value)
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        yield str(len(value))
        for part in value:
            yield from _taken_apart(part)
    elif isinstance(value, nn.Module):
        yield type(value).__name__
        yield from value.parameters()
    elif hasattr(value, "weights"):
        yield type(value).__name__
        yield from _taken_apart(value.weights)
    else:
        yield type(value).__name__


def _sort(listed: Sequence[Any]) -> tuple[Tensor | None, list[Any], list[Any]]:
    """(the weight that takes this one's place, patches that mix others in, patches of LoRAs)."""
    source: Tensor | None = None
    mixes: list[Any] = []
    loras: list[Any] = []
    for patch in listed:
        if patch[0] and patch[2] == 1 and not isinstance(patch[1], (list, tuple)):  # an adapter, as nearly all are
            loras.append(patch)
            continue
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
    return (part for part in _taken_apart(value) if isinstance(part, Tensor))
