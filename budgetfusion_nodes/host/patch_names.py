"""Names of patches for an artist, with what they were made with: `attn2 (IPAdapter weight 0.8, #1f0a33c2)`."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from .contents import PLAIN, Leaf, Weights, leaves, written_cells
from .digest import tensor_bytes, weights_bytes
from .weights import UnreadableWeights

log = logging.getLogger(__name__)

UNREAD = "?"
"""In place of what a patch was made with."""
LONGEST = 24
"""Letters of a word that is told as a setting of a patch."""
SHOWN = 4
"""Names in one sentence, and makers in one name; the rest is counted."""


class PatchNames:
    """Names what the patches of a MODEL were made with, and keeps apart the pictures (bare tensors) that they carry:
    those are the content of a graph, as a prompt is, and no setting of it.

    every: all that is patched in it, nested in lists and dicts.
    """

    def __init__(self, model: Any, every: Any) -> None:
        self.model = model
        self._run = written_cells(_functions(every))
        self._pictures: list[bytes] = []
        self._seen: dict[int, bytes] = {}

    @cached_property
    def _own(self) -> set[int]:
        """The model's own networks: what is patched, and not what patches."""
        network = self.model.model
        return {id(module) for module in network.modules()} if isinstance(network, nn.Module) else set()

    def all(self, held: Mapping[str, Any], *, maker: bool = False) -> dict[str, str]:
        """Values of a Message: the names, and a digest of the pictures where there are some. maker: as for `name`."""
        self._pictures = []
        names = _some(self.name(key, value, maker=maker) for key, value in held.items())
        return {"names": names, **({"content": _hex(self._pictures)} if self._pictures else {})}

    def name(self, key: str, held: Any, *, maker: bool = True) -> str:
        """`key` with the makers and the numbers that can be seen, and a digest of what cannot be shown. maker: also
        where the key says who it is."""
        try:
            return self._named(key, held, maker)
        except Exception:  # an object of another pack that does not like to be looked at
            log.warning("BudgetFusion cannot read the patch %s", key, exc_info=True)
            return f"{key} ({UNREAD})"

    def _named(self, key: str, held: Any, maker: bool) -> str:
        makers: list[str] = []
        hidden: list[bytes] = []
        for place, value in _each(held):
            found = self._told(value, maker, hidden)
            hidden += [place.encode()] if place else []
            makers += [found] if found else []
        told = list(dict.fromkeys(makers))
        if len(told) > SHOWN:
            hidden += [text.encode() for text in told]
            told = [told[0], f"+ {len(told) - 1}"]
        told += [f"#{_hex(hidden)}"] if hidden else []
        return f"{key} ({', '.join(told)})" if told else key

    def _told(self, value: Any, maker: bool, hidden: list[bytes]) -> str:
        """The maker and settings of one value. hidden: gets what is not among them."""
        if value is True:
            return ""
        texts: dict[str, list[str]] = {}
        for path, leaf in leaves(value, run=self._run):
            name = next((part for part in reversed(path) if not part.isdigit()), "")
            if isinstance(leaf, Tensor):
                self._pictures.append(name.encode() + self._once(leaf))
            elif isinstance(leaf, Weights):
                hidden += [] if id(leaf.owner) in self._own else [name.encode() + self._once(leaf)]
            elif leaf is not None and (path or maker or not callable(value)):
                texts.setdefault(name, []).append(_short(leaf))
        return " ".join(_shown(texts, hidden))

    def _once(self, leaf: Tensor | Weights) -> bytes:
        thing = leaf.owner if isinstance(leaf, Weights) else leaf
        if id(thing) not in self._seen:
            self._seen[id(thing)] = hashlib.sha256(_bytes(leaf)).digest()
        return self._seen[id(thing)]


def _some(names: Iterable[str]) -> str:
    """The first SHOWN, sorted, and how many more there are, which a digest tells apart."""
    listed = sorted(set(names))
    rest = listed[SHOWN:]
    return ", ".join(listed[:SHOWN]) + (f" (+ {len(rest)}, #{_hex([r.encode() for r in rest])})" if rest else "")


def _functions(held: Any) -> list[Any]:
    """Functions in nested lists and dicts, and those of methods, partials and injections."""
    try:
        if isinstance(held, Mapping):
            held = list(held.values())
        if isinstance(held, (list, tuple)):
            return [function for item in held for function in _functions(item)]
        inner = (getattr(held, name, None) for name in ("func", "__func__", "inject", "eject"))
        return [thing for thing in (held, *inner) if hasattr(thing, "__code__")]
    except Exception:  # `name` will say so
        return []


def _each(held: Any) -> Iterator[tuple[str, Any]]:
    """(where, value) of what an option holds: patches in a list, or by the place of the network that they replace."""
    if isinstance(held, Mapping) and not all(isinstance(key, str) for key in held):
        yield from ((str(key), held[key]) for key in sorted(held, key=str))
    elif isinstance(held, (list, tuple)) and not all(isinstance(item, PLAIN) for item in held):
        yield from (("", item) for item in held)
    else:
        yield "", held


def _shown(texts: Mapping[str, list[str]], hidden: list[bytes]) -> Iterator[str]:
    """`name value` of numbers and short words, the maker first. hidden: gets the others."""
    for name, values in sorted(texts.items()):
        text = "/".join(values)
        if not name:
            yield from filter(None, [text])
        elif text and len(text) <= LONGEST and all(values):
            yield f"{name} {text}"
        elif text:
            hidden.append(f"{name} {text}".encode())


def _short(leaf: Leaf) -> str:
    return f"{leaf:g}" if isinstance(leaf, float) else str(leaf)


def _bytes(leaf: Tensor | Weights) -> bytes:
    try:
        return weights_bytes(leaf, signs=True) if isinstance(leaf, Weights) else tensor_bytes(leaf)
    except (
        UnreadableWeights,
        RuntimeError,
        NotImplementedError,
    ):  # another pack's kind of tensor, or none on this device
        return type(leaf).__name__.encode()


def _hex(parts: Iterable[bytes]) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:8]
