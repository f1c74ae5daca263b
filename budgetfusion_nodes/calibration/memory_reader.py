"""Reads the store for a plan: with the driver alone, because it lies on the way to every render, and never writing."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.curves import FloatArray
from ..core.setting import Setting
from ..predictor.features import collate
from ..predictor.memory import Curves
from ..predictor.memory_fit import WINDOW
from ..predictor.network import ensemble_quantiles
from ..predictor.planner import Planner
from .records import Encoded
from .schema import APPLICATION_ID, MIGRATIONS

BUSY_SECONDS = 0.2
"""A writer's transaction takes milliseconds, and readers do not wait for it (WAL)."""
GAP = 1.7
"""Of two measured counts, the ratio up to which the line between them stands for what lies between."""
SETTLED = 0.08
"""Share of the crudest distance from which on a count is as good as the target: the coarsest of spec.AMOUNTS."""

Facts = Mapping[str, str]
"""As in Subject; those that the plan's node knows."""


class OlderStoreError(Exception):
    """A database that has to be migrated before anything can be looked up."""


@dataclass(frozen=True)
class Wanted:
    """What may be remembered for one planner and render."""

    planner: Planner
    setting: Setting
    """Of the render, with the schedule that it will run along."""
    facts: Facts


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write. sqlite3.Error where the database cannot be read; OlderStoreError."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)
    try:
        (owner,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if owner != APPLICATION_ID or version > len(MIGRATIONS):
            raise sqlite3.DatabaseError("it is no store of this version")
        if version < len(MIGRATIONS):
            raise OlderStoreError
        yield connection
    finally:
        connection.close()


def matching_settings(connection: sqlite3.Connection, wanted: Wanted) -> list[int]:
    """Rows of settings whose renders are this render's but for prompt and seed."""
    found = connection.execute("SELECT id, setting, target, facts FROM settings").fetchall()
    return [row for row, setting, target, facts in found if _same(wanted, setting, target, json.loads(facts))]


def _same(wanted: Wanted, text: str, target: int, facts: Facts) -> bool:
    plain = {**wanted.setting.to_dict(), "model_name": ""}
    same = {**json.loads(text), "model_name": ""} == plain and target == wanted.planner.target_steps
    return same and all(facts.get(name, "") == value for name, value in wanted.facts.items())


def matching_backends(connection: sqlite3.Connection, planner: Planner) -> list[int]:
    """Rows of backends that measured as the planner's did."""
    own = {metric: planner.backends[metric] for metric in planner.metrics}
    rows = connection.execute("SELECT id, names FROM backends").fetchall()
    return [row for row, names in rows if own.items() <= json.loads(names).items()]


def state(connection: sqlite3.Connection, settings: Sequence[int]) -> tuple[Any, ...]:
    """Changes whenever a render of these settings is remembered or forgotten."""
    query = (
        "SELECT count(*), total(m.at), max(m.trajectory_id) FROM memories m "
        f"JOIN trajectories t ON t.id = m.trajectory_id WHERE t.setting_id IN ({_places(settings)})"
    )
    return tuple(connection.execute(query, list(settings)).fetchone())


def read_curves(connection: sqlite3.Connection, wanted: Wanted, settings: Sequence[int]) -> Curves | None:
    """None where nothing is remembered."""
    planner, backends = wanted.planner, matching_backends(connection, wanted.planner)
    if not settings or not backends:
        return None
    levels = _levels(connection, planner, settings, backends)
    query = (
        "SELECT t.id, t.prompt_id, t.seed, m.predictor, m.predicted FROM memories m "
        "JOIN trajectories t ON t.id = m.trajectory_id "
        f"WHERE t.setting_id IN ({_places(settings)}) AND t.id NOT IN (SELECT trajectory_id FROM set_aside) "
        "ORDER BY m.at, t.id"
    )
    rows = [row for row in connection.execute(query, list(settings)) if row[0] in levels]
    if not rows:
        return None
    ids = list(dict.fromkeys(row[1] for row in rows))
    place = {prompt: index for index, prompt in enumerate(ids)}
    keys, signatures = _prompts(connection, ids)
    prompts = np.array([place[row[1]] for row in rows], np.int64)
    predicted = _predicted(connection, planner, rows, ids)
    return Curves(
        grid=planner.grid,
        prompts=prompts,
        seeds=np.array([row[2] for row in rows], np.int64),
        level=np.stack([levels[row[0]] for row in rows]),
        median=predicted[:, 0],
        high=predicted[:, 1],
        signatures=signatures,
        keys=keys,
    )


def _places(values: Sequence[int]) -> str:
    return ", ".join("?" * len(values))


def _levels(
    connection: sqlite3.Connection, planner: Planner, settings: Sequence[int], backends: Sequence[int]
) -> dict[int, FloatArray]:
    """Trajectory -> [K] worst shortfall over its scale at the planner's counts."""
    columns = ", ".join(f"json_extract(distances, '$.{metric}')" for metric in planner.metrics)
    query = (
        f"SELECT trajectory_id, steps, {columns} FROM measurements m JOIN trajectories t ON t.id = m.trajectory_id "
        f"WHERE t.setting_id IN ({_places(settings)}) AND m.backends_id IN ({_places(backends)}) "
        "ORDER BY trajectory_id, steps"
    )
    rows = connection.execute(query, [*settings, *backends]).fetchall()
    if not rows:
        return {}
    values = np.array(rows, np.float64)
    worst = (values[:, 2:] / np.asarray(planner.scale)).max(axis=1)
    edges = np.flatnonzero(np.diff(values[:, 0])) + 1
    bounds = [0, *edges.tolist(), len(values)]
    parts = ((int(values[a, 0]), values[a:b, 1], worst[a:b]) for a, b in pairwise(bounds))
    return {
        row: on_grid(planner.grid, steps, level) for row, steps, level in parts if steps[-1] == planner.target_steps
    }


def on_grid(grid: Sequence[int], steps: NDArray[Any], level: FloatArray) -> FloatArray:
    """[K] at the grid's counts, on the line in log n between measured ones [n]; NaN where that line says nothing:
    below the least measured count, and in a wide gap whose beginning is not as good as the target yet."""
    wanted = np.asarray(grid, float)
    found = np.interp(np.log(wanted), np.log(steps), level)
    left = np.maximum(np.searchsorted(steps, wanted, side="right") - 1, 0)
    right = np.minimum(left + 1, len(steps) - 1)
    near = steps[right] <= GAP * steps[left]
    settled = level[left] <= SETTLED * level[:2].max()
    known = (steps[left] == wanted) | ((wanted > steps[0]) & (near | settled))
    return np.where(known, found, np.nan)


def _prompts(connection: sqlite3.Connection, ids: Sequence[int]) -> tuple[tuple[str, ...], NDArray[np.float16]]:
    """(digests, signatures [P, S])."""
    rows = connection.execute("SELECT p.id, p.digest, s.vector FROM prompts p JOIN signatures s ON s.prompt_id = p.id")
    known = {row[0]: row[1:] for row in rows}
    vectors = np.stack([np.frombuffer(known[prompt][1], np.float16) for prompt in ids])
    return tuple(known[prompt][0] for prompt in ids), vectors


def _predicted(connection: sqlite3.Connection, planner: Planner, rows: Sequence[Any], ids: Sequence[int]) -> FloatArray:
    """[J, 2, K] median and high; as this planner's predictor said before the render was measured, else as it says of
    the prompt's conditioning, where that was kept; else NaN."""
    found = np.full((len(rows), 2, len(planner.grid)), np.nan)
    lacking: dict[int, list[int]] = {}
    own = planner.fingerprint
    for index, (_, prompt, _, predictor, predicted) in enumerate(rows):
        if predictor == own and predicted is not None and len(predicted) == found[0].size * 4:
            found[index] = np.frombuffer(predicted, np.float32).reshape(found[0].shape)
        else:
            lacking.setdefault(prompt, []).append(index)
    for prompt, curves in _predict(connection, planner, [p for p in ids if p in lacking][-WINDOW:]).items():
        found[lacking[prompt]] = curves
    return found


def _predict(connection: sqlite3.Connection, planner: Planner, prompts: Sequence[int]) -> dict[int, FloatArray]:
    query = f"SELECT id, features FROM prompts WHERE length(features) > 0 AND id IN ({_places(prompts)})"
    known = {row: Encoded.from_bytes(features) for row, features in connection.execute(query, list(prompts))}
    if not known:
        return {}
    batch = collate([planner.features(one.tokens, one.pooled) for one in known.values()])
    curves = ensemble_quantiles(planner.networks, batch).double().numpy()[..., 1:].max(axis=2)  # [B, K, 2]
    return dict(zip(known, curves.transpose(0, 2, 1), strict=True))
