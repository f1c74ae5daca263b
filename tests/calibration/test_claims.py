"""Claims: one process a trajectory, and none that is gone stands in the way of another."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from budgetfusion_nodes.calibration import claims
from budgetfusion_nodes.calibration.claims import Claims
from budgetfusion_nodes.calibration.records import Subject
from budgetfusion_nodes.calibration.store import Store
from tests.calibration.stub import BACKENDS, SETTING
from tests.calibration.test_store import encoded


@pytest.fixture
def store(tmp_path: Path):
    with Store.at(tmp_path / "store.sqlite3") as opened:
        yield opened


@pytest.fixture
def trajectory(store: Store) -> int:
    prompt = store.prompt_id(encoded(), "subject")
    return store.trajectory(
        store.setting_id(Subject(SETTING, 20)), prompt, 1, store.backends_id(BACKENDS)
    ).trajectory_id


def test_one_at_a_time_and_free_again_at_the_end(store: Store, trajectory: int) -> None:
    with Claims(store) as one, Claims(store) as other:
        assert one.take(trajectory)
        assert one.take(trajectory), "again by the same job"
        assert not other.take(trajectory)
        one.__exit__()
        assert other.take(trajectory)
        assert not one.take(trajectory)


def test_a_lease_ends_unless_it_is_renewed(store: Store, trajectory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(claims.time, "time", lambda: now[0])
    with Claims(store) as one, Claims(store) as other:
        assert one.take(trajectory)
        now[0] += 0.8 * claims.LEASE_SECONDS
        one.renew(trajectory)
        now[0] += 0.8 * claims.LEASE_SECONDS
        assert not other.take(trajectory)
        now[0] += 0.8 * claims.LEASE_SECONDS
        assert other.take(trajectory)


def test_a_dead_process_holds_nothing(store: Store, trajectory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine = claims._started(os.getpid())
    dead = f"{socket.gethostname()} {ended.pid} 1.00 x"
    reused = f"{socket.gethostname()} {os.getpid()} 1.00 x"  # another process has its number now
    living = f"{socket.gethostname()} {os.getpid()} {mine} x"
    elsewhere = f"other machine {ended.pid} 1.00 x"
    for owner, free in ((dead, True), (reused, True), (living, False), (elsewhere, False)):
        with Claims(store) as theirs, Claims(store) as ours:
            theirs.owner = owner
            assert theirs.take(trajectory)
            assert ours.take(trajectory) == free, owner
