"""The Blind Test: which pairs are asked, where each picture stands, and what the choices say so far.

Where the full-step picture stands is drawn here and never leaves this process before the choice is made.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..core.errors import InputError
from ..core.messages import Message, message
from ..core.psychometrics import LEAST_CHOICES, Tally, Threshold, fit_threshold
from .choices import Choice, ChoiceStore
from .store_file import StoreError

BETTER, NEARER = "better", "nearer"
"""Questions: which picture is the better one; which is nearer to the reference."""
MOST_OPEN = 4096
"""Pairs that can be answered; older ones are asked again when the graph is queued again."""
LEFT, SAME = "left", "same"

Pixels = NDArray[np.uint8]
"""[H, W, C], as the page shows them."""
State = Literal["kept", "once", "unknown", "failed"]


@dataclass(frozen=True)
class Condition:
    """What the choices of several pairs are counted under, and at which slider value."""

    label: str
    question: str
    quality: float
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Kept with each choice."""


@dataclass(frozen=True)
class Pair:
    """One pair that can be answered."""

    token: str
    """What the page answers with; says nothing about the pictures."""
    key: str
    index: int
    """In the batch."""
    full_left: bool
    condition: Condition


@dataclass(frozen=True)
class Asked:
    """What a run of the node asks."""

    pairs: tuple[Pair, ...]
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Reply:
    """What an answer gave."""

    state: State
    messages: tuple[Message, ...]


class BlindTest:
    """The open pairs of this process, and the store of choices. Safe for several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: OrderedDict[str, Pair] = OrderedDict()
        self._store: ChoiceStore | None = None
        self._lock = threading.Lock()

    def ask(self, planned: Tensor, full: Tensor, reference: Tensor | None, condition: Condition) -> Asked:
        """Pairs of the batch that differ and were not judged before, each in an order drawn now.

        planned, full: IMAGE [B, H, W, C] in [0, 1]; reference: None, or IMAGE of 1 or B pictures of any size.
        InputError where they do not fit. Where choices cannot be kept nothing is asked, and a message says so.
        """
        _check(planned, full, reference)
        count = len(planned)
        keys = _keys(planned, full, reference, condition)
        said = [message("blind_equal", n=count - len(keys), of=count)] if len(keys) < count else []
        with self._lock:
            try:
                store = self._store = ChoiceStore(self.path)
                before = store.known(keys.values())
                tallies = store.tallies(condition.label, condition.question)
            except StoreError as error:
                return Asked((), (*said, message("blind_no_store", reason=error.message)))
            new = [(i, key) for i, key in keys.items() if key not in before]
            pairs = [Pair(secrets.token_hex(16), key, i, bool(secrets.randbelow(2)), condition) for i, key in new]
            self._open.update((pair.token, pair) for pair in pairs)
            while len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        if store.said is not None:
            said.append(store.said)
        if len(new) < len(keys):
            said.append(message("blind_before", n=len(keys) - len(new), of=count))
        return Asked(tuple(pairs), (*said, *summarise(tallies, condition.quality)))

    def answer(self, token: str, choice: Literal["left", "right", "same"]) -> Reply:
        """Keeps one choice; what all choices of its test say now. A pair is judged once, however often it is sent."""
        with self._lock:
            pair, store = self._open.get(token), self._store
            if pair is None or store is None:
                return Reply("unknown", (message("blind_unknown"),))
            coin = choice == SAME
            chose_full = bool(secrets.randbelow(2)) if coin else (choice == LEFT) == pair.full_left
            made = Choice(
                key=pair.key,
                label=pair.condition.label,
                question=pair.condition.question,
                quality=pair.condition.quality,
                chose_full=chose_full,
                coin=coin,
                full_left=pair.full_left,
                facts=pair.condition.facts,
                at=time(),
            )
            try:
                new = store.record(made)
                summary = summarise(store.tallies(made.label, made.question), made.quality)
            except StoreError as error:
                return Reply("failed", (message("blind_not_kept", reason=error.message),))
        return Reply("kept", summary) if new else Reply("once", (message("blind_once"), *summary))


def to_pixels(image: Tensor) -> Pixels:
    """Rounded down to 8 bits as the host's own previews are. image: [H, W, C] in [0, 1]."""
    scaled = np.nan_to_num(image.detach().float().cpu().numpy() * 255.0)
    return np.clip(scaled, 0.0, 255.0).astype(np.uint8)


def _check(planned: Tensor, full: Tensor, reference: Tensor | None) -> None:
    if len(planned) != len(full):
        raise InputError(message("blind_counts", planned=len(planned), full=len(full)))
    if planned.shape != full.shape:
        first, second = (" x ".join(map(str, (x.shape[2], x.shape[1], x.shape[3]))) for x in (planned, full))
        raise InputError(message("blind_sizes", planned=first, full=second))
    if reference is not None and len(reference) not in (1, len(planned)):
        raise InputError(message("blind_reference", n=len(reference), of=len(planned)))


def _keys(planned: Tensor, full: Tensor, reference: Tensor | None, condition: Condition) -> dict[int, str]:
    """Index in the batch -> key, of the pairs that differ. A key is the same for either order of the two pictures, so
    that it tells nothing about it."""
    keys: dict[int, str] = {}
    beside = [] if reference is None else [_digest(to_pixels(picture)) for picture in reference]
    for i in range(len(planned)):  # one at a time: a batch may be a video
        one, other = to_pixels(planned[i]), to_pixels(full[i])
        if not np.array_equal(one, other):
            told = [*sorted((_digest(one), _digest(other))), *beside[i % max(1, len(beside)) :][:1], condition.label]
            keys[i] = hashlib.sha256("\0".join([*told, condition.question]).encode()).hexdigest()
    return keys


def _digest(picture: Pixels) -> str:
    return hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).hexdigest()


def summarise(tallies: Mapping[float, Tally], quality: float) -> tuple[Message, ...]:
    """What the choices say: at this slider value, and over all of them."""
    if not tallies:
        return ()
    said: list[Message] = []
    if quality in tallies:
        said += _of_tally(tallies[quality], quality)
    return (*said, _of_threshold(fit_threshold(tallies), tallies))


def _of_tally(tally: Tally, quality: float) -> list[Message]:
    low, high = tally.interval
    share = tally.right / tally.n
    said = [message("blind_tally", quality=quality, k=tally.right, n=tally.n, share=share, low=low, high=high)]
    told, least, most = (round(value) for value in tally.told)
    if tally.verdict == "told":
        said.append(message("blind_told", told=told, n=tally.n, low=least, high=most))
    elif tally.verdict == "reversed":
        said.append(message("blind_reversed"))
    else:
        said.append(message("blind_untold", n=tally.n, high=most))
    if tally.coins:
        said.append(message("blind_coins", n=tally.coins))
    return said


def _of_threshold(found: Threshold, tallies: Mapping[float, Tally]) -> Message:
    if found.quality is not None and found.low is not None and found.high is not None:
        return message("blind_threshold", quality=found.quality, low=found.low, high=found.high)
    if found.high is not None:
        return message("blind_threshold_below", high=found.high)
    if found.low is not None:
        return message("blind_threshold_above", low=found.low)
    choices = sum(tally.n for tally in tallies.values())
    return message("blind_threshold_open", n=choices, values=len(tallies), least=LEAST_CHOICES)
