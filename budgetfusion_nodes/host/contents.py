"""What functions and objects of a graph were made with: plain values, tensors and networks, by where they lie.

What belongs to a run, and not to the graph, is left out: what a function or a method writes itself.
"""

from __future__ import annotations

import dis
import enum
import functools
import inspect
import weakref
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import CodeType, ModuleType
from typing import Any, TypeAlias

from torch import Tensor, nn

PLAIN = (str, int, float, bool, type(None))
LEAF = (*PLAIN, Tensor)

HINT = "cond_hint_original"
"""What every ControlNet of the host, and T2I adapter, has."""
CONTROL = (HINT, "strength", "strength_type", "timestep_percent_range", "extra_concat_orig", "extra_args", "mask")
CONTROL += ("control_model", "control_weights", "t2i_model", "weights", "timestep_keyframes", "latent_keyframes")
CONTROL += ("extra_hooks", "previous_controlnet")
HOOK = ("_strength_model", "weights", "object_patches", "transformers_dict", "models", "injections", "hook_scope")
KNOWN = {
    HINT: CONTROL,
    "hook_keyframe": (*HOOK, "hook_keyframe"),
    "guarantee_steps": ("strength", "start_percent", "guarantee_steps"),
    "_hook_dict": ("hooks",),
    "keyframes": ("keyframes",),
}
"""An attribute that tells the host's class (and those of packs that follow it) -> what of it moves the image. What else
these have belongs to a run, or follows from that."""
NOT_PUBLIC = ("base_model",)
"""Entries of a ControlNet's arguments that a run puts there."""

DEEPEST = 8
MOST = 20_000
"""Leaves of one value; what has more is told by these."""
BULK = 64
"""Tensors of one dict, beyond which it holds weights, of which a sample is enough, and no pictures."""
MUTATORS = frozenset(("append", "add", "update", "pop", "clear", "setdefault", "extend", "popitem", "remove"))


@dataclass(frozen=True)
class Weights:
    """A network, or a file's weights."""

    kind: str
    tensors: Callable[[], list[tuple[str, Tensor]]]
    """Named; listed on use."""
    owner: Any
    """The network itself."""


Leaf: TypeAlias = "str | int | float | bool | Tensor | Weights | None"
Path: TypeAlias = tuple[str, ...]


def leaves(value: Any, *, whole: bool = False, run: Container[int] = ()) -> list[tuple[Path, Leaf]]:
    """(where, what) of everything in a nested value, functions and objects included, with the name of their maker.

    whole: of objects all attributes, else those that their class was given. run: see `written_cells`.
    """
    walk = _Walk(whole, run)
    walk.walk(value, ())
    return walk.found


class _Walk:
    def __init__(self, whole: bool, run: Container[int]) -> None:
        self.whole, self.run = whole, run
        self.inside: set[int] = set()
        """Objects that are being entered: a circle ends there."""
        self.found: list[tuple[Path, Leaf]] = []

    def walk(self, value: Any, path: Path) -> None:
        if isinstance(value, LEAF):
            self.found.append((path, value))
        elif id(value) in self.inside or len(path) > DEEPEST or len(self.found) > MOST:
            self.found.append((path, type(value).__name__))
        else:
            self.inside.add(id(value))
            self._enter(value, path)
            self.inside.discard(id(value))

    def _enter(self, value: Any, path: Path) -> None:
        if isinstance(value, Mapping):
            self._mapping(value, path)
        elif isinstance(value, (list, tuple)):
            for index, item in enumerate(value):
                self.walk(item, (*path, str(index)))
        elif isinstance(value, nn.Module):
            self.found.append((path, Weights(type(value).__name__, lambda: _of_module(value), value)))
        else:
            text = _as_text(value)
            if text is None:
                self._object(value, path)
            else:
                self.found.append((path, text))

    def _mapping(self, value: Mapping[Any, Any], path: Path) -> None:
        if len(value) > BULK:
            tensors = [(str(key), tensor) for key, held in value.items() for tensor in _tensors(held)]
            if len(tensors) > BULK:
                self.found.append((path, Weights("", lambda: tensors, value)))
                return
        for key in sorted(value, key=str):
            if key not in NOT_PUBLIC:
                self.walk(value[key], (*path, str(key)))

    def _object(self, value: Any, path: Path) -> None:
        inner = getattr(value, "model", None)
        if isinstance(inner, nn.Module) and hasattr(value, "patches"):  # a MODEL
            self.walk(inner, path)
            return
        self.found.append((path, maker(value)))
        for name, held in sorted(self._attributes(value).items()):
            self.walk(held, (*path, name))

    def _attributes(self, value: Any) -> Mapping[str, Any]:
        held: Mapping[str, Any] = getattr(value, "__dict__", None) or {}
        for mark, names in KNOWN.items():
            if mark in held:
                return {name: held[name] for name in names if name in held}
        return held if self.whole and not callable(value) else made_with(value, self.run)


def _as_text(value: Any) -> str | None:
    """What has no parts to enter; None for other objects."""
    if isinstance(value, (set, frozenset)):
        return " ".join(sorted(map(str, value)))
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, (type, ModuleType)):
        return value.__name__
    if hasattr(value, "tobytes"):  # arrays and pictures
        return f"{type(value).__name__} {zlib.crc32(value.tobytes()):08x}"
    return None


def _of_module(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


# --------------------------------------------------------------------------------------------- functions and objects


def maker(thing: Any) -> str:
    """The node or function that made a function, or the class of an object."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    name = getattr(thing, "__qualname__", None)
    return (name if isinstance(name, str) else type(thing).__name__).split(".")[0].removesuffix("<lambda>")


def made_with(thing: Any, run: Container[int] = ()) -> dict[str, Any]:
    """What a function, method, partial or object was given, by name, without what its run writes."""
    if isinstance(thing, functools.partial):
        rest = tuple(f"argument {index}" for index in range(len(thing.args)))
        positional = dict(zip((*_parameters(thing.func), *rest), thing.args, strict=False))
        return {**made_with(thing.func, run), **positional, **thing.keywords}
    if inspect.ismethod(thing):
        owner = {} if isinstance(thing.__self__, nn.Module) else _constructed(thing.__self__, thing.__name__)
        return {**owner, **made_with(thing.__func__, run)}
    if hasattr(thing, "__code__"):
        return {**_defaults(thing), **closed_over(thing, run)}
    return _constructed(thing, "__call__")


def closed_over(function: Any, run: Container[int] = ()) -> dict[str, Any]:
    """What a function closes over, by its names, without what it writes itself: that is a state of the run."""
    cells = _cells(function)
    written = _written(function.__code__) if cells else frozenset()
    return {
        name: held
        for name, cell in cells.items()
        if name not in written and id(cell) not in run
        for held in _content(cell)
    }


def written_cells(functions: Iterable[Any]) -> set[int]:
    """Ids of the variables that some of these functions write: what one writes, those that were made with it share."""
    return {
        id(cell)
        for function in functions
        for name, cell in _cells(function).items()
        if name in _written(function.__code__)
    }


def _cells(function: Any) -> dict[str, Any]:
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None) or ()
    return {} if code is None else dict(zip(code.co_freevars, cells, strict=False))


def _content(cell: Any) -> Iterator[Any]:
    with suppress(ValueError):  # nothing in it yet
        held = cell.cell_contents
        seen = isinstance(held, dict) and any(not isinstance(key, (str, int, float)) for key in held)
        if not seen:  # devices and the like: what a run has shown to the function
            yield held


def _defaults(function: Any) -> dict[str, Any]:
    """Arguments that were given when the function was made, as in `lambda x, scale=scale: ...`."""
    given = getattr(function, "__defaults__", None) or ()
    by_place = dict(zip(_parameters(function)[-len(given) :], given, strict=False)) if given else {}
    return {**by_place, **(getattr(function, "__kwdefaults__", None) or {})}


def _parameters(function: Any) -> tuple[str, ...]:
    """Names of the arguments that may be given by place; none where a function does not tell."""
    code = getattr(function, "__code__", None)
    return () if code is None else code.co_varnames[1 if inspect.ismethod(function) else 0 : code.co_argcount]


@functools.lru_cache(maxsize=512)
def _written(code: CodeType) -> frozenset[str]:
    """Variables of an outer function, and attributes, that a function writes, or whose content it changes."""
    steps = list(dis.get_instructions(code))
    found = {step.argval for step in steps if step.opname in ("STORE_DEREF", "STORE_ATTR", "DELETE_ATTR")}
    for place, step in enumerate(steps):
        if step.opname in ("STORE_SUBSCR", "DELETE_SUBSCR"):
            reach = 6
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD") and step.argval in MUTATORS:
            reach = 3
        else:
            continue
        before = steps[max(0, place - reach) : place]
        found |= {step.argval for step in before if step.opname in ("LOAD_DEREF", "LOAD_ATTR", "LOAD_METHOD")}
    return frozenset(found)


def _constructed(thing: Any, call: str) -> dict[str, Any]:
    """The attributes of an object that have the name of an argument of its class; where it has the method `call`, which
    a run calls, also those that a call does not write. Others are a state of the run."""
    held: Mapping[str, Any] = getattr(thing, "__dict__", None) or {}
    kind = type(thing)
    names = set(_arguments(kind))
    if inspect.isfunction(getattr(kind, call, None)):
        names |= set(held) - _written_attributes(kind, call)
    return {name: held[name] for name in names if name in held}


def _written_attributes(kind: type, call: str) -> frozenset[str]:
    """Attributes that a method writes, or another method of its class that it names."""
    known = _written_by_kind.setdefault(kind, {})
    if call not in known:
        found: set[str] = set()
        open_, seen = [call], set[str]()
        while open_:
            name = open_.pop()
            method = getattr(kind, name, None)
            if name not in seen and inspect.isfunction(method):
                found |= _written(method.__code__)
                open_ += method.__code__.co_names
            seen.add(name)
        known[call] = frozenset(found)
    return known[call]


_written_by_kind: weakref.WeakKeyDictionary[type, dict[str, frozenset[str]]] = weakref.WeakKeyDictionary()


@functools.lru_cache(maxsize=128)
def _arguments(kind: type) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(kind).parameters)
    except (TypeError, ValueError):
        return ()
