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
        connection.execute("BEGIN")  # all that is read is of one moment
        yield connection
    finally:
        connection.close()


def matching_settings(connection: sqlite3.Connection, wanted: Wanted) -> list[int]:
    """Rows of settings whose renders are this render's but for prompt and seed."""
    plain, target, known = _nameless(wanted.setting.to_dict()), wanted.planner.target_steps, wanted.facts.items()
    rows = connection.execute("SELECT id, setting, facts FROM settings WHERE target = ?", [target]).fetchall()
    same = [(row, json.loads(facts)) for row, setting, facts in rows if _nameless(json.loads(setting)) == plain]
    return [row for row, facts in same if all(facts.get(name, "") == value for name, value in known)]


def _nameless(setting: Mapping[str, Any]) -> dict[str, Any]:
    return {**setting, "model_name": ""}


def matching_backends(connection: sqlite3.Connection, planner: Planner) -> list[int]:
    """Rows of backends that measured as the planner's did."""
    own = {metric: planner.backends[metric] for metric in planner.metrics}
    rows = connection.execute("SELECT id, names FROM backends").fetchall()
    return [row for row, names in rows if own.items() <= json.loads(names).items()]


_REMEMBERED = """FROM memories m JOIN trajectories t ON t.id = m.trajectory_id
WHERE t.setting_id IN (SELECT value FROM json_each(?)) AND t.id NOT IN (SELECT trajectory_id FROM set_aside)"""
_ONLY = " AND t.id IN (SELECT value FROM json_each(?))"


@dataclass(frozen=True)
class Seen:
    """Renders that are remembered, at whatever setting and whether or not a plan can use them."""

    rows: NDArray[np.int64]
    """[N], in the order of `at`."""
    at: FloatArray
    """[N] when each was measured last, seconds since 1970."""

    @classmethod
    def nothing(cls) -> Seen:
        return cls(np.zeros(0, np.int64), np.zeros(0))

    @property
    def summary(self) -> tuple[int, int]:
        """Equal where the renders are the same."""
        return len(self.rows), int(self.rows.sum())

    def now(self, connection: sqlite3.Connection) -> Changes:
        """What came and went; read as a whole only where more is gone than the oldest."""
        there = "FROM memories WHERE trajectory_id NOT IN (SELECT trajectory_id FROM set_aside)"
        if not connection.execute("SELECT EXISTS (SELECT 1 FROM set_aside)").fetchone()[0]:
            there = "FROM memories WHERE 1"
        known = [self.at.max(initial=-1.0)]
        fresh = Seen._of(connection.execute(f"SELECT trajectory_id, at {there} AND at > ? ORDER BY at", known))
        summary = connection.execute(f"SELECT count(*), ifnull(sum(trajectory_id), 0) {there}").fetchone()
        if not len(fresh.rows) and summary == self.summary:
            return Changes(self, fresh.rows, fresh.rows)
        left = np.flatnonzero(~np.isin(self.rows, fresh.rows))
        evicted = max(len(left) + len(fresh.rows) - summary[0], 0)
        kept = left[evicted:]
        both = Seen(np.concatenate([self.rows[kept], fresh.rows]), np.concatenate([self.at[kept], fresh.at]))
        if both.summary == summary:
            return Changes(both, fresh.rows, self.rows[left[:evicted]])
        whole = Seen._of(connection.execute(f"SELECT trajectory_id, at {there} ORDER BY at, trajectory_id"))
        return Changes(whole, whole.rows[~whole._in(self)], np.setdiff1d(self.rows, whole.rows))

    @classmethod
    def _of(cls, found: sqlite3.Cursor) -> Seen:
        rows = found.fetchall()
        return cls(np.array([row[0] for row in rows], np.int64), np.array([row[1] for row in rows], np.float64))

    def _in(self, known: Seen) -> NDArray[np.bool_]:
        """[N] which of these are in `known`, and were not measured again since."""
        then = dict(zip(known.rows.tolist(), known.at.tolist(), strict=True))
        same = (then.get(row) == at for row, at in zip(self.rows.tolist(), self.at.tolist(), strict=True))
        return np.fromiter(same, bool, len(self.rows))


@dataclass(frozen=True)
class Changes:
    """Of what is remembered."""

    seen: Seen
    """What is there now."""
    came: NDArray[np.int64]
    """Rows that are new, or were measured again."""
    went: NDArray[np.int64]


def of_settings(connection: sqlite3.Connection, rows: NDArray[np.int64], settings: Sequence[int]) -> NDArray[np.int64]:
    """Those of these renders, in the same order."""
    query = f"SELECT id FROM trajectories t WHERE t.setting_id IN (SELECT value FROM json_each(?)){_ONLY}"
    found = connection.execute(query, [_listed(settings), _listed(rows.tolist())]).fetchall()
    return rows[np.isin(rows, np.array(found, np.int64))]


def read_curves(
    connection: sqlite3.Connection, wanted: Wanted, settings: Sequence[int], only: Sequence[int] | None = None
) -> tuple[Curves, NDArray[np.float16]] | None:
    """(curves, signatures [P, S] of their prompts); None where nothing is remembered. only: of these renders, and with
    no predictions but those that were kept."""
    planner, backends = wanted.planner, matching_backends(connection, wanted.planner)
    if not settings or not backends:
        return None
    chosen, given = ("", [_listed(settings)]) if only is None else (_ONLY, [_listed(settings), _listed(only)])
    query = f"SELECT t.id, t.prompt_id, t.seed, m.predictor, m.predicted {_REMEMBERED}{chosen} ORDER BY m.at, t.id"
    rows = connection.execute(query, given).fetchall()
    levels = _levels(connection, planner, [row[0] for row in rows], backends)
    rows = [row for row in rows if row[0] in levels]
    if not rows:
        return None
    ids = list(dict.fromkeys(row[1] for row in rows))
    place = {prompt: index for index, prompt in enumerate(ids)}
    keys, signatures = _prompts(connection, ids)
    predicted = _predicted(connection, planner, rows, ids if only is None else ())
    count = len(planner.grid)
    curves = Curves(
        grid=planner.grid,
        rows=np.array([row[0] for row in rows], np.int64),
        prompts=np.array([place[row[1]] for row in rows], np.int64),
        seeds=np.array([row[2] for row in rows], np.int64),
        level=np.stack([levels[row[0]] for row in rows]),
        median=predicted[:, :count],
        high=predicted[:, count : 2 * count],
        distance=predicted[:, 2 * count],
        keys=keys,
    )
    return curves, signatures


def _listed(values: Sequence[int]) -> str:
    return json.dumps(list(values))


def _levels(
    connection: sqlite3.Connection, planner: Planner, renders: Sequence[int], backends: Sequence[int]
) -> dict[int, FloatArray]:
    """Trajectory -> [K] worst shortfall over its scale at the planner's counts."""
    columns = ", ".join(f"json_extract(distances, '$.{metric}')" for metric in planner.metrics)
    query = (
        f"SELECT trajectory_id, steps, {columns} FROM measurements WHERE trajectory_id IN "
        "(SELECT value FROM json_each(?)) AND backends_id IN (SELECT value FROM json_each(?)) "
        "ORDER BY trajectory_id, steps"
    )
    rows = connection.execute(query, [_listed(renders), _listed(backends)]).fetchall()
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


def _prompts(connection: sqlite3.Connection, ids: Sequence[int]) -> tuple[NDArray[np.bytes_], NDArray[np.float16]]:
    """([P] digests, signatures [P, S])."""
    query = (
        "SELECT p.id, p.digest, s.vector FROM prompts p JOIN signatures s ON s.prompt_id = p.id "
        "WHERE p.id IN (SELECT value FROM json_each(?))"
    )
    known = {row[0]: row[1:] for row in connection.execute(query, [_listed(ids)])}
    vectors = np.stack([np.frombuffer(known[prompt][1], np.float16) for prompt in ids])
    return np.array([known[prompt][0] for prompt in ids], np.bytes_), vectors


def _predicted(connection: sqlite3.Connection, planner: Planner, rows: Sequence[Any], ids: Sequence[int]) -> FloatArray:
    """[J, 2 K + 1] median, high and the out-of-distribution score; as this planner's predictor said before the render
    was measured, else as it says of the prompts `ids` where their conditioning was kept; else NaN."""
    width = 2 * len(planner.grid) + 1
    found = np.full((len(rows), width), np.nan)
    lacking: dict[int, list[int]] = {}
    own = planner.fingerprint
    for index, (_, prompt, _, predictor, predicted) in enumerate(rows):
        if predictor == own and predicted is not None and len(predicted) in (4 * width - 4, 4 * width):
            found[index, : len(predicted) // 4] = np.frombuffer(predicted, np.float32)
        else:
            lacking.setdefault(prompt, []).append(index)
    for prompt, curves in _predict(connection, planner, [p for p in ids if p in lacking][-WINDOW:]).items():
        found[lacking[prompt]] = curves
    return found


def _predict(connection: sqlite3.Connection, planner: Planner, prompts: Sequence[int]) -> dict[int, FloatArray]:
    query = "SELECT id, features FROM prompts WHERE length(features) > 0 AND id IN (SELECT value FROM json_each(?))"
    known = {row: Encoded.from_bytes(features) for row, features in connection.execute(query, [_listed(prompts)])}
    if not known:
        return {}
    features = [planner.features(one.tokens, one.pooled) for one in known.values()]
    curves = ensemble_quantiles(planner.networks, collate(features)).double().numpy()[..., 1:].max(axis=2)  # [B, K, 2]
    flat = curves.transpose(0, 2, 1).reshape(len(known), -1)
    scores = np.array([planner.out_of_distribution.score(one) for one in features])
    return dict(zip(known, np.concatenate([flat, scores[:, None]], axis=1), strict=True))
