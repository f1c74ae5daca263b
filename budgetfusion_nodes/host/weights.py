"""The weights of a host MODEL as they were in its file, and a small sample of them, whatever they are packed in.

Nothing is dequantised: the bytes that are stored are read. Of floats (fp64 to fp8, scaled fp8 included) only signs
count, which casting keeps, also where a value underflows to zero. Of everything else (GGUF blocks, int8, 4 bits) the
packed bytes themselves count, so such a file is a model of its own.
"""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

NETWORK = "diffusion_model"
PREFIX = NETWORK + "."
COMPILED = "_orig_mod"
"""Where torch.compile's wrapper keeps the module that it compiled."""

RUN = 16
"""Neighbouring values in one look at a tensor. A run is one page of a file that is mapped but not yet in memory."""
RUNS = 256
"""Looks at a model, at least: 4,096 signs; two models that differ in 1 % of them collide with probability .99^4096."""
MATRICES = 256
"""At most so many matrices are looked at, chosen by a hash of their names, so that no layer is favoured."""
FEWEST = 16
"""A network with fewer readable matrices keeps its weights where we cannot see them (engines of other packs)."""

Found = tuple[str, torch.nn.Module, str]
"""(name, the module that has it, its name there)."""

DISPATCH = "__torch_dispatch__"
"""What a subclass overrides that answers each operation itself, from data that it need not show."""

NESTED = 8
"""At most so many wrappers lie around the data."""

PACKED = (torch.uint8, torch.int8, torch.int32)
"""What is large and of such a kind is packed weights, whatever its name; of other kinds what is named a weight."""
SMALLEST_BUFFER = 1024
UNSIGNED = tuple(
    getattr(torch, name) for name in ("float8_e8m0fnu", "float4_e2m1fn_x2") if hasattr(torch, name)
)  # floats whose top bit is no sign
BY_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class UnreadableWeights(Exception):
    """This network's weights cannot be looked at; the message is the kind of the first that could not."""


@dataclass(frozen=True)
class Stored:
    """A weight as it is stored."""

    data: Tensor
    """A plain tensor of the bytes."""
    packing: str
    """Empty for floats in their own order; else what tells this layout from others."""


def original_network(model: Any) -> torch.nn.Module:
    """The denoiser of a MODEL without what an object patch (torch.compile, for instance) has put in its place.

    A patch that puts another network there, which does not contain the original, is that other network.
    """
    saved = getattr(model, "object_patches_backup", None) or {}
    network = uncompiled(saved.get(NETWORK, getattr(model.model, NETWORK, model.model)))
    patched = (getattr(model, "object_patches", None) or {}).get(NETWORK)
    if isinstance(patched, torch.nn.Module) and all(part is not network for part in patched.modules()):
        return uncompiled(patched)
    return network


def uncompiled(module: Any) -> Any:
    """The module that torch.compile wrapped, or `module` itself."""
    return module._modules.get(COMPILED, module) if isinstance(module, torch.nn.Module) else module


def original_weights(model: Any, network: torch.nn.Module) -> list[tuple[str, Tensor]]:
    """(name, weight) of the matrices to look at, sorted by name, as they were before any patch of this or an earlier
    run."""
    return _read(model, _places(model, network))


def matrices(model: Any, network: torch.nn.Module) -> list[tuple[str, Tensor]]:
    """(name, unpatched weight) of all matrices, sorted by name."""
    return _read(model, [Place.of(found) for found in sorted(_walk(network, _saved_below(model)), key=_name)])


class Place(NamedTuple):
    """Where a weight is found again without another walk over thousands of modules. It keeps no module alive."""

    name: str
    owner: weakref.ref[torch.nn.Module]
    key: str

    @classmethod
    def of(cls, found: Found) -> Place:
        return cls(found[0], weakref.ref(found[1]), found[2])

    def current(self) -> Tensor | None:
        owner = self.owner()
        if owner is None:
            return None
        value = owner._parameters.get(self.key)
        return owner._buffers.get(self.key) if value is None else value


_known: weakref.WeakKeyDictionary[torch.nn.Module, list[Place]] = weakref.WeakKeyDictionary()
"""Network -> its places: clones of one loaded model share them. Only where to look is kept, never what was seen there:
the host's weights are inference tensors, which do not tell that they were changed in place."""


def _places(model: Any, network: torch.nn.Module) -> list[Place]:
    """The MATRICES places to look at."""
    known = _known.get(network)
    if known is not None and all(place.current() is not None for place in known):
        return known
    found = _walk(network, _saved_below(model))
    if len(found) > MATRICES:
        found = sorted(found, key=lambda item: (zlib.crc32(item[0].encode()), item[0]))[:MATRICES]
    _known[network] = [Place.of(item) for item in sorted(found, key=_name)]
    return _known[network]


def spread(names: Sequence[str], count: int) -> list[int]:
    """Places of at most `count` of sorted names: one in each of as many equal parts, chosen by a hash, so that no part
    of a network and no kind of layer is favoured."""
    count = min(count, len(names))
    ends = [index * len(names) // max(1, count) for index in range(count + 1)]
    return [min(range(start, end), key=lambda i: zlib.crc32(names[i].encode())) for start, end in pairwise(ends)]


def _name(found: Found) -> str:
    return found[0]


def _saved_below(model: Any) -> dict[str, Any]:
    """What object patches of an earlier run replaced, by its path in the network."""
    saved = getattr(model, "object_patches_backup", None) or {}
    return {key[len(PREFIX) :]: value for key, value in saved.items() if key.startswith(PREFIX)}


def _walk(network: torch.nn.Module, saved: Mapping[str, Any]) -> list[Found]:
    """Matrices among the parameters that are weights by name, and whatever is packed. `named_parameters` gives the
    patched modules of an earlier run, under other names."""
    weights: list[Found] = []
    others: list[Found] = []
    stack, seen = [("", network)], set()
    while stack:
        path, module = stack.pop()
        if id(module) in seen:  # tied
            continue
        seen.add(id(module))
        for name, value in module._parameters.items():
            if value is not None and value.ndim >= 2:
                told = name.endswith("weight") or _is_packed(name, value)
                (weights if told else others).append((path + name, module, name))
        for name, value in module._buffers.items():
            if value is not None and _is_packed(name, value):
                weights.append((path + name, module, name))
        for name, child in module._modules.items():
            inner = uncompiled(saved.get(path + name, child) if saved else child)
            if isinstance(inner, torch.nn.Module):
                stack.append((f"{path}{name}.", inner))
    return weights if len(weights) >= FEWEST else weights + others  # other packs have names of their own


def _is_packed(name: str, value: Tensor) -> bool:
    return value.numel() >= SMALLEST_BUFFER and (value.dtype in PACKED or name.endswith("weight"))


def _read(model: Any, places: Sequence[Place]) -> list[tuple[str, Tensor]]:
    backups = [kept for kept in (getattr(model, kind, None) for kind in ("backup", "hook_backup")) if kept]
    saved = {key: value for key, value in _saved_below(model).items() if isinstance(value, Tensor)}
    found: list[tuple[str, Tensor]] = []
    for place in places:
        value = place.current()
        if saved:
            value = saved.get(place.name, value)
        if value is not None:
            found.append((place.name, _unpatched(PREFIX + place.name, value, backups) if backups else value))
    return found


def _unpatched(key: str, current: Tensor, backups: Sequence[Mapping[str, Any]]) -> Tensor:
    """The host keeps the unpatched weight while a LoRA is baked in: `.weight` of an entry, or first of a tuple."""
    for backup in backups:
        saved = backup.get(key)
        weight = getattr(saved, "weight", saved[0] if isinstance(saved, tuple) else saved)
        if isinstance(weight, Tensor):
            return weight
    return current


def stored(value: Tensor) -> Stored:
    """What is in memory. UnreadableWeights for a tensor subclass that does not show its data."""
    data, packing = value, ""
    for _ in range(NESTED):
        inner = None if type(data) in (Tensor, torch.nn.Parameter) else _inner(data)
        if inner is None:
            break
        packing += f"{getattr(data, '_layout_cls', type(data).__name__)} "
        data = inner
    else:  # it leads back to itself
        raise UnreadableWeights(type(value).__name__)
    if data.is_meta or data.dtype.itemsize not in BY_SIZE or data.layout != torch.strided:
        raise UnreadableWeights(type(value).__name__)
    if _signed(data.dtype):  # floats in the weight's own order, or something else that is kept in floats
        return Stored(data, "" if tuple(data.shape) == tuple(value.shape) else packing)
    return Stored(data, packing + str(data.dtype))


def _signed(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and dtype not in UNSIGNED


def _inner(value: Tensor) -> Tensor | None:
    """The packed data of a wrapper that has no storage of its own; None where the tensor is its own data."""
    data = getattr(value, "_qdata", None)  # the host's QuantizedTensor
    if isinstance(data, Tensor):
        return data
    if hasattr(value, "__tensor_flatten__"):  # PyTorch's protocol for wrapper subclasses (torchao and others)
        names: Sequence[str] = getattr(value, "__tensor_flatten__")()[0]  # noqa: B009
        parts = [part for part in (getattr(value, name, None) for name in names) if isinstance(part, Tensor)]
        if parts:
            return max(parts, key=lambda part: part.numel() * part.dtype.itemsize)
    if getattr(type(value), DISPATCH) is not getattr(Tensor, DISPATCH):
        raise UnreadableWeights(type(value).__name__)
    return None


def sample(weights: Iterable[tuple[str, Tensor]], looks_at_all: int = RUNS, *, signs: bool = True) -> Iterator[bytes]:
    """For each weight its name, shape, packing and a few of its values, as bytes for a digest.

    signs: of floats the signs alone, which casting keeps. One transfer for each device. UnreadableWeights if one cannot
    be read.
    """
    # a subclass such as a GGUF tensor would otherwise answer in its own class and with the shape it will have unpacked
    with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
        listed = [(name, value, stored(value)) for name, value in weights]
        runs = max(1, looks_at_all // max(1, len(listed)))
        looks = [(held.data, _look(name, held.data, runs)) for name, _, held in listed]
        for (name, value, held), values in zip(listed, _transfer(looks, signs), strict=True):
            shape = tuple(value.shape) if not held.packing else tuple(held.data.shape)
            yield f"{name}{shape}{held.packing}\0".encode() + values


def magnitude(weights: Iterable[tuple[str, Tensor]]) -> float:
    """Mean of the absolute values, of floats, that `sample` looks at in one run of each."""
    with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
        held = [(name, stored(value).data) for name, value in weights]
        runs = [
            run.view(data.dtype).to("cpu", torch.float64).abs()
            for name, data in held
            if _signed(data.dtype)
            for run in _look(name, data, 1)
        ]
        return float(torch.cat(runs).mean()) if runs else 0.0


def raw_bytes(weights: Iterable[tuple[str, Tensor]]) -> bytes:
    """RUN neighbouring values of each weight as they are stored. UnreadableWeights if one cannot be read."""
    with torch._C.DisableTorchFunctionSubclass(), torch.no_grad():
        looks: dict[tuple[torch.device, int], list[Tensor]] = {}
        for name, value in weights:
            data = stored(value).data
            looks.setdefault((data.device, data.dtype.itemsize), []).extend(_look(name, data, 1))
        joined = _to_cpu({key: torch.cat(runs) for key, runs in looks.items() if runs})
        return b"".join(part.tobytes() for part in joined.values())


def _look(name: str, data: Tensor, runs: int) -> list[Tensor]:
    """`runs` runs of values, evenly spread, from a place that the name decides."""
    count = data.numel()
    if count == 0:
        return []
    runs = max(1, min(runs, count // RUN))
    step, size = count // runs, min(RUN, count)
    start = zlib.crc32(name.encode()) % max(1, step - size + 1)
    try:
        return [_run(data, start + index * step, size) for index in range(runs)]
    except RuntimeError as error:  # the storage does not hold what the shape says
        raise UnreadableWeights(type(data).__name__) from error


def _run(data: Tensor, start: int, size: int) -> Tensor:
    """`size` neighbours [size] as integers of their width, in the order of a contiguous tensor."""
    if data.is_contiguous():
        values = torch.as_strided(data, (size,), (1,), data.storage_offset() + start)
    else:
        places = torch.arange(start, start + size, device=data.device)
        values = data[torch.unravel_index(places, tuple(data.shape))]
    return values.view(BY_SIZE[data.dtype.itemsize])


def _transfer(looks: Sequence[tuple[Tensor, list[Tensor]]], signs: bool) -> list[bytes]:
    """The looked-at values on the CPU: all bytes, or with `signs` of floats the signs (one byte each, 1 where
    negative)."""
    groups: dict[tuple[torch.device, int], list[int]] = {}
    for index, (data, runs) in enumerate(looks):
        if runs:
            groups.setdefault((data.device, data.dtype.itemsize), []).append(index)
    flat = {key: torch.cat([run for i in indices for run in looks[i][1]]) for key, indices in groups.items()}
    answers = [b""] * len(looks)
    for key, values in _to_cpu(flat).items():
        at = 0
        for index in groups[key]:
            data, runs = looks[index]
            count = sum(run.numel() for run in runs) * key[1]
            part, at = values[at : at + count], at + count
            # the last byte of a little-endian float has its sign
            answers[index] = (part[key[1] - 1 :: key[1]] >> 7 if signs and _signed(data.dtype) else part).tobytes()
    return answers


def _to_cpu(flat: Mapping[tuple[torch.device, int], Tensor]) -> dict[tuple[torch.device, int], np.ndarray]:
    """Bytes of each group, brought over at once for each device."""
    found: dict[tuple[torch.device, int], np.ndarray] = {}
    for device in {key[0] for key in flat}:
        keys = [key for key in flat if key[0] == device]
        parts = [flat[key].view(torch.uint8) for key in keys]
        everything = torch.cat(parts).cpu().numpy()
        ends = np.cumsum([part.numel() for part in parts])
        found.update(zip(keys, np.split(everything, ends[:-1]), strict=True))
    return found
