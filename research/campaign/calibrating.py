"""Calibrations without a host that say what they have committed, and the checks of what they left."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from budgetfusion_nodes.calibration.executors import InlineExecutor
from budgetfusion_nodes.calibration.job import Job
from budgetfusion_nodes.calibration.planner_folder import put_planner
from budgetfusion_nodes.calibration.records import Measurement, Subject
from budgetfusion_nodes.calibration.search_stage import ScheduleSearch, settled
from budgetfusion_nodes.calibration.search_store import Look, SearchStore
from budgetfusion_nodes.calibration.spec import Spec
from budgetfusion_nodes.calibration.store import Store
from budgetfusion_nodes.core.schedule import NestedSchedule
from budgetfusion_nodes.predictor.fit import FitOptions

from .old_store import raw
from .part import Finding
from .stub import BACKENDS, SETTING, StubLooker, StubRenderer, stub_executor, stub_prompts

log = logging.getLogger(__name__)

TARGET, NAME = 30, "stub"
PLANNER = f"{NAME}.safetensors"
CALIBRATION, FIT = "quick", "standard"
"""Words of thoroughness: the first ends with a mean curve, the second compares it with networks."""
FAST = FitOptions(networks=2, epochs=20, patience=5)
SEARCHED = 8
"""Prompts of a search, the least that it takes."""
RENDER_SECONDS = 0.002
Content = tuple[Any, dict[str, bytes]]


class Acknowledging(Store):
    """Says of each count, in a file beside, that `record` came back: from then on it must not be lost."""

    def record(self, trajectory_id: int, backends_id: int, found: Measurement, latent: bytes | None = None) -> None:
        super().record(trajectory_id, backends_id, found, latent)
        _acknowledge(self.path.parent, f"{trajectory_id} {found.steps}")


class AcknowledgingSearch(SearchStore):
    """The same of each picture of a search. folder: of the store."""

    folder: Path

    def record(self, prompt_id: int, seed: int, run: str, look: Look) -> None:
        super().record(prompt_id, seed, run, look)
        _acknowledge(self.folder, f"{prompt_id} {seed} {run}")


def _acknowledge(folder: Path, line: str) -> None:
    file = os.open(told_file(folder), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, f"{line}\n".encode())  # one write: whole, or not there
    finally:
        os.close(file)


def told_file(folder: Path) -> Path:
    """Beside the folder, which may be a disk of its own."""
    return folder.with_name(f"{folder.name}.acknowledged")


def store_file(folder: Path) -> Path:
    """Where `calibrate` keeps what it measures."""
    return folder / "store.sqlite3"


def calibrate(folder: Path, thoroughness: str, seconds: float = 0.0) -> None:
    """To the end, from wherever it was."""
    with closing(Acknowledging(store_file(folder))) as store:
        _run_job(store, stub_executor(StubRenderer(TARGET, seconds)), Spec(TARGET, thoroughness), {})


def calibrate_nested(folder: Path, seconds: float = 0.0) -> None:
    """The same with a search for a nested schedule before it."""
    with closing(Acknowledging(store_file(folder))) as store:
        renderer, subject = StubRenderer(TARGET, seconds), Subject(SETTING, TARGET)
        kept = AcknowledgingSearch(store, store.setting_id(subject), store.backends_id(BACKENDS))
        kept.folder = folder
        found = kept.found()
        if found is None or not settled(found, SEARCHED):
            prompts = stub_prompts(60)[-SEARCHED:]
            rows = [(store.prompt_id(renderer.encode(one.text), one.category), one) for one in prompts]
            found = ScheduleSearch(kept, StubLooker(1.2, 5, seconds=seconds), rows, 1, TARGET).run()
        nested = NestedSchedule.from_text(found.schedule)
        assert nested is not None, "these pictures have a nested schedule"
        spec = Spec(TARGET, CALIBRATION, prefix_steps=nested.prefix_steps)
        along = replace(subject, setting=replace(SETTING, schedule=found.schedule))
        _run_job(store, InlineExecutor(renderer, along, BACKENDS), spec, {"search": dict(found.tables)})


def _run_job(store: Store, executor: InlineExecutor, spec: Spec, said: dict[str, Any]) -> None:
    folder = store.path.parent
    save: Callable[[Any], tuple[str, str]] = lambda planner: put_planner(folder, planner, NAME)  # noqa: E731
    Job(store, executor, stub_prompts(60), spec, NAME, save, fit_options=FAST, said=said).run()


def content(file: Path) -> Content:
    """Description and tensors of a planner; the file itself may hold them in another order."""
    with safe_open(file, framework="numpy") as opened:
        return opened.metadata(), {key: opened.get_tensor(key).tobytes() for key in sorted(opened.keys())}


@dataclass
class Tally:
    """What was looked at, and what was not as promised."""

    checked: int = 0
    faults: list[str] = field(default_factory=list)

    def expect(self, true: bool, fault: str) -> None:
        self.checked += 1
        if not true:
            self.faults.append(fault)
            log.warning("%s", fault)

    def finding(self, promise: str, what: str, **figures: float | int | str) -> Finding:
        """what: the sentence where all held; the first fault is put behind it."""
        fault = "" if not self.faults else f" But: {self.faults[0]}."
        return Finding(promise, what + fault, not self.faults, {**figures, "checks": self.checked})


def fresh(folder: Path) -> Path:
    """The folder, empty."""
    told_file(folder).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def check_store(folder: Path, tally: Tally) -> None:
    """It opens without being set aside, holds what was acknowledged, and nothing twice."""
    acknowledged = set(told_file(folder).read_text().splitlines() if told_file(folder).is_file() else ())
    if not store_file(folder).is_file():
        tally.expect(not acknowledged, "the store was gone")
        return
    with Store.at(store_file(folder)) as store:
        tally.expect(store.said is None, "the store was set aside")
    with raw(store_file(folder)) as connection:
        rows = connection.execute("SELECT trajectory_id || ' ' || steps FROM measurements").fetchall()
        rows += connection.execute("SELECT prompt_id || ' ' || seed || ' ' || run FROM search_looks").fetchall()
        twice = connection.execute(
            "SELECT count(*) - count(DISTINCT setting_id || ':' || prompt_id || ':' || seed) FROM trajectories"
        )
        tally.expect(twice.fetchone()[0] == 0, "a trajectory stood twice")
    tally.expect(len(rows) == len(set(rows)), "a count stood twice")
    lost = acknowledged - {row for (row,) in rows}
    tally.expect(not lost, f"{len(lost)} committed counts were lost")
