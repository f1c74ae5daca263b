"""What the search for a nested schedule keeps in the store: every picture's numbers, and what was found."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert

from ..core.schedule import Sigmas
from . import schema as t
from .store import Store


@dataclass(frozen=True)
class Look:
    """One picture of the search, as numbers."""

    distances: Mapping[str, float]
    """Metric -> distance to the dense picture of the same prompt and seed, 0 of the dense picture itself; and
    "clip_score", a level without a reference, where picture and prompt can be compared."""
    l_snr: float
    """dB."""
    features: Mapping[str, NDArray[Any]]
    """Name -> [D] float32 numbers that sets of pictures are compared by."""
    picture: bytes
    """A small PNG, for the report."""
    latent: bytes | None = None
    """Of the dense picture, so that a restart need not render it again."""
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """In the precision that the store keeps, so that a search that was cut off ends the same to the bit."""
        rounded = {name: np.asarray(value, np.float32) for name, value in self.features.items()}
        object.__setattr__(self, "features", rounded)


@dataclass(frozen=True)
class Found:
    """What a search ended with."""

    schedule: str
    """As a Setting holds it; `stock` where there is no nested one."""
    tables: Mapping[str, Any]
    """JSON-safe: what was tried. See `search_stage.ScheduleSearch`."""


def run_digest(sigmas: Sigmas) -> str:
    """24 hex digits of a run's sigmas."""
    return hashlib.sha256(np.asarray(sigmas, np.float32).tobytes()).hexdigest()[:24]


class SearchStore:
    """The part of a Store that belongs to one setting's search."""

    def __init__(self, store: Store, setting_id: int, backends_id: int) -> None:
        """setting_id: of the stock schedule."""
        self._store = store
        self._key = {"setting_id": setting_id, "backends_id": backends_id}

    def looks(self, prompt_id: int, seed: int) -> dict[str, Look]:
        """Digest of a run -> what was seen along it."""
        query = select(t.search_looks).filter_by(**self._key, prompt_id=prompt_id, seed=seed)
        with self._store.transaction() as connection:
            return {row.run: _look(row) for row in connection.execute(query)}

    def record(self, prompt_id: int, seed: int, run: str, look: Look) -> None:
        features = {name: torch.from_numpy(value) for name, value in look.features.items()}
        values = {**vars(look), "distances": dict(look.distances), "features": save(features)}
        values |= {**self._key, "prompt_id": prompt_id, "seed": seed, "run": run}
        with self._store.transaction() as connection:
            self._store.rows.check_setting(connection, self._key["setting_id"])
            self._store.rows.check_prompt(connection, prompt_id)
            connection.execute(insert(t.search_looks).values(values).on_conflict_do_nothing())

    def found(self) -> Found | None:
        """What an earlier search ended with."""
        query = select(t.found_schedules).filter_by(**self._key)
        with self._store.transaction() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else Found(row.schedule, row.tables)

    def keep(self, found: Found) -> None:
        values = {**self._key, "schedule": found.schedule, "tables": dict(found.tables), "made": time.time()}
        with self._store.transaction() as connection:
            self._store.rows.check_setting(connection, self._key["setting_id"])
            kept = insert(t.found_schedules).values(values)
            connection.execute(kept.on_conflict_do_update(index_elements=list(self._key), set_=values))
            own = t.search_looks.c
            mine = (own.setting_id == self._key["setting_id"]) & (own.backends_id == self._key["backends_id"])
            connection.execute(t.search_looks.update().where(mine).values(latent=None))  # not needed any more


def _look(row: Any) -> Look:
    features = {name: value.numpy() for name, value in load(row.features).items()}
    return Look(row.distances, row.l_snr, features, row.picture, row.latent, row.seconds)
