"""Which process renders which trajectory, so that several that calibrate on one store share the work.

A claim holds as long as its process lives and says so within the lease. One that lapses costs renders that are made
twice, never a result: the store keeps a count once.
"""

from __future__ import annotations

import os
import socket
import time
import uuid

from sqlalchemy import delete, select
from sqlalchemy.dialects.sqlite import insert

from .schema import claims as t
from .store import Store

LEASE_SECONDS = 900.0
"""Longer than a count takes to render, besides videos on a CPU."""


class Claims:
    """The claims of one job; use it in a `with`, at whose end all are given back. Those of what is finished do no harm:
    nobody asks who renders it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.owner = f"{socket.gethostname()} {os.getpid()} {_started(os.getpid())} {uuid.uuid4().hex}"
        self._until: dict[int, float] = {}

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        with self._store.transaction() as connection:
            connection.execute(delete(t).where(t.c.owner == self.owner))

    def take(self, trajectory_id: int) -> bool:
        """Whether the trajectory is ours now, and no other process that lives has it."""
        now = time.time()
        mine = {"owner": self.owner, "until": now + LEASE_SECONDS}
        with self._store.transaction() as connection:
            held = connection.execute(select(t.c.owner, t.c.until).where(t.c.trajectory_id == trajectory_id)).first()
            if held is not None and held.owner != self.owner and _holds(held.until, now) and _lives(held.owner):
                return False
            put = insert(t).values(trajectory_id=trajectory_id, **mine)
            connection.execute(put.on_conflict_do_update(index_elements=["trajectory_id"], set_=mine))
        self._until[trajectory_id] = mine["until"]
        return True

    def renew(self, trajectory_id: int) -> None:
        """Says that it is still being rendered; writes when half of the lease is over."""
        if self._until.get(trajectory_id, 0.0) - time.time() < LEASE_SECONDS / 2.0:
            self.take(trajectory_id)


def _holds(until: float, now: float) -> bool:
    """Whether a lease runs. One that ends later than any could was given before a clock was set back, and would keep
    others waiting for as long as it was set back by; twice the lease, because clocks of two machines differ."""
    return now < until <= now + 2.0 * LEASE_SECONDS


def _lives(owner: str) -> bool:
    """Whether the process of a claim still runs; True where that cannot be told, on another machine or container."""
    host, pid, started, _ = owner.rsplit(" ", 3)
    return host != socket.gethostname() or _started(int(pid)) == started


def _started(pid: int) -> str:
    """When a process was started, which tells it from a later one with its number; empty where there is none."""
    import psutil

    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return ""
