"""Part `ray_faults`: calibrations over real Ray workers whose driver and workers are killed, and whose store is locked.

The workers answer as a Calibrate node does, with a renderer that has no host; Ray, the executor, the job and the store
are the real ones. What every run ends with is compared with an undisturbed one in this process.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from budgetfusion_nodes.core.messages import message
from research.options import ROOT

from .part import Finding, NotRunError, Part, Work
from .stub import BACKENDS, SETTING, StubRenderer, stub_executor, stub_prompts

TARGET, NAME = 30, "many"
WORKERS = 3
RENDER_SECONDS = 0.03
PATIENCE = 1800.0
"""Seconds that a driver may take, starting Ray included."""
LOOK_SECONDS = 0.02
SLOW_MACHINE = {"RAY_worker_register_timeout_seconds": "600"}
"""Ray's own limit, for a machine on which other work runs too."""
STARTS = 6
"""Of Ray, which gives up after 30 s: no fault of the pack's."""

Rows = list[tuple[Any, ...]]


def run(work: Work) -> Sequence[Finding]:
    """Kills drivers and workers, and locks the store."""
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise NotRunError("Ray is not installed: requirements/ray.txt.") from error
    rng = random.Random(work.seed)
    whole = _undisturbed(work.folder / "whole")
    return [
        _workers_killed(work, whole, rng),
        _drivers_killed(work, whole, rng),
        _store_locked(work, whole),
    ]


def _undisturbed(folder: Path) -> Rows:
    folder.mkdir()
    calibrate(folder, stub_executor(StubRenderer(TARGET)))
    return rows(folder)


def calibrate(folder: Path, executor: Any) -> None:
    """A job to its end, from wherever it was."""
    from budgetfusion_nodes.calibration.job import Job
    from budgetfusion_nodes.calibration.planner_folder import put_planner
    from budgetfusion_nodes.calibration.spec import Spec
    from budgetfusion_nodes.calibration.store import Store

    with Store.at(folder / "store.sqlite3") as store:
        save: Callable[[Any], tuple[str, str]] = lambda planner: put_planner(folder, planner, NAME)  # noqa: E731
        Job(store, executor, stub_prompts(60), Spec(TARGET, "quick"), NAME, save).run()


def rows(folder: Path) -> Rows:
    """Every measurement with what it is of, sorted; the order in which workers came back is left out."""
    query = (
        "SELECT s.digest, p.digest, t.seed, b.names, m.steps, m.distances, m.l_snr FROM measurements m "
        "JOIN trajectories t ON t.id = m.trajectory_id JOIN prompts p ON p.id = t.prompt_id "
        "JOIN settings s ON s.id = t.setting_id JOIN backends b ON b.id = m.backends_id"
    )
    path = folder / "store.sqlite3"
    if not path.is_file():
        return []
    with closing(sqlite3.connect(path)) as connection:
        return sorted(connection.execute(query).fetchall())


def counted(folder: Path) -> int:
    """How many counts are kept; 0 before there is a store."""
    try:
        return len(rows(folder))
    except sqlite3.Error:  # the tables are being made
        return 0


# ----------------------------------------------------------------------------------------------------- disturbances


def _workers_killed(work: Work, whole: Rows, rng: random.Random) -> Finding:
    folder = _fresh(work, "workers")
    wanted = work.count(quick=1, long=8)
    apart = (len(whole) - 20) // wanted  # a trajectory that takes two workers down is set aside
    moments = [1 + place * apart + rng.randrange(3) for place in range(wanted)]
    killed: set[int] = set()
    with closing(_driver(folder)) as driver:
        for moment in moments:
            _until(driver, lambda moment=moment: counted(folder) >= moment)
            _until(driver, lambda: bool(_alive(folder) - killed))
            pid = rng.choice(sorted(_alive(folder) - killed))
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        status = driver.wait()
    what = f"{len(killed)} workers killed at work"
    return _finding(
        what, folder, whole, status == 0, {"killed": len(killed), "replaced": driver.told().get("deaths", -1)}
    )


def _drivers_killed(work: Work, whole: Rows, rng: random.Random) -> Finding:
    folder = _fresh(work, "drivers")
    wanted = work.count(quick=1, long=5)
    moments = sorted(rng.sample(range(1, len(whole) - 20), wanted))
    for moment in moments:
        with closing(_driver(folder)) as driver:
            _until(driver, lambda moment=moment: counted(folder) >= moment)
            driver.kill()
    with closing(_driver(folder)) as driver:
        status = driver.wait()
    left = len(whole) - moments[-1]
    fresh = driver.told().get("renders", -1)
    return _finding(
        f"{wanted} drivers killed at work", folder, whole, status == 0, {"rendered at last": fresh, "left": left}
    )


def _store_locked(work: Work, whole: Rows) -> Finding:
    folder = _fresh(work, "locked")
    with closing(_driver(folder, "1.0")) as driver:
        _until(driver, lambda: counted(folder) > 5)
        with closing(sqlite3.connect(folder / "store.sqlite3", timeout=60.0)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            held = len(holder.execute("SELECT 1 FROM measurements").fetchall())
            status, reason = driver.wait(), driver.told().get("error", "")
            holder.rollback()
    said = status != 0 and message("store_locked").text() in reason
    with closing(_driver(folder)) as driver:
        again = driver.wait()
    figures = {"kept when it was locked": held, "said": reason[:120]}
    return _finding("a locked store ends a run with a sentence", folder, whole, said and again == 0, figures)


def _fresh(work: Work, name: str) -> Path:
    folder = work.folder / name
    folder.mkdir()
    return folder


def _finding(what: str, folder: Path, whole: Rows, ended: bool, figures: dict[str, Any]) -> Finding:
    found = rows(folder)
    double = len(found) - len({row[:5] for row in found})
    lacking = len(set(whole) - set(found))
    more = len(set(found) - set(whole))
    text = (
        f"{what}: {len(found)} of {len(whole)} counts are kept, {double} twice, {lacking} missing, {more} that no "
        "undisturbed run has"
    )
    held = ended and not (double or lacking or more)
    return Finding("once", text, held, {**figures, "kept": len(found), "twice": double, "missing": lacking})


def _alive(folder: Path) -> set[int]:
    """Workers that said they are at work, and have not ended."""
    found = {int(path.name) for path in folder.glob("workers/*")}
    return {pid for pid in found if (Path("/proc") / str(pid) / "stat").exists()}


def _until(driver: _Driver, happened: Callable[[], bool]) -> None:
    """Waits for something that the driver's work brings about. RuntimeError where it ends before."""
    end = time.monotonic() + PATIENCE
    while not happened():
        if driver.process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the driver ended too early: {driver.told()} {driver.errors()}")
        time.sleep(LOOK_SECONDS)


class _Driver:
    """A process that leads a calibration; with Ray it is a group of its own, which ends with it."""

    def __init__(self, folder: Path, busy: str) -> None:
        self.folder = folder
        self._errors = (folder / "errors").open("w+")
        own = [sys.executable, "-m", "research.campaign.ray_faults", str(folder), busy]
        (folder / "told.json").unlink(missing_ok=True)
        self.process = subprocess.Popen(
            own,
            cwd=ROOT,
            stdout=self._errors,
            stderr=self._errors,
            start_new_session=True,
            env={**os.environ, **SLOW_MACHINE},
        )

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)  # the driver alone: what Ray started is Ray's to end
        self.process.wait()

    def told(self) -> dict[str, Any]:
        path = self.folder / "told.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def errors(self) -> str:
        return (self.folder / "errors").read_text()[-800:]

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the group that this part started, and nothing else
        self._errors.close()


def _driver(folder: Path, busy: str = "60.0") -> _Driver:
    return _Driver(folder, busy)


# ------------------------------------------------------------------------------------------------- in the own process


class StubWorker:
    """In the place of ray_worker.Worker: answers a Calibrate node's tasks without a host."""

    def __init__(self, folder: str) -> None:
        own = Path(folder) / "workers" / str(os.getpid())
        own.parent.mkdir(exist_ok=True)
        own.touch()
        self._executor = stub_executor(StubRenderer(TARGET, RENDER_SECONDS))

    def where(self) -> str:
        return str(os.getpid())

    def close(self) -> None:
        """Nothing was started."""

    def ask(self, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
        from budgetfusion_nodes.calibration import wire
        from budgetfusion_nodes.calibration.leading import Asked
        from budgetfusion_nodes.calibration.spec import Spec

        if task["kind"] == wire.DESCRIBE:
            asked = Asked(Spec(TARGET, "quick"), NAME, tuple(stub_prompts(60)))
            yield wire.Described(self._executor.subject, BACKENDS, asked).to_json()
        elif task["kind"] == wire.ENCODE:
            yield wire.encoded_to_json(self._executor.encode(task["text"]))
        else:
            for _, event in self._executor.run([wire.work_from_json(task)]):
                yield wire.event_to_json(event)


def _lead(folder: Path, busy: float) -> dict[str, Any]:
    from budgetfusion_nodes.calibration import store_file
    from budgetfusion_nodes.command_line.ray_executor import RayExecutor

    store_file.BUSY_SECONDS = busy
    before = counted(folder)
    ray, workers, takes = _started()
    actor = ray.remote(StubWorker).options(num_cpus=1)
    try:
        with RayExecutor(ray, workers, takes, lambda _: actor.remote(str(folder))) as executor:
            assert executor.subject.setting == SETTING
            calibrate(folder, executor)
            return {"deaths": executor.deaths, "renders": counted(folder) - before}
    finally:
        ray.shutdown()


def _started() -> tuple[Any, int, dict[str, Any]]:
    from budgetfusion_nodes.command_line.comfyui import ServerError
    from budgetfusion_nodes.command_line.ray_executor import connect

    for _ in range(STARTS - 1):
        with suppress(ServerError):
            return connect("local", WORKERS)
        importlib.import_module("ray").shutdown()
    return connect("local", WORKERS)


def _main(folder: Path, busy: float) -> int:
    try:
        told, status = _lead(folder, busy), 0
    except Exception as error:
        told, status = {"error": f"{type(error).__name__}: {error}"}, 1
    (folder / "told.json").write_text(json.dumps(told))
    return status


PART = Part("ray_faults", "Many workers", run)

if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), float(sys.argv[2])))
