"""Watches a store that several processes use: whether a row goes that nobody deleted, and how long one waits for it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from budgetfusion_nodes.calibration.store import Store

from .old_store import raw

Row = tuple[str, int, str, int]
"""(digest of the prompt, seed, backends, count)"""
ROWS = (
    "SELECT s.digest, p.digest, t.seed, b.names, m.steps FROM measurements m JOIN trajectories t ON t.id = "
    "m.trajectory_id JOIN settings s ON s.id = t.setting_id JOIN prompts p ON p.id = t.prompt_id JOIN backends b ON "
    "b.id = m.backends_id"
)


@dataclass
class Watch:
    """Every look compares with all looks before. Only one process may delete, and says so with `forgetting`."""

    path: Path
    lost: int = 0
    looks: int = 0
    longest_wait: float = 0.0
    """Seconds that a transaction waited for its turn."""
    waits: int = 0
    _seen: dict[str, set[Row]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def rows(self) -> int:
        """Measurements at the last look."""
        return sum(map(len, self._seen.values()))

    def rows_of(self, setting: str) -> int:
        """Of one setting, by its digest."""
        return len(self._seen.get(setting, ()))

    def look(self) -> None:
        """Counts what went without being deleted."""
        with self._lock:
            now = self._now()
            self.lost += sum(len(before - now.get(setting, set())) for setting, before in self._seen.items())
            self.looks += 1
            self._seen = now

    def _now(self) -> dict[str, set[Row]]:
        found: dict[str, set[Row]] = {}
        if self.path.is_file():
            with raw(self.path) as connection:
                for setting, *row in connection.execute(ROWS):
                    found.setdefault(setting, set()).add((row[0], row[1], row[2], row[3]))
        return found

    @contextmanager
    def forgetting(self, setting: str) -> Iterator[None]:
        """Around the deletion of a setting, by its digest."""
        with self._lock:
            self._seen.pop(setting, None)
            yield
            self._seen.pop(setting, None)

    def settings(self) -> dict[str, tuple[int, float]]:
        """Digest -> (number, cfg)."""
        if not self.path.is_file():
            return {}
        with raw(self.path) as connection:
            rows = connection.execute("SELECT digest, id, setting FROM settings").fetchall()
        return {digest: (number, float(json.loads(setting)["cfg"])) for digest, number, setting in rows}

    def wait(self, store: Store) -> None:
        """One transaction that does nothing, timed."""
        started = time.monotonic()
        with store.transaction():
            self.longest_wait = max(self.longest_wait, time.monotonic() - started)
        self.waits += 1


def every(seconds: float, until: float, work: Callable[[], object]) -> None:
    """Calls `work` every so often until the time is over (of time.monotonic)."""
    while (left := until - time.monotonic()) > 0:
        work()
        time.sleep(min(seconds, max(left, 0.0)))
