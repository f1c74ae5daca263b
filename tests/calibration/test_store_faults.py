"""What disks, clocks and other processes do to the store: it says what happened, and loses and moves nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from budgetfusion_nodes.calibration import claims, schema, store_file
from budgetfusion_nodes.calibration.claims import Claims
from budgetfusion_nodes.calibration.planner_folder import put_planner
from budgetfusion_nodes.calibration.records import Subject
from budgetfusion_nodes.calibration.store import Store
from budgetfusion_nodes.calibration.store_file import StoreError, outside_transactions
from budgetfusion_nodes.calibration.store_memory import Remembered, learned_since, remember
from budgetfusion_nodes.core.sources import CALIBRATED, LEARNED
from tests.calibration.stub import BACKENDS, SETTING
from tests.calibration.test_store import SUBJECT, encoded, fill, measurement, others
from tests.fixtures.planners import make_planner


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "calibration.sqlite3"


def test_a_full_disk_is_said_and_what_was_measured_stays(path: Path) -> None:
    with Store.at(path) as store:
        setting, prompt, backends = fill(store)
        kept = store.trajectory(setting, prompt, 7, backends)
        with outside_transactions(store._engine) as connection:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            connection.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(StoreError) as caught:
            store.record(kept.trajectory_id, backends, measurement(5), bytes(100_000))
        assert caught.value.message.code == "store_full"
        assert set(store.trajectory(setting, prompt, 7, backends).measured) == {2, 20}, "the same store goes on"
    with Store.at(path) as store:
        assert store.said is None


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("database or disk is full", "store_full"),
        ("disk I/O error", "store_failed"),
        ("unable to open database file", "store_folder"),
        ("database is locked", "store_locked"),
    ],
)
def test_what_passes_moves_no_store(path: Path, fault: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.at(path) as store:
        fill(store)

    def fail(connection: Any) -> None:
        raise sqlite3.OperationalError(fault)

    with monkeypatch.context() as patch:
        patch.setattr(schema, "migrate", fail)
        with pytest.raises(StoreError) as caught:
            Store.at(path)
    assert caught.value.message.code == code
    assert others(path) == []
    with Store.at(path) as store:
        assert store.contents()[0].measurements == 2


def test_without_shared_memory_the_plain_journal_is_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.at(path) as store:
        fill(store)
    look = store_file._look

    def no_memory(connection: sqlite3.Connection) -> None:
        if connection.execute("PRAGMA journal_mode").fetchone() == ("wal",):
            raise sqlite3.OperationalError("disk I/O error")
        look(connection)

    monkeypatch.setattr(store_file, "_look", no_memory)
    for _ in range(2):
        with Store.at(path) as store, outside_transactions(store._engine) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
            assert store.contents()[0].measurements == 2


def test_a_file_system_without_locks_is_said_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(store_file, "_look", locked)
    monkeypatch.setattr(store_file, "has_locks", lambda folder: False)
    with pytest.raises(StoreError) as caught:
        Store.at(path)
    assert caught.value.message.code == "store_no_locks"
    monkeypatch.undo()
    assert store_file.has_locks(path.parent)


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_set_aside_that_is_cut_off_deletes_no_journal(
    path: Path, renames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A journal beside which no database lies is deleted by SQLite, with what was committed last."""
    path.parent.mkdir()
    path.write_bytes(b"this is no database" * 500)
    journal = path.with_name(path.name + "-wal")
    journal.write_bytes(b"what was committed last")
    original, done = Path.rename, []

    def rename(file: Path, target: Path) -> Path:
        if file.exists():
            if len(done) == renames:
                raise KeyboardInterrupt
            done.append(file)
        return original(file, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        if renames < 2:
            with pytest.raises(KeyboardInterrupt):
                Store.at(path)
    with Store.at(path) as store:
        fill(store)
    contents = [file.read_bytes() for file in path.parent.iterdir()]
    assert b"this is no database" * 500 in contents
    assert b"what was committed last" in contents


def kill_amid_a_transaction(path: Path) -> None:
    """Leaves a store as a killed process does that was deleting its measurements, in the plain journal."""
    alive = path.with_name("alive.sqlite3")
    with Store.at(alive) as store:
        fill(store)
    with contextlib.closing(sqlite3.connect(alive, isolation_level=None)) as connection:
        for statement in ("journal_mode = DELETE", "cache_size = 1"):
            connection.execute(f"PRAGMA {statement}")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM measurements")
        connection.execute("CREATE TABLE more (content BLOB)")
        connection.executemany("INSERT INTO more VALUES (zeroblob(3000))", [()] * 100)
        for companion in ("", "-journal"):
            shutil.copyfile(f"{alive}{companion}", f"{path}{companion}")
        connection.execute("ROLLBACK")


def test_a_store_that_a_kill_left_with_a_plain_journal_is_set_aside_with_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only one cannot be put back before it is moved, and without its journal never."""
    kill_amid_a_transaction(path)
    connect, protected = store_file._connect, path.stat().st_ino

    def read_only(file: Path) -> sqlite3.Connection:
        if not file.exists() or file.stat().st_ino != protected:
            return connect(file)
        return sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, isolation_level=None)

    monkeypatch.setattr(store_file, "_connect", read_only)
    with Store.at(path) as store:
        assert store.said is not None and store.said.code == "store_read_only"
    monkeypatch.undo()
    (aside,) = others(path)
    with Store.at(aside) as store:
        assert store.said is None, "it is whole"
        assert store.contents()[0].measurements == 2


@pytest.mark.parametrize("companion", ["-wal", "-journal"])
def test_where_the_database_cannot_be_moved_its_journal_stays_beside_it(
    path: Path, companion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is no database" * 500)
    journal = path.with_name(path.name + companion)
    rename = Path.rename

    def held(file: Path, target: Path) -> Path:
        """As on Windows, while a virus scanner has the database open."""
        if file == path:
            raise PermissionError(13, "The process cannot access the file")
        return rename(file, target)

    def unusable(file: Path) -> Any:
        journal.write_bytes(b"what was committed last")
        raise store_file._Unusable(store_file._damaged)

    monkeypatch.setattr(store_file, "_opened", unusable)
    monkeypatch.setattr(Path, "rename", held)
    with pytest.raises(StoreError) as caught:
        Store.at(path)
    assert caught.value.message.code == "store_folder"
    assert sorted(path.parent.iterdir()) == [path, journal]


def test_a_store_that_another_process_has_just_begun_is_not_set_aside(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is no database" * 500)
    opened, calls = store_file._opened, []

    def late(file: Path) -> Any:
        calls.append(file)
        try:
            return opened(file)
        except store_file._Unusable:
            if len(calls) == 1:  # meanwhile another process finds the same
                with Store.at(path) as other:
                    fill(other)
            raise

    monkeypatch.setattr(store_file, "_opened", late)
    with Store.at(path) as store:
        assert store.contents()[0].measurements == 2
    assert len(others(path)) == 1


def test_a_row_that_was_deleted_and_its_number_given_away_takes_no_measurement(path: Path) -> None:
    other_subject = Subject(replace(SETTING, cfg=7.0), 20)
    with Store.at(path) as one, Store.at(path) as shell, Store.at(path) as two:
        setting, prompt, backends = fill(one)
        trajectory = one.trajectory(setting, prompt, 7, backends).trajectory_id
        shell.forget(setting)
        for begun in (False, True):
            if begun:
                assert two.setting_id(other_subject) == setting, "SQLite gives numbers again"
                assert two.prompt_id(encoded(1), "subject") == prompt
                assert two.trajectory(setting, prompt, 7, backends).trajectory_id == trajectory
            for act in (
                lambda: one.record(trajectory, backends, measurement(5)),
                lambda: one.finish(trajectory),
                lambda: one.set_aside(trajectory, 5, "NaN"),
                lambda: one.trajectory(setting, prompt, 8, backends),
                lambda: one.measured(setting, backends, [prompt]),
            ):
                with pytest.raises(StoreError) as caught:
                    act()
                assert caught.value.message.code == "store_forgotten"
        assert two.trajectory(setting, prompt, 7, backends).measured == {}
        assert two.contents()[0].measurements == 0


def test_features_that_a_disk_has_damaged_are_written_again(path: Path) -> None:
    with Store.at(path) as store:
        _, prompt, _ = fill(store)
        with store.transaction() as connection:
            connection.exec_driver_sql("UPDATE prompts SET features = zeroblob(100)")
        assert store.prompt_id(encoded(), "subject", "a secret prompt") == prompt
        assert torch.equal(store.encoded([prompt])[prompt].tokens, encoded().tokens)


def test_a_claim_from_the_future_lapses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1e9]
    monkeypatch.setattr(claims.time, "time", lambda: now[0])
    with Store.at(path) as store:
        setting, prompt, backends = fill(store)
        trajectory = store.trajectory(setting, prompt, 7, backends).trajectory_id
        with Claims(store) as theirs, Claims(store) as ours:
            theirs.owner = "other machine 1 1.00 x"
            assert theirs.take(trajectory)
            now[0] -= 60.0
            assert not ours.take(trajectory), "two machines' clocks differ by a minute"
            now[0] -= 30 * 86_400.0
            assert ours.take(trajectory)


def _remember(store: Store, seed: int, most: int = 10_000, source: str = LEARNED) -> None:
    measured = [measurement(20), measurement(2)]
    remember(store, Remembered(SUBJECT, encoded(seed), seed, BACKENDS, measured, source), most)


def test_after_a_clock_was_set_back_new_renders_are_remembered(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.time()
    now = [start]
    monkeypatch.setattr(time, "time", lambda: now[0])
    with Store.at(path) as store:
        for seed in range(4):
            _remember(store, seed, most=4)
        now[0] -= 365 * 86_400.0
        assert learned_since(store, LEARNED, now[0] - 3600.0) == 0, "the hour's allowance is not used up"
        _remember(store, 10, most=4)
        assert learned_since(store, LEARNED, now[0] - 3600.0) == 1
        with store.transaction() as connection:
            seeds = [row.seed for row in connection.execute(schema.trajectories.select())]
        assert 10 in seeds, "what is new is not what goes first"
        assert len(seeds) == 4
        assert CALIBRATED != LEARNED


def test_drafts_of_killed_processes_are_cleared(tmp_path: Path) -> None:
    planner = make_planner(8, 4)
    put_planner(tmp_path, planner, "own")
    old, young = (tmp_path / f".own.safetensors.{n}.new" for n in (1, 2))
    for draft in (old, young):
        draft.write_bytes(b"half")
    os.utime(old, (0.0, 0.0))
    put_planner(tmp_path, planner, "own")
    assert sorted(file.name for file in tmp_path.iterdir()) == [young.name, "own.safetensors"]
