"""Memory on the way to a plan: what is looked up in the store.

Uses the half of `calibration` that knows no host (store, records, memory_reader), imported on use: the database
library must not be loaded at the host's start. Nothing here stops a render: what fails becomes a sentence.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..core.errors import BudgetFusionError
from ..core.messages import Message, message
from ..core.recent import Recent
from ..core.setting import Setting
from ..core.stages import told
from ..host.conditioning import extras_digest
from ..host.digest import digest_of
from ..host.paths import store_path
from ..predictor.planner import Planner
from ..predictor.prediction import Prediction

if TYPE_CHECKING:
    from ..calibration.memory_file import Ready
    from ..calibration.memory_reader import Changes, Wanted
    from ..predictor.memory import Curves, Memory, Recalled

log = logging.getLogger(__name__)

KEPT = 4
"""Settings whose memory stays loaded: at 10,000 renders each takes about 10 MB."""
AT_ONCE = 100
"""Renders that a plan reads; more wait for the thread."""
AFTER = 0.05
"""Seconds that fitting waits, so that the plan at hand has the processor to itself."""
GROWN = 0.1
"""Share of renders that may come or go before space and kernel are made anew."""

UNTOLD = "untold"
"""A fact of renders that cannot be compared; none is kept with it."""


class Asked(Protocol):
    """What is read of service.Request here."""

    @property
    def risk(self) -> float: ...
    @property
    def facts(self) -> Callable[[], Mapping[str, str]]: ...
    @property
    def seed(self) -> int | None: ...


@dataclass(frozen=True)
class Loaded:
    """What a planner's memory is now."""

    stamp: Any
    """Of the database's files when it was read."""
    ready: Ready
    stale: bool
    """Renders came or went since it was fitted; a thread fits it again."""
    unread: int = 0
    """Renders that are not in it yet."""


@dataclass
class Cache:
    """What was read and fitted last, for a few planners and settings. A plan reads what is new, which takes
    milliseconds; fitting takes a second and is done in a thread of its own, for the plans after."""

    _entries: Recent[Any, Loaded] = field(default_factory=lambda: Recent(KEPT))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _fitting: threading.Timer | None = None

    def memory(self, path: Path, wanted: Wanted) -> Loaded | None:
        """What is remembered for this planner and render; None where there is nothing. sqlite3.Error, OSError,
        BudgetFusionError where it cannot be read."""
        stamp = _stamp(path)
        if stamp is None:
            return None
        planner, facts = wanted.planner, tuple(sorted(wanted.facts.items()))
        key = (str(path), planner.fingerprint, planner.risk_table, wanted.setting, facts)
        with self._lock:
            known = self._entries.used(key)
            if known is None or known.stamp != stamp:
                known = _caught_up(path, wanted, stamp, known)
                self._entries[key] = known
            if known.stale and self._fitting is None:
                self._fitting = threading.Timer(AFTER, self._fit, (key, path, wanted, known))
                self._fitting.daemon = True
                self._fitting.start()
            return known

    def wait(self) -> None:
        """Until nothing is fitted any more."""
        thread = self._fitting
        if thread is not None:
            thread.join()

    def clear(self) -> None:
        """Forgets what was read, not what is stored."""
        self.wait()
        with self._lock:
            self._entries.clear()

    def _fit(self, key: Any, path: Path, wanted: Wanted, known: Loaded) -> None:
        found = replace(known, stale=False)
        try:
            found = _fitted(path, wanted, known)
        except Exception as error:  # another process may hold the store, or have deleted it
            log.warning("BudgetFusion could not fit its memory", exc_info=True)
            if isinstance(error, sqlite3.OperationalError):  # held for a moment: the next plan tries again
                found = known
        with self._lock:
            self._entries[key] = found
            self._fitting = None


CACHE = Cache()
"""Of this process."""


def _stamp(path: Path) -> Any:
    """Changes when the database or its journal does; None where there is no database."""
    found = []
    for name in (path.name, path.name + "-wal"):
        try:
            now = path.with_name(name).stat()
        except FileNotFoundError:
            found.append(None)
        else:
            found.append(
                (now.st_mtime_ns, now.st_size) if now.st_size else None
            )  # a mere reader leaves an empty journal
    return tuple(found) if found[0] is not None else None


def _caught_up(path: Path, wanted: Wanted, stamp: Any, known: Loaded | None) -> Loaded:
    """With the latest of the renders that came since, and without those that went."""
    from ..calibration.memory_file import Ready, key_of, read_ready
    from ..calibration.memory_reader import OlderStoreError, Seen, matching_settings, of_settings, read_curves, reading
    from ..calibration.store import Store

    ready = read_ready(path, key_of(wanted)) if known is None else known.ready
    if known is None and ready is not None and ready.stamp == stamp:
        return Loaded(stamp, ready, False)
    unfitted, ready = ready is None, ready or Ready(None, Seen.nothing())
    try:
        with reading(path) as connection:
            changes = ready.seen.now(connection)
            settings = matching_settings(connection, wanted)
            fresh = of_settings(connection, changes.came, settings)
            found = read_curves(connection, wanted, settings, fresh[-AT_ONCE:].tolist()) if len(fresh) else None
    except OlderStoreError:
        Store.at(path).close()
        return _caught_up(path, wanted, _stamp(path), None)
    memory = with_changes(ready.memory, changes, found)
    unread = max(len(fresh) - AT_ONCE, 0) + (0 if known is None else known.unread)
    stale = unfitted or unread > 0 or memory is not ready.memory or (known is not None and known.stale)
    return Loaded(stamp, Ready(memory, changes.seen), stale, unread)


def _fitted(path: Path, wanted: Wanted, known: Loaded) -> Loaded:
    """From all renders; where few came or went, with the same kernel from what is known of them."""
    from ..calibration.memory_file import Ready, forget_ready, key_of, write_ready
    from ..calibration.memory_reader import Seen, matching_settings, read_curves, reading
    from ..predictor.memory_fit import fit_memory, refit

    table, memory = wanted.planner.risk_table, known.ready.memory
    if memory is not None and not known.unread and abs(len(memory.curves) - memory.fitted) <= GROWN * memory.fitted:
        ready = Ready(refit(memory.compacted(), table), known.ready.seen)
        stamp = known.stamp
    else:
        stamp = _stamp(path)
        with reading(path) as connection:
            settings = matching_settings(connection, wanted)
            seen = Seen.nothing().now(connection).seen
            found = read_curves(connection, wanted, settings)
        ready = Ready(None if found is None else fit_memory(*found, table), seen)
    try:
        write_ready(path, key_of(wanted), replace(ready, stamp=stamp))
        with reading(path) as connection:
            went = ready.seen.now(connection).went
        if len(went):  # forgotten meanwhile
            forget_ready(path)
    except (OSError, sqlite3.Error, BudgetFusionError) as error:  # the next process fits again
        log.warning("BudgetFusion could not keep its fitted memory: %s", error)
    return Loaded(stamp, ready, False)


def with_changes(
    memory: Memory | None, changes: Changes, found: tuple[Curves, NDArray[np.float16]] | None
) -> Memory | None:
    """The same memory without the renders that went; found: what those of its setting that came measured."""
    from ..predictor.memory import Memory
    from ..predictor.memory_space import Space

    if memory is None:
        return None if found is None else Memory(found[0], Space.of(found[1]))
    kept = ~np.isin(memory.curves.rows, np.concatenate([changes.came, changes.went]))
    if found is not None:
        return memory.updated(kept, *found)
    return memory if kept.all() else memory.updated(kept)


Recall = Callable[[Prediction], "Recalled"]


def recaller(
    planner: Planner, setting: Setting, asked: Asked, positive: Any, notes: list[Message]
) -> Callable[[Tensor, Tensor | None], Recall] | None:
    """(tokens, pooled) of a prompt -> what memory makes of its prediction; None where nothing is remembered for this
    planner and render. notes: gets why nothing could be looked up."""
    try:
        path = store_path()
        if not path.is_file():
            return None
        from ..calibration.memory_reader import Wanted
        from ..calibration.records import Encoded, signed
        from ..predictor.memory_space import signature

        loaded = CACHE.memory(path, Wanted(planner, setting, {**prompt_facts(positive), **asked.facts()}))
    except (sqlite3.Error, OSError, BudgetFusionError) as error:
        log.warning("BudgetFusion plans without memory: %s", error)
        notes.append(message("memory_unavailable", reason=str(error)))
        return None
    except Exception as error:
        log.exception("BudgetFusion plans without memory")
        notes.append(message("memory_unavailable", reason=told(error)))
        return None
    memory = None if loaded is None else loaded.ready.memory
    if loaded is None or memory is None:
        return None
    if loaded.unread:
        notes.append(message("memory_reading", n=loaded.unread))

    def of(tokens: Tensor, pooled: Tensor | None) -> Recall:
        encoded = Encoded.of(tokens, pooled)
        place = signature(encoded.tokens, encoded.pooled)
        key = "" if asked.seed is None else encoded.digest()
        seed = None if asked.seed is None else signed(asked.seed)
        return lambda prediction: memory.recall(prediction, place, asked.risk, key, seed)

    return of


def prompt_facts(positive: Any) -> dict[str, str]:
    """Digest of what the prompt's CONDITIONING carries beside its text, as Calibrate keeps it."""
    try:
        return {"extras": extras_digest(positive)}
    except Exception:  # another pack's type
        return _untold()


def render_facts(negative: Any, latent: Mapping[str, Any]) -> dict[str, str]:
    """Digests of what else moves a picture and is in no Setting, as Calibrate keeps them."""
    try:
        samples = latent.get("samples")
        drawn = isinstance(samples, Tensor) and bool(samples.count_nonzero())
        return {"negative": digest_of(negative), "latent": digest_of(samples) if drawn else ""}
    except Exception:
        return _untold()


def _untold() -> dict[str, str]:
    """What cannot be told is like nothing that is remembered, and no reason to stop a render."""
    log.warning("BudgetFusion plans without memory: it cannot read this render's inputs", exc_info=True)
    return {UNTOLD: "yes"}


def only_seed(seed: int, latent: Mapping[str, Any]) -> int | None:
    """The seed, where it alone draws this render's noise: one picture, no place in a batch, no mask."""
    samples = latent.get("samples")
    alone = isinstance(samples, Tensor) and samples.ndim == 4 and samples.shape[0] == 1
    return seed if alone and "batch_index" not in latent and "noise_mask" not in latent else None
