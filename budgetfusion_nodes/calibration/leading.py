"""Leads one calibration: a job over an executor, the store and a planner folder, and what is said in the end.

Knows no host, so the process that leads may be ComfyUI itself or a shell command whose renders are made elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.schedule import STOCK
from .count_job import run_count_job
from .executors import Executor
from .job import Job, Progress
from .planner_folder import put_planner
from .prompts import CalibrationPrompt
from .report import draw, draw_levels, report_dict, report_text
from .spec import Spec
from .store import Store


@dataclass(frozen=True)
class Asked:
    """What the artist set on the node."""

    spec: Spec
    name: str
    prompts: Sequence[CalibrationPrompt] = field(default_factory=tuple)
    schedule: str = STOCK
    """`stock`, or a nested one as a Setting holds it."""


@dataclass(frozen=True)
class Result:
    """What the node gives."""

    name: str
    text: str
    picture: Tensor
    """IMAGE [1, H, W, 3]."""
    shown: dict[str, Any]
    """For the page."""


def lead(
    store_path: Path, executor: Executor, asked: Asked, folder: Path, listen: Callable[[Progress], None]
) -> Result:
    """Runs the job to its end and saves its planner in `folder`. InputError, StoreError and CalibrationError say what
    is wrong and what to do; whatever happens, what was measured is kept."""
    with Store.at(store_path) as store:
        job = Job(
            store,
            executor,
            asked.prompts,
            asked.spec,
            asked.name,
            lambda planner: put_planner(folder, planner, asked.name),
            listen,
        )
        result = _of_levels(job) if asked.spec.levels_only else _of_curves(job)
        if store.said is not None:
            result = replace(result, text=f"{store.said.text()}\n{result.text}")
    return result


def _of_curves(job: Job) -> Result:
    outcome = job.run()
    return Result(outcome.file, report_text(outcome), draw(outcome.standing), report_dict(outcome))


def _of_levels(job: Job) -> Result:
    outcome = run_count_job(job)
    text = "\n".join(one.text() for one in outcome.messages())
    return Result(outcome.file, text, draw_levels(outcome.planner), outcome.to_dict())
