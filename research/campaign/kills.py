"""kill -9 at random moments of a calibration, a search for a schedule, a fit, a planner's replacement, a migration."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from budgetfusion_nodes.calibration.planner_folder import list_folder, put_planner
from budgetfusion_nodes.calibration.store import Store
from budgetfusion_nodes.calibration.store_file import COMPANIONS
from budgetfusion_nodes.predictor.planner_file import load_planner

from .calibrating import (
    CALIBRATION,
    FIT,
    NAME,
    PLANNER,
    RENDER_SECONDS,
    Tally,
    calibrate,
    calibrate_nested,
    check_store,
    content,
    fresh,
    store_file,
)
from .killing import kill_within, seconds_of
from .old_store import dump, make_old, version
from .part import Finding, Part, Work


@dataclass
class _Kills(Tally):
    """Of one kind of work."""

    kills: int = 0
    unfinished: int = 0
    """Kills that left the work open."""

    def told(self, promise: str, what: str, **more: int) -> Finding:
        """what: the sentence, to which the kills are put in front."""
        return self.finding(promise, f"{self.kills} kills {what}", kills=self.kills, left_open=self.unfinished, **more)


def _killed_calibration(work: Work, kills: int, rng: random.Random) -> Finding:
    """With the search for its schedule. A kill comes within a third of the time that the whole takes: after each one
    it goes on, so they fall everywhere."""
    whole, killed = fresh(work.folder / "whole"), work.folder / "calibration"
    seconds = seconds_of(lambda: calibrate_nested(whole, RENDER_SECONDS))
    expected, tally, runs, searching = (dump(store_file(whole)), content(whole / PLANNER)), _Kills(), 1, 0

    def same() -> None:
        tally.expect((dump(store_file(killed)), content(killed / PLANNER)) == expected, "the result was another")

    fresh(killed)
    while tally.kills < kills:
        ended = kill_within(lambda: calibrate_nested(killed, RENDER_SECONDS), seconds / 3, rng)
        tally.kills += ended.killed
        tally.unfinished += ended.killed
        check_store(killed, tally)
        searching += ended.killed and not (store_file(killed).is_file() and dump(store_file(killed))["found_schedules"])
        if not ended.killed:
            same()
            runs += 1
            fresh(killed)
    calibrate_nested(killed)
    same()
    text = (
        f"during {runs} calibrations of 28 prompts, {searching} of them in the search for a nested schedule: no "
        "committed picture or count lost, none twice, ends with the same schedule and planner as undisturbed."
    )
    return tally.told("kept", text, calibrations=runs, in_the_search=searching)


def _killed_fit(folder: Path, kills: int, rng: random.Random) -> Finding:
    """Everything in the folder is measured, so what a child does is the fit alone."""
    tally = _Kills()
    expected = dump(store_file(folder)), content(folder / PLANNER)
    seconds = seconds_of(lambda: calibrate(folder, FIT))
    while tally.kills < kills:
        (folder / PLANNER).unlink(missing_ok=True)
        ended = kill_within(lambda: calibrate(folder, FIT), seconds, rng)
        tally.kills += ended.killed
        tally.unfinished += not (folder / PLANNER).is_file()
        check_store(folder, tally)
        whole = not (folder / PLANNER).is_file() or content(folder / PLANNER) == expected[1]
        tally.expect(whole, "a planner was neither whole nor absent")
    (folder / PLANNER).unlink(missing_ok=True)
    calibrate(folder, FIT)
    tally.expect((dump(store_file(folder)), content(folder / PLANNER)) == expected, "the planner was another")
    text = (
        f"during the fit of networks ({seconds:.1f} s): no half planner, and the next fit gave the same, bit for bit."
    )
    return tally.told("same", text)


def _killed_replacement(work: Work, kills: int, rng: random.Random) -> Finding:
    """A child puts one planner over the other, again and again."""
    folder, tally = fresh(work.folder / "replacement"), _Kills()
    calibrate(folder, CALIBRATION)
    one = load_planner(folder / PLANNER)
    both = [replace(one, provenance={**one.provenance, "made": made}) for made in ("first", "second")]
    known = []
    for planner in both:
        put_planner(folder, planner, NAME)
        known.append(content(folder / PLANNER))

    def put() -> None:
        for _ in range(100):
            for planner in both:
                put_planner(folder, planner, NAME)

    while tally.kills < kills:
        ended = kill_within(put, 0.2, rng)
        tally.kills += ended.killed
        tally.unfinished += ended.killed
        tally.expect(content(folder / PLANNER) in known, "a planner was neither the old one nor the new one")
        tally.expect([row.error for row in list_folder(folder)] == [""], "another planner file lay there")
    left = _drafts(folder)
    for draft in left:
        os.utime(draft, (0.0, 0.0))  # as if it had lain there for long
    put_planner(folder, both[0], NAME)
    tally.expect(content(folder / PLANNER) == known[0], "the next replacement did not work")
    tally.expect(not _drafts(folder), "drafts that killed processes left were not taken away")
    text = "while one planner replaced another: always the old or the new one, whole; drafts are cleared later."
    return tally.told("same", text, drafts_left=len(left))


def _drafts(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.name.startswith(".")]


def _killed_migration(folder: Path, kills: int, rng: random.Random) -> Finding:
    """The folder's store from version 1 to today's; each kill begins with a fresh copy."""
    tally = _Kills()
    old, there = folder / "old.sqlite3", folder / "there.sqlite3"
    make_old(store_file(folder), old, 1)
    migrate: Callable[[], None] = lambda: Store.at(there).close()  # noqa: E731

    def begin() -> None:
        for ending in COMPANIONS:
            there.with_name(there.name + ending).unlink(missing_ok=True)
        shutil.copyfile(old, there)

    begin()
    seconds = seconds_of(migrate)
    expected = dump(there)
    while tally.kills < kills:
        begin()
        ended = kill_within(migrate, seconds, rng)
        tally.kills += ended.killed
        found = version(there)
        tally.unfinished += found[0] == 1
        tally.expect(
            found in ((1, "ok"), (version(there.with_name(store_file(folder).name))[0], "ok")), f"it was {found}"
        )
        with Store.at(there) as store:
            tally.expect(store.said is None, "the database was set aside")
        tally.expect(dump(there) == expected, "the migrated rows were others")
    text = f"during the migration from version 1 ({1000 * seconds:.0f} ms): old or new, and then as undisturbed."
    return tally.told("same", text)


def run(work: Work) -> Sequence[Finding]:
    """200 kills in the long amount."""
    torch.set_num_threads(1)
    rng = random.Random(work.seed)
    measured = fresh(work.folder / "measured")
    calibrate(measured, FIT)
    return [
        _killed_calibration(work, work.count(quick=4, long=80), rng),
        _killed_fit(measured, work.count(quick=2, long=40), rng),
        _killed_replacement(work, work.count(quick=3, long=40), rng),
        _killed_migration(measured, work.count(quick=3, long=40), rng),
    ]


PART = Part("kills", "Kills at random moments", run)
