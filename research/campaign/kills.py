"""kill -9 at random moments of a calibration, a fit, a planner's replacement and a migration."""

from __future__ import annotations

import logging
import os
import random
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from budgetfusion_nodes.calibration.job import Job
from budgetfusion_nodes.calibration.planner_folder import list_folder, put_planner
from budgetfusion_nodes.calibration.records import Measurement
from budgetfusion_nodes.calibration.spec import Spec
from budgetfusion_nodes.calibration.store import Store
from budgetfusion_nodes.predictor.fit import FitOptions
from budgetfusion_nodes.predictor.planner_file import load_planner

from .killing import kill_within, seconds_of
from .old_store import dump, make_old, raw, version
from .part import Finding, Part, Work
from .stub import StubRenderer, stub_executor, stub_prompts

log = logging.getLogger(__name__)

TARGET, NAME = 30, "stub"
PLANNER = f"{NAME}.safetensors"
CALIBRATION, FIT = "quick", "standard"
"""Words of thoroughness: the first ends with a mean curve, the second compares it with networks."""
FAST = FitOptions(networks=2, epochs=20, patience=5)
RENDER_SECONDS = 0.002
Content = tuple[Any, dict[str, bytes]]


class _Acknowledging(Store):
    """Says of each count, in a file beside, that `record` came back: from then on it must not be lost."""

    def record(self, trajectory_id: int, backends_id: int, found: Measurement, latent: bytes | None = None) -> None:
        super().record(trajectory_id, backends_id, found, latent)
        line = f"{trajectory_id} {found.steps}\n".encode()
        file = os.open(_told(self.path.parent), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(file, line)  # one write: whole, or not there
        finally:
            os.close(file)


def _told(folder: Path) -> Path:
    return folder / "acknowledged"


def _store(folder: Path) -> Path:
    return folder / "store.sqlite3"


def _calibrate(folder: Path, thoroughness: str, seconds: float = 0.0) -> None:
    """To the end, from wherever it was."""
    with closing(_Acknowledging(_store(folder))) as store:
        executor = stub_executor(StubRenderer(TARGET, seconds))
        spec = Spec(TARGET, thoroughness)
        save: Callable[[Any], tuple[str, str]] = lambda planner: put_planner(folder, planner, NAME)  # noqa: E731
        Job(store, executor, stub_prompts(60), spec, NAME, save, fit_options=FAST).run()


def _content(file: Path) -> Content:
    """Description and tensors of a planner; the file itself may hold them in another order."""
    with safe_open(file, framework="numpy") as opened:
        return opened.metadata(), {key: opened.get_tensor(key).tobytes() for key in sorted(opened.keys())}


@dataclass
class _Tally:
    """What the kills of one kind of work showed."""

    kills: int = 0
    unfinished: int = 0
    """Kills that left the work open."""
    checked: int = 0
    faults: list[str] = field(default_factory=list)

    def expect(self, true: bool, fault: str) -> None:
        self.checked += 1
        if not true:
            self.faults.append(fault)
            log.warning("kills: %s", fault)

    def finding(self, promise: str, what: str, **more: int) -> Finding:
        """what: the sentence, to which the kills are put in front."""
        fault = "" if not self.faults else f" But: {self.faults[0]}."
        figures = {"kills": self.kills, "left_open": self.unfinished, "checks": self.checked, **more}
        return Finding(promise, f"{self.kills} kills {what}{fault}", not self.faults, figures)


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _check_store(folder: Path, tally: _Tally) -> None:
    """It opens without being set aside, holds what was acknowledged, and nothing twice."""
    acknowledged = set()
    if _told(folder).is_file():
        acknowledged = {tuple(map(int, line.split())) for line in _told(folder).read_text().splitlines()}
    if not _store(folder).is_file():
        tally.expect(not acknowledged, "the store was gone")
        return
    with Store.at(_store(folder)) as store:
        tally.expect(store.said is None, "the store was set aside")
    with raw(_store(folder)) as connection:
        rows = connection.execute("SELECT trajectory_id, steps FROM measurements").fetchall()
        twice = connection.execute(
            "SELECT count(*) - count(DISTINCT setting_id || ':' || prompt_id || ':' || seed) FROM trajectories"
        )
        tally.expect(twice.fetchone()[0] == 0, "a trajectory stood twice")
    tally.expect(len(rows) == len(set(rows)), "a count stood twice")
    tally.expect(acknowledged <= set(rows), f"{len(acknowledged - set(rows))} committed counts were lost")


def _killed_calibration(work: Work, kills: int, rng: random.Random) -> Finding:
    whole, killed = work.folder / "whole", work.folder / "calibration"
    _calibrate(_fresh(whole), CALIBRATION)
    expected, tally, runs = (dump(_store(whole)), _content(whole / PLANNER)), _Tally(), 1

    def same() -> None:
        tally.expect((dump(_store(killed)), _content(killed / PLANNER)) == expected, "the result was another")

    _fresh(killed)
    while tally.kills < kills:
        ended = kill_within(lambda: _calibrate(killed, CALIBRATION, RENDER_SECONDS), 0.6, rng)
        tally.kills += ended.killed
        tally.unfinished += ended.killed
        _check_store(killed, tally)
        if not ended.killed:
            same()
            runs += 1
            _fresh(killed)
    _calibrate(killed, CALIBRATION)
    same()
    text = f"during {runs} calibrations of 28 prompts: no committed count lost, none twice, ends as undisturbed."
    return tally.finding("kept", text, calibrations=runs)


def _killed_fit(folder: Path, kills: int, rng: random.Random) -> Finding:
    """Everything in the folder is measured, so what a child does is the fit alone."""
    tally = _Tally()
    expected = dump(_store(folder)), _content(folder / PLANNER)
    seconds = seconds_of(lambda: _calibrate(folder, FIT))
    for _ in range(kills):
        (folder / PLANNER).unlink(missing_ok=True)
        ended = kill_within(lambda: _calibrate(folder, FIT), seconds, rng)
        tally.kills += ended.killed
        tally.unfinished += not (folder / PLANNER).is_file()
        _check_store(folder, tally)
        whole = not (folder / PLANNER).is_file() or _content(folder / PLANNER) == expected[1]
        tally.expect(whole, "a planner was neither whole nor absent")
    (folder / PLANNER).unlink(missing_ok=True)
    _calibrate(folder, FIT)
    tally.expect((dump(_store(folder)), _content(folder / PLANNER)) == expected, "the planner was another")
    text = (
        f"during the fit of networks ({seconds:.1f} s): no half planner, and the next fit gave the same, bit for bit."
    )
    return tally.finding("same", text)


def _killed_replacement(work: Work, kills: int, rng: random.Random) -> Finding:
    """A child puts one planner over the other, again and again."""
    folder, tally = _fresh(work.folder / "replacement"), _Tally()
    _calibrate(folder, CALIBRATION)
    one = load_planner(folder / PLANNER)
    both = [replace(one, provenance={**one.provenance, "made": made}) for made in ("first", "second")]
    known = []
    for planner in both:
        put_planner(folder, planner, NAME)
        known.append(_content(folder / PLANNER))

    def put() -> None:
        for _ in range(100):
            for planner in both:
                put_planner(folder, planner, NAME)

    while tally.kills < kills:
        ended = kill_within(put, 0.2, rng)
        tally.kills += ended.killed
        tally.unfinished += ended.killed
        tally.expect(_content(folder / PLANNER) in known, "a planner was neither the old one nor the new one")
        tally.expect([row.error for row in list_folder(folder)] == [""], "another planner file lay there")
    put_planner(folder, both[0], NAME)
    tally.expect(_content(folder / PLANNER) == known[0], "the next replacement did not work")
    ours = {
        _store(folder).name,
        f"{_store(folder).name}-wal",
        f"{_store(folder).name}-shm",
        _told(folder).name,
        PLANNER,
    }
    left = sorted(file.name for file in folder.iterdir() if file.name not in ours)
    tally.expect(not left, f"{len(left)} files were left over")
    text = "while one planner replaced another: always the old or the new one, whole, and nothing left over."
    return tally.finding("same", text, left_over=len(left))


def _killed_migration(folder: Path, kills: int, rng: random.Random) -> Finding:
    """The folder's store from version 1 to today's; each kill begins with a fresh copy."""
    tally = _Tally()
    old, there = folder / "old.sqlite3", folder / "there.sqlite3"
    make_old(_store(folder), old, 1)
    migrate: Callable[[], None] = lambda: Store.at(there).close()  # noqa: E731

    def begin() -> None:
        for ending in ("", "-wal", "-shm"):
            there.with_name(there.name + ending).unlink(missing_ok=True)
        shutil.copyfile(old, there)

    begin()
    seconds = seconds_of(migrate)
    expected = dump(there)
    for _ in range(kills):
        begin()
        ended = kill_within(migrate, seconds, rng)
        tally.kills += ended.killed
        found = version(there)
        tally.unfinished += found[0] == 1
        tally.expect(found in ((1, "ok"), (version(there.with_name(_store(folder).name))[0], "ok")), f"it was {found}")
        with Store.at(there) as store:
            tally.expect(store.said is None, "the database was set aside")
        tally.expect(dump(there) == expected, "the migrated rows were others")
    text = f"during the migration from version 1 ({1000 * seconds:.0f} ms): old or new, and then as undisturbed."
    return tally.finding("same", text)


def run(work: Work) -> Sequence[Finding]:
    """200 kills in the long amount."""
    torch.set_num_threads(1)
    rng = random.Random(work.seed)
    measured = _fresh(work.folder / "measured")
    _calibrate(measured, FIT)
    return [
        _killed_calibration(work, work.count(quick=4, long=80), rng),
        _killed_fit(measured, work.count(quick=2, long=40), rng),
        _killed_replacement(work, work.count(quick=3, long=40), rng),
        _killed_migration(measured, work.count(quick=3, long=40), rng),
    ]


PART = Part("kills", "Kills at random moments", run)
