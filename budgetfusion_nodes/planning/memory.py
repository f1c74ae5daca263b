"""Memory on the way to a plan: what is looked up in the store.

Uses the half of `calibration` that knows no host (store, records, memory_reader), imported on use: the database
library must not be loaded at the host's start. Nothing here stops a render: what fails becomes a sentence.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from ..core.errors import BudgetFusionError
from ..core.messages import Message, message
from ..core.setting import Setting
from ..core.stages import told
from ..host.digest import digest_of
from ..host.paths import store_path
from ..predictor.planner import Planner
from ..predictor.prediction import Prediction

if TYPE_CHECKING:
    from ..calibration.memory_reader import Wanted
    from ..predictor.memory import Memory, Recalled

log = logging.getLogger(__name__)

KEPT = 4
"""Settings whose memory stays loaded: at 10,000 renders each takes about 10 MB."""


class Asked(Protocol):
    """What is read of service.Request here."""

    @property
    def risk(self) -> float: ...
    @property
    def facts(self) -> Callable[[], Mapping[str, str]]: ...
    @property
    def seed(self) -> int | None: ...


@dataclass
class _Loaded:
    stamp: Any
    """Of the database's files."""
    state: Any
    """Of the rows that matter here."""
    memory: Memory | None


@dataclass
class Cache:
    """What was read last, for a few planners and settings."""

    _entries: OrderedDict[Any, _Loaded] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def memory(self, path: Path, wanted: Wanted) -> Memory | None:
        """What is remembered for this planner and render; None where there is nothing. Read again only where rows of
        this setting have changed. sqlite3.Error, OSError, BudgetFusionError where it cannot be read."""
        stamp = _stamp(path)
        if stamp is None:
            return None
        key = (str(path), wanted.planner.fingerprint, wanted.setting, tuple(sorted(wanted.facts.items())))
        with self._lock:
            known = self._entries.get(key)
            if known is None or known.stamp != stamp:
                known = _load(path, wanted, stamp, known)
                self._entries[key] = known
            self._entries.move_to_end(key)
            while len(self._entries) > KEPT:
                self._entries.popitem(last=False)
            return known.memory


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
            found.append((now.st_mtime_ns, now.st_size))
    return tuple(found) if found[0] is not None else None


def _load(path: Path, wanted: Wanted, stamp: Any, known: _Loaded | None) -> _Loaded:
    from ..calibration.memory_reader import OlderStoreError, matching_settings, read_curves, reading, state
    from ..calibration.store import Store
    from ..predictor.memory_fit import fit_memory

    try:
        with reading(path) as connection:
            settings = matching_settings(connection, wanted)
            now = (tuple(settings), state(connection, settings))
            if known is not None and known.state == now:
                return replace(known, stamp=stamp)
            curves = read_curves(connection, wanted, settings)
    except OlderStoreError:
        Store.at(path).close()
        return _load(path, wanted, _stamp(path), None)
    memory = None if curves is None else fit_memory(curves, wanted.planner.risk_table)
    return _Loaded(stamp, now, memory)


Recall = Callable[[Prediction], "Recalled"]


def recaller(
    planner: Planner, setting: Setting, asked: Asked, notes: list[Message]
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

        memory = CACHE.memory(path, Wanted(planner, setting, dict(asked.facts())))
    except (sqlite3.Error, OSError, BudgetFusionError) as error:
        log.warning("BudgetFusion plans without memory: %s", error)
        notes.append(message("memory_unavailable", reason=str(error)))
        return None
    except Exception as error:
        log.exception("BudgetFusion plans without memory")
        notes.append(message("memory_unavailable", reason=told(error)))
        return None
    if memory is None:
        return None

    def of(tokens: Tensor, pooled: Tensor | None) -> Recall:
        encoded = Encoded.of(tokens, pooled)
        place = signature(encoded.tokens, encoded.pooled)
        key = "" if asked.seed is None else encoded.digest()
        seed = None if asked.seed is None else signed(asked.seed)
        return lambda prediction: memory.recall(prediction, place, asked.risk, key, seed)

    return of


def render_facts(negative: Any, latent: Mapping[str, Any]) -> dict[str, str]:
    """Digests of what moves a picture and is in no Setting, as Calibrate keeps them. What cannot be told is like
    nothing that is remembered."""
    try:
        samples = latent.get("samples")
        drawn = isinstance(samples, Tensor) and bool(samples.count_nonzero())
        return {"negative": digest_of(negative), "latent": digest_of(samples) if drawn else ""}
    except Exception:  # another pack's type: no reason to stop a render
        log.warning("BudgetFusion plans without memory: it cannot read this render's inputs", exc_info=True)
        return {"untold": "yes"}


def only_seed(seed: int, latent: Mapping[str, Any]) -> int | None:
    """The seed, where it alone draws this render's noise: one picture, no place in a batch, no mask."""
    samples = latent.get("samples")
    alone = isinstance(samples, Tensor) and samples.ndim == 4 and samples.shape[0] == 1
    return seed if alone and "batch_index" not in latent and "noise_mask" not in latent else None
