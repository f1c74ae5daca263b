"""Databases of older versions, and the rows of a store to compare."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from budgetfusion_nodes.calibration import schema
from budgetfusion_nodes.calibration.store_file import disposing, new_engine

CLOCKED = {"settings": ("created",), "memories": ("at",), "found_schedules": ("made",)}
"""Columns that hold when something was done."""
OF_THE_RUN = ("claims", "planners")
"""Tables of how a result came about: who works now, and which planners there were on the way."""


@contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """The driver's own connection."""
    with closing(sqlite3.connect(path)) as connection:
        yield connection


def make_old(today: Path, old: Path, wanted: int) -> None:
    """Writes `old`, a database of version `wanted` with those rows of `today` that it has tables for."""
    with disposing(new_engine(old)) as engine, engine.begin() as connection:
        for migration in schema.MIGRATIONS[:wanted]:
            migration(connection)
        connection.exec_driver_sql(f"PRAGMA user_version = {wanted}")
        connection.exec_driver_sql(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    with raw(old) as connection:
        connection.execute("ATTACH DATABASE ? AS today", (str(today),))
        for table in _tables(connection):
            connection.execute(f"INSERT INTO {table} SELECT * FROM today.{table}")
        connection.commit()


def version(path: Path) -> tuple[int, str]:
    """(version of the schema, SQLite's own check)."""
    with raw(path) as connection:
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        (check,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    return int(found), str(check)


def dump(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Table -> its rows, sorted, without what the clock or a run's course decides."""
    with raw(path) as connection:
        return {table: _rows(connection, table) for table in _tables(connection) if table not in OF_THE_RUN}


def _tables(connection: sqlite3.Connection) -> list[str]:
    query = "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY rootpage"
    return [name for (name,) in connection.execute(query)]


def _rows(connection: sqlite3.Connection, table: str) -> list[tuple[Any, ...]]:
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    named = ", ".join(name for name in columns if name not in CLOCKED.get(table, ()))
    return sorted(connection.execute(f"SELECT {named} FROM {table}"), key=repr)
