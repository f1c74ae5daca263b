"""Full and read-only disks, file systems without locks, clocks that are set back, foreign and damaged databases."""

from __future__ import annotations

import logging
import random
import re
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from unittest.mock import patch

import torch

from budgetfusion_nodes.calibration.memory_reader import reading
from budgetfusion_nodes.calibration.store import Store
from budgetfusion_nodes.calibration.store_file import StoreError

from .bad_disks import fill_up, limit_files, sentence_of, set_writable, small_disk, without
from .calibrating import CALIBRATION, PLANNER, RENDER_SECONDS, Tally, calibrate, check_store, content, fresh, store_file
from .killing import kill_within
from .old_store import dump, raw
from .part import LONG, Finding, NotRunError, Part, Work

log = logging.getLogger(__name__)

DISK = 4 * 1024**2
LEAVE = 700 * 1024
"""Bytes that a full disk still takes: some of the calibration, and not all."""
MONTH = 30 * 86_400.0
UNITS = (512, 4096)
"""Bytes of a sector and of a page: what a disk returns as zeros."""
CODE = (
    "import sys, torch; from pathlib import Path; torch.set_num_threads(1)\n"
    "from budgetfusion_nodes.core.errors import BudgetFusionError\n"
    "from research.campaign.calibrating import calibrate\n"
    "try: calibrate(Path(sys.argv[1]), sys.argv[2])\n"
    "except BudgetFusionError as error: print(error); sys.exit(3)\n"
)


class _Disks:
    """The scratch folder with an undisturbed calibration to compare with."""

    def __init__(self, work: Work) -> None:
        self.work, self.folder = work, work.folder
        self.note = work.folder / "note"
        self.whole = fresh(work.folder / "whole")
        calibrate(self.whole, CALIBRATION)
        with raw(store_file(self.whole)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.expected = dump(store_file(self.whole)), content(self.whole / PLANNER)

    def finish(self, folder: Path, tally: Tally) -> None:
        """The calibration goes on where it was, and ends as undisturbed."""
        said = sentence_of(lambda: calibrate(folder, CALIBRATION), self.note)
        tally.expect(said == "", f"it did not go on: {said}")
        if not said:
            same = (dump(store_file(folder)), content(folder / PLANNER)) == self.expected
            tally.expect(same, "the result was another")

    def copy(self, name: str) -> Path:
        """A folder with a copy of the undisturbed store."""
        folder = fresh(self.folder / name)
        shutil.copyfile(store_file(self.whole), store_file(folder))
        return folder


def _plain(said: str) -> str:
    """A sentence without this machine's folders."""
    return re.sub(r"/\S[^,(]*", "the folder ", said.strip()).replace("  ", " ")


def set_aside(folder: Path) -> list[Path]:
    """Databases under another name."""
    return sorted(file for file in folder.iterdir() if "set-aside" in file.name and file.suffix == ".sqlite3")


def full_disk(disks: _Disks) -> Finding:
    """A real disk that is full in the middle of a calibration."""
    tally = Tally()
    with small_disk(disks.folder / "full", DISK) as disk:
        filler = fill_up(disk, LEAVE)
        said = sentence_of(lambda: calibrate(disk, CALIBRATION), disks.note)
        tally.expect("is full" in said and "kept" in said, f"it said: {said or 'nothing'}")
        again = sentence_of(lambda: calibrate(disk, CALIBRATION), disks.note)
        tally.expect("is full" in again, f"queued again on the full disk it said: {again or 'nothing'}")
        tally.expect(not set_aside(disk), "the store was set aside for want of space")
        filler.unlink()
        check_store(disk, tally)
        with raw(store_file(disk)) as connection:
            (rows,) = connection.execute("SELECT count(*) FROM measurements").fetchone()
        disks.finish(disk, tally)
    text = f"A disk that is full in mid-calibration is said; {rows} counts were kept, and it went on from them."
    return tally.finding("set_aside", text, kept=rows, sentence=_plain(said))


def file_limit(disks: _Disks) -> Finding:
    """A disk that refuses to let a file grow, as a quota does."""
    tally, folder = Tally(), fresh(disks.folder / "limit")

    def limited() -> None:
        limit_files(LEAVE)
        calibrate(folder, CALIBRATION)

    said = sentence_of(limited, disks.note)
    tally.expect("kept" in said and "again" in said, f"it said: {said or 'nothing'}")
    tally.expect(not set_aside(folder), "the store was set aside")
    check_store(folder, tally)
    disks.finish(folder, tally)
    return tally.finding("set_aside", "A file that may not grow is said, and it goes on later.", sentence=said)


def read_only_disk(disks: _Disks) -> Finding:
    """A real disk that is mounted read-only."""
    tally = Tally()
    with small_disk(disks.folder / "read only", DISK) as disk:
        shutil.copyfile(store_file(disks.whole), store_file(disk))
        set_writable(disk, False)
        said = sentence_of(lambda: calibrate(disk, CALIBRATION), disks.note)
        tally.expect("Allow writing" in said, f"it said: {said or 'nothing'}")
        set_writable(disk, True)
        tally.expect(dump(store_file(disk)) == disks.expected[0], "the store was another afterwards")
        tally.expect(not set_aside(disk), "the store was set aside")
        disks.finish(disk, tally)
    return tally.finding(
        "set_aside", "A read-only disk is said, and the store on it stays as it was.", sentence=_plain(said)
    )


def no_locks(disks: _Disks) -> Finding:
    """A file system whose locks fail."""
    tally, folder = Tally(), disks.copy("no locks")
    started = time.monotonic()
    status, said = without("locks", disks.folder, CODE, (str(folder), CALIBRATION))
    seconds = time.monotonic() - started
    tally.expect(status == 3 and "cannot lock" in said, f"it ended with {status}: {said[-200:]}")
    tally.expect(not set_aside(folder), "the store was set aside")
    disks.finish(folder, tally)
    text = f"A file system without locks is said after {seconds:.0f} s with the start of Python, and the store stays."
    return tally.finding("set_aside", text, seconds=round(seconds, 1), sentence=_plain(said))


def no_shared_memory(disks: _Disks) -> Finding:
    """A file system that SQLite's write-ahead log cannot work on."""
    tally, folder = Tally(), fresh(disks.folder / "no memory")
    kill_within(lambda: calibrate(folder, CALIBRATION, RENDER_SECONDS), 1.0, random.Random(disks.work.seed))
    status, said = without("memory", disks.folder, CODE, (str(folder), CALIBRATION))
    tally.expect(status == 0, f"it ended with {status}: {said[-200:]}")
    check_store(folder, tally)
    disks.finish(folder, tally)
    text = "Without the write-ahead log a calibration goes on with the plain journal and ends as undisturbed."
    return tally.finding("set_aside", text)


def clock_set_back(disks: _Disks) -> Finding:
    """By a month, in the middle of a calibration of which another machine has claimed a part."""
    tally, folder = Tally(), fresh(disks.folder / "clock")
    kill_within(lambda: calibrate(folder, CALIBRATION, RENDER_SECONDS), 1.0, random.Random(disks.work.seed))
    calibrated = time.time
    with Store.at(store_file(folder)) as store, store.transaction() as connection:
        connection.exec_driver_sql(
            "INSERT OR REPLACE INTO claims SELECT id, 'other machine 1 1.00 x', ? FROM trajectories",
            (calibrated() + 600.0,),
        )

    def later() -> None:
        with patch("time.time", lambda: calibrated() - MONTH):
            calibrate(folder, CALIBRATION)

    started = time.monotonic()
    said = sentence_of(later, disks.note)
    seconds = time.monotonic() - started
    tally.expect(said == "", f"it said: {said}")
    disks.finish(folder, tally)
    text = f"A clock that is set back by a month delays nobody: it went on at once and took {seconds:.0f} s."
    return tally.finding("kept", text, seconds=round(seconds, 1))


def newer_version(disks: _Disks) -> Finding:
    """A database of a version that this one does not know."""
    tally, folder = Tally(), disks.copy("newer")
    with raw(store_file(folder)) as connection:
        connection.execute("PRAGMA user_version = 999")
    before = store_file(folder).read_bytes()
    with Store.at(store_file(folder)) as store:
        said = "" if store.said is None else store.said.text()
    tally.expect("newer" in said and "nothing was deleted" in said, f"it said: {said or 'nothing'}")
    tally.expect([file.read_bytes() for file in set_aside(folder)] == [before], "the old bytes were not kept")
    disks.finish(folder, tally)
    return tally.finding("set_aside", "A database of a newer version is set aside whole, and a new one begun.")


def zeros(disks: _Disks, trials: int) -> Finding:
    """Runs of sectors or pages that come back as zeros."""
    tally, rng, ends = Tally(), random.Random(disks.work.seed), Counter[str]()
    for _ in range(trials):
        folder = disks.copy("zeros")
        file = store_file(folder)
        bad = bytearray(file.read_bytes())
        unit = rng.choice(UNITS)
        start = rng.randrange(0, len(bad), unit)
        end = min(len(bad), start + unit * rng.choice((1, 2, 4, 16)))
        bad[start:end] = bytes(end - start)
        file.write_bytes(bad)
        ends[_opened(disks, folder, bytes(bad), tally)] += 1
    text = (
        f"{trials} databases with zeros in the middle: {ends['set aside']} were set aside whole with a sentence, "
        f"{ends['right']} went on and ended as undisturbed."
    )
    return tally.finding("set_aside", text, trials=trials, **dict(ends))


def _opened(disks: _Disks, folder: Path, bad: bytes, tally: Tally) -> str:
    """How a damaged store ends. A plan reads it first, and never writes."""
    try:
        with reading(store_file(folder)) as connection:
            connection.execute("SELECT * FROM memories").fetchall()
    except sqlite3.Error:
        pass  # said as a note of the plan
    with Store.at(store_file(folder)) as store:
        said = "" if store.said is None else store.said.text()
    if said:
        tally.expect("nothing was deleted" in said, f"it said: {said}")
        tally.expect([file.read_bytes() for file in set_aside(folder)] == [bad], "the damaged bytes were not kept")
        return "set aside"
    try:
        calibrate(folder, CALIBRATION)
    except StoreError as error:
        tally.expect("set aside" in str(error), f"it said: {error}")
        return "said"
    right = dump(store_file(folder)) == disks.expected[0]
    tally.expect(right, "a damaged store went on with other numbers")
    return "right" if right else "wrong"


def _all(parts: Iterable[Callable[[], Finding]]) -> list[Finding]:
    """What this system allows; the rest is said in the log."""
    found = []
    for part in parts:
        try:
            found.append(part())
        except NotRunError as error:
            log.warning("disks: %s", error)
    return found


def run(work: Work) -> Sequence[Finding]:
    """long: also planned renders in a genuine host, beside every kind of bad store."""
    torch.set_num_threads(1)
    disks = _Disks(work)
    kinds = (full_disk, file_limit, read_only_disk, no_locks, no_shared_memory, clock_set_back, newer_version)
    found = _all(lambda kind=kind: kind(disks) for kind in kinds)
    found.append(zeros(disks, work.count(quick=8, long=200)))
    if work.amount == LONG:
        from .disk_renders import renders

        found.append(renders(work))
    return found


PART = Part("disks", "Disks, clocks and damaged databases", run)
