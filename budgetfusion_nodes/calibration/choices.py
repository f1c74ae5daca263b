"""Choices of the Blind Test in the calibration store: one row a pair, never twice, and as CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from sqlalchemy import Connection, Integer, delete, func, select, type_coerce
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import SQLAlchemyError

from ..core.messages import Message, message
from ..core.psychometrics import Tally
from . import schema
from .store_file import StoreError, disposing, open_engine

TABLE = schema.choices
COLUMNS = ("at", "label", "question", "quality", "chosen", "coin", "left", "key", "facts")
"""Of the CSV. chosen and left: `planned` or `full`."""


@dataclass(frozen=True)
class Choice:
    """One pair that was judged."""

    key: str
    """Digest of what was judged: the two pictures, label and question."""
    label: str
    question: str
    quality: float
    chose_full: bool
    coin: bool
    """No difference was seen, and a coin chose."""
    full_left: bool
    facts: Mapping[str, Any] = field(default_factory=dict)
    at: float = 0.0
    """Seconds since 1970."""


class ChoiceStore:
    """Choices in the database at `path`, made or migrated if need be. No connection stays open between calls, so that
    the file can be moved. StoreError where nothing can be read or written there."""

    def __init__(self, path: Path) -> None:
        self._engine, said = open_engine(path)
        self.said: Message | None = said
        """What is to be said where a database lay there that could not be used."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with disposing(self._engine), self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(message("blind_store_failed", reason=str(error.__cause__ or error))) from error

    def record(self, choice: Choice) -> bool:
        """False where this pair was judged before; the first choice counts."""
        with self._transaction() as connection:
            made = connection.execute(insert(TABLE).values(vars(choice)).on_conflict_do_nothing())
            return bool(made.rowcount)

    def known(self, keys: Collection[str]) -> set[str]:
        """Those that were judged before."""
        with self._transaction() as connection:
            return set(connection.scalars(select(TABLE.c.key).where(TABLE.c.key.in_(list(keys)))))

    def tallies(self, label: str, question: str) -> dict[float, Tally]:
        """Slider value -> what was chosen there."""
        own = TABLE.c
        right, coins = (func.sum(type_coerce(flag, Integer)) for flag in (own.chose_full, own.coin))
        counts = select(own.quality, func.count(), right, coins)
        query = counts.where(own.label == label, own.question == question).group_by(own.quality)
        with self._transaction() as connection:
            return {q: Tally(n, right, coins) for q, n, right, coins in connection.execute(query)}

    def tests(self) -> dict[tuple[str, str], int]:
        """(label, question) -> number of choices, the newest first."""
        own = TABLE.c
        query = select(own.label, own.question, func.count()).group_by(own.label, own.question)
        with self._transaction() as connection:
            rows = connection.execute(query.order_by(func.max(own.at).desc()))
            return {(label, question): n for label, question, n in rows}

    def forget(self, label: str) -> int:
        """Deletes the choices under a label; how many there were."""
        with self._transaction() as connection:
            return connection.execute(delete(TABLE).where(TABLE.c.label == label)).rowcount

    def write_csv(self, to: TextIO) -> int:
        """All choices in the order in which they were made; how many."""
        with self._transaction() as connection:
            rows = connection.execute(select(TABLE).order_by(TABLE.c.id)).all()
        table = csv.writer(to, lineterminator="\n")
        table.writerow(COLUMNS)
        for row in rows:
            chosen, left = ("full" if flag else "planned" for flag in (row.chose_full, row.full_left))
            facts = json.dumps(row.facts, sort_keys=True)
            table.writerow(
                [row.at, _as_text(row.label), row.question, row.quality, chosen, int(row.coin), left, row.key, facts]
            )
        return len(rows)


def _as_text(label: str) -> str:
    """A label that a spreadsheet would take for a formula, as text."""
    return f"'{label}" if label.startswith(("=", "+", "-", "@", "\t", "\r")) else label
