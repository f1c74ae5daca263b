"""Takes the measurements of another store's file into this one: what both have is kept once."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from sqlalchemy.exc import SQLAlchemyError

from ..core.errors import InputError
from . import schema
from .store import Store
from .store_check import check_rows
from .store_file import disposing, new_engine, outside_transactions

REMEDY = "Choose a file that 'store export' wrote."
_COPY = (
    # name of the table, columns, where they come from
    "INSERT OR IGNORE INTO settings (digest, setting, schedule, target, facts, created) "
    "SELECT digest, setting, schedule, target, facts, created FROM other.settings",
    "INSERT OR IGNORE INTO prompts (digest, features, category, text) "
    "SELECT digest, features, category, text FROM other.prompts",
    "UPDATE prompts SET features = (SELECT features FROM other.prompts o WHERE o.digest = prompts.digest) "
    "WHERE length(features) = 0 AND digest IN (SELECT digest FROM other.prompts)",
    "INSERT OR IGNORE INTO signatures (prompt_id, vector) SELECT p.id, s.vector FROM other.signatures s "
    "JOIN other.prompts o ON o.id = s.prompt_id JOIN prompts p ON p.digest = o.digest",
    "INSERT OR IGNORE INTO backends (names) SELECT names FROM other.backends",
    "CREATE TEMP TABLE same_trajectory AS SELECT o.id AS theirs, s.id AS setting_id, p.id AS prompt_id, o.seed AS seed "
    "FROM other.trajectories o JOIN other.settings os ON os.id = o.setting_id JOIN settings s ON s.digest = os.digest "
    "JOIN other.prompts op ON op.id = o.prompt_id JOIN prompts p ON p.digest = op.digest",
    "INSERT OR IGNORE INTO trajectories (setting_id, prompt_id, seed) "
    "SELECT setting_id, prompt_id, seed FROM same_trajectory",
    "CREATE TEMP TABLE ours AS SELECT m.theirs AS theirs, t.id AS ours FROM same_trajectory m "
    "JOIN trajectories t USING (setting_id, prompt_id, seed)",
    "INSERT OR IGNORE INTO measurements (trajectory_id, backends_id, steps, distances, l_snr, evaluations, "
    "render_seconds, measure_seconds) SELECT o.ours, b.id, m.steps, m.distances, m.l_snr, m.evaluations, "
    "m.render_seconds, m.measure_seconds FROM other.measurements m JOIN ours o ON o.theirs = m.trajectory_id "
    "JOIN other.backends ob ON ob.id = m.backends_id JOIN backends b ON b.names = ob.names",
    "INSERT OR IGNORE INTO set_aside (trajectory_id, steps, reason, at) SELECT o.ours, a.steps, a.reason, a.at "
    "FROM other.set_aside a JOIN ours o ON o.theirs = a.trajectory_id "
    "WHERE o.ours NOT IN (SELECT trajectory_id FROM measurements)",
    "INSERT OR IGNORE INTO choices (key, label, question, quality, chose_full, coin, full_left, facts, at) "
    "SELECT key, label, question, quality, chose_full, coin, full_left, facts, at FROM other.choices",
    "INSERT OR IGNORE INTO memories (trajectory_id, at, source, predictor, predicted) SELECT o.ours, m.at, m.source, "
    "m.predictor, m.predicted FROM other.memories m JOIN ours o ON o.theirs = m.trajectory_id",
    "INSERT OR IGNORE INTO found_schedules (setting_id, backends_id, schedule, tables, made) "
    "SELECT s.id, b.id, f.schedule, f.tables, f.made FROM other.found_schedules f "
    "JOIN other.settings os ON os.id = f.setting_id JOIN settings s ON s.digest = os.digest "
    "JOIN other.backends ob ON ob.id = f.backends_id JOIN backends b ON b.names = ob.names",
)


def merge_store(store: Store, path: Path) -> int:
    """How many measurements came in. InputError where `path` is no store of this version or an earlier one, or holds
    a row that no store writes: then nothing comes in. It is only read, and may be one that is in use."""
    with tempfile.TemporaryDirectory() as scratch:  # a copy: SQLite makes journals beside what it attaches
        copy = Path(scratch) / "other.sqlite3"
        _check(path, copy)
        try:
            return _merged(store, copy)
        except (InputError, SQLAlchemyError, sqlite3.Error, SafetensorError, KeyError, ValueError) as error:
            reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
            raise InputError(f"{path.name} was not imported, and nothing of it came in: {reason}. {REMEDY}") from error


def _merged(store: Store, copy: Path) -> int:
    with disposing(new_engine(copy)) as engine, engine.begin() as connection:
        schema.migrate(connection)
    with disposing(new_engine(copy)) as engine, outside_transactions(engine) as connection:
        check_rows(connection)
    return store.attach(copy, _COPY)


def _check(path: Path, copy: Path) -> None:
    """Copies the database at `path`, with what its write-ahead log holds, and looks at the copy."""
    try:
        _copy(path, copy)
        with closing(sqlite3.connect(copy)) as connection:
            (owner,) = _one(connection, "PRAGMA application_id")
            (version,) = _one(connection, "PRAGMA user_version")
            (check,) = _one(connection, "PRAGMA integrity_check(1)")
            programs = _one(connection, "SELECT count(*) FROM sqlite_master WHERE type IN ('trigger', 'view')")
    except sqlite3.Error as error:
        raise InputError(f"{path.name} cannot be read as a calibration store ({error}). {REMEDY}") from error
    if owner != schema.APPLICATION_ID or not 1 <= version <= len(schema.MIGRATIONS):
        raise InputError(f"{path.name} is no calibration store that this version can read. {REMEDY}")
    if check != "ok" or programs[0]:
        raise InputError(f"{path.name} is damaged or carries more than measurements. {REMEDY}")


def _copy(path: Path, copy: Path) -> None:
    log = path.with_name(f"{path.name}-wal")
    in_use = log.is_file() and log.stat().st_size > 0
    # else nothing is written beside it, not even on a disk that can be read alone
    how = "mode=ro" if in_use else "mode=ro&immutable=1"
    address = f"{path.absolute().as_uri()}?{how}"
    with closing(sqlite3.connect(address, uri=True)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)


def _one(connection: Any, query: str) -> Any:
    return connection.execute(query).fetchone()
