"""Keeps the fingerprint of a loaded model, and finds out cheaply whether it still holds.

The host's weights are inference tensors, which have no version counter, so a change in place shows in their values
alone. A kept fingerprint is used again while every weight that it was made of is the very same tensor object and some
bytes of PROBED of them, evenly spread over the network, are what they were. A tensor put in another's place is seen
whichever it is; values written in place are seen where they reach one of the PROBED (a changed model changes all of
them). Moving weights to another device keeps both.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .weights import raw_bytes

PROBED = 48
KEPT = 4
"""Fingerprints of one network: plain, merged, with another sampling."""

Named = tuple[str, Tensor]


@dataclass(frozen=True)
class _Kept:
    weights: tuple[weakref.ref[Tensor], ...]
    probe: bytes
    fingerprint: str


_kept: weakref.WeakKeyDictionary[torch.nn.Module, OrderedDict[Hashable, _Kept]] = weakref.WeakKeyDictionary()


def fingerprint_of(network: torch.nn.Module, key: Hashable, weights: Sequence[Named], make: Callable[[], str]) -> str:
    """`make()`, or what it gave before for this network, key and weights. UnreadableWeights as `make` raises it.

    key: everything besides the weights that the fingerprint is made of.
    """
    own = _kept.setdefault(network, OrderedDict())
    known = own.get(key)
    probe = raw_bytes(_spread(weights))
    if known is None or known.probe != probe or not _same(known.weights, weights):
        known = _Kept(tuple(weakref.ref(value) for _, value in weights), probe, make())
        own[key] = known
    own.move_to_end(key)
    while len(own) > KEPT:
        own.popitem(last=False)
    return known.fingerprint


def _same(known: Sequence[weakref.ref[Tensor]], weights: Sequence[Named]) -> bool:
    return len(known) == len(weights) and all(ref() is value for ref, (_, value) in zip(known, weights, strict=True))


def _spread(weights: Sequence[Named]) -> list[Named]:
    count = len(weights)
    return [weights[i * count // PROBED] for i in range(PROBED)] if count > PROBED else list(weights)
