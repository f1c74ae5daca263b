"""Two ComfyUI servers and a shell on one store: no lost row, no deadlock, bounded waits."""

from __future__ import annotations

import contextlib
import io
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from budgetfusion_nodes.calibration.executors import InlineExecutor
from budgetfusion_nodes.calibration.job import Job
from budgetfusion_nodes.calibration.planner_folder import put_planner
from budgetfusion_nodes.calibration.records import Subject
from budgetfusion_nodes.calibration.spec import Spec
from budgetfusion_nodes.calibration.store import Store
from budgetfusion_nodes.calibration.store_file import StoreError
from budgetfusion_nodes.cli import main as shell

from .killing import forked
from .part import QUICK, Finding, Part, Work
from .sharing import FORGOTTEN, LASTING, SHORT_LIVED, Shell, findings, watched
from .stub import BACKENDS, SETTING, StubRenderer, stub_prompts
from .two_hosts import run_servers
from .watching import Watch


def _calibrating(store_path: Path, seed: int, seconds: float) -> None:
    """A child: calibrates one setting after the other with a renderer without a host."""
    torch.set_num_threads(1)
    rng, until, number = random.Random(seed), time.monotonic() + seconds, 0
    folder = store_path.parent / "planners"
    while time.monotonic() < until:
        cfg, number = rng.choice((SHORT_LIVED, *LASTING)), number + 1
        with Store.at(store_path) as store, contextlib.suppress(_Forgotten):
            subject = Subject(replace(SETTING, cfg=cfg), 8)
            executor = InlineExecutor(StubRenderer(8, 0.001), subject, BACKENDS)
            save = lambda planner, cfg=cfg: put_planner(folder, planner, f"cfg {cfg}")  # noqa: E731
            prompts = stub_prompts(60)[: 10 + number]
            _telling(Job(store, executor, prompts, Spec(8), f"cfg {cfg}", save))


class _Forgotten(Exception):
    """The setting was deleted under the calibration, and the sentence said so."""


def _telling(job: Job) -> None:
    try:
        job.run()
    except StoreError as error:
        if FORGOTTEN not in str(error):
            raise
        raise _Forgotten from error


def _called(store: Path, folder: Path, *arguments: str) -> int:
    """A shell command in this process."""
    where = ["--store", str(store)] if arguments[0] == "store" else ["--folder", str(folder)]
    with contextlib.redirect_stdout(io.StringIO()):
        return shell([*arguments, *where])


def run_processes(work: Work, seconds: float) -> list[Finding]:
    """Two plain processes in place of servers, and the shell's commands in this one."""
    path = work.folder / "calibration.sqlite3"
    Store.at(path).close()
    children = [forked(lambda n=n: _calibrating(path, work.seed + n, seconds)) for n in range(2)]
    watch = Watch(path)
    typed = Shell(watch, lambda *arguments: _called(path, path.parent / "planners", *arguments), work.folder, work.seed)
    watched(watch, typed, seconds, 0.3)
    faults = []
    for child, _ in children:
        child.join(60.0)
        if child.exitcode is None:
            child.kill()
        if child.exitcode != 0:
            faults.append(f"a calibrating process ended with status {child.exitcode}")
    watch.look()
    return findings(watch, typed, f"Two processes and a shell for {seconds:.0f} s", faults)


def run(work: Work) -> Sequence[Finding]:
    """quick: two plain processes for a few seconds; long: two servers for half an hour."""
    return run_processes(work, 4.0) if work.amount == QUICK else run_servers(work, 1800.0)


PART = Part("two_servers", "Two servers and a shell on one store", run)
