"""Leads one calibration: a job over an executor, the store and a planner folder, and what is said in the end.

Knows no host, so the process that leads may be ComfyUI itself or a shell command whose renders are made elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.messages import Message
from ..core.schedule import STOCK
from .count_job import run_count_job
from .executors import Executor
from .falling import run_to_best
from .job import Job, Progress
from .planner_folder import put_planner
from .prompts import CalibrationPrompt
from .report import draw, draw_levels, draw_pairs, report_dict, report_messages
from .spec import Spec
from .store import Store


@dataclass(frozen=True)
class Asked:
    """What the artist set on the node."""

    spec: Spec
    name: str
    prompts: Sequence[CalibrationPrompt] = field(default_factory=tuple)
    schedule: str = STOCK
    """`nested`: look for one; `stock`; or a nested one as a Setting holds it."""


@dataclass(frozen=True)
class Searched:
    """What the search for a nested schedule gives the report; empty where none was made."""

    said: Sequence[Message] = ()
    pairs: Sequence[tuple[bytes, bytes]] = ()
    """PNG of the stock target beside that of the nested one."""
    tables: Mapping[str, Any] = field(default_factory=dict)
    """For the planner's provenance; JSON-safe."""


@dataclass(frozen=True)
class Result:
    """What the node gives."""

    name: str
    text: str
    picture: Tensor
    """IMAGE [B, 480, 960, 3]: the curves, and up to ten pairs of pictures where a nested schedule was found."""
    shown: dict[str, Any]
    """For the page."""


def lead(
    store_path: Path,
    executor: Executor,
    asked: Asked,
    folder: Path,
    listen: Callable[[Progress], None],
    searched: Searched | None = None,
) -> Result:
    """Runs the job to its end and saves its planner in `folder`. InputError, StoreError and CalibrationError say what
    is wrong and what to do; whatever happens, what was measured is kept."""
    searched = searched or Searched()
    with Store.at(store_path) as store:
        job = Job(
            store,
            executor,
            asked.prompts,
            asked.spec,
            asked.name,
            lambda planner: put_planner(folder, planner, asked.name),
            listen,
            said=dict(searched.tables),
        )
        result = _of_levels(job) if asked.spec.levels_only else _of_curves(job, searched)
        if store.said is not None:
            result = replace(result, text=f"{store.said.text()}\n{result.text}")
    return result


def _of_curves(job: Job, searched: Searched) -> Result:
    outcome = run_to_best(job)
    told = [*report_messages(outcome), *searched.said]
    pictures = [draw(outcome.standing, outcome.fall), *([draw_pairs(searched.pairs)] if searched.pairs else [])]
    text, shown = "\n".join(one.text() for one in told), report_dict(outcome)
    shown["messages"] = [one.to_dict() for one in told]
    return Result(outcome.file, text, torch.cat(pictures), shown)


def _of_levels(job: Job) -> Result:
    outcome = run_count_job(job)
    text = "\n".join(one.text() for one in outcome.messages())
    return Result(outcome.file, text, draw_levels(outcome.planner), outcome.to_dict())
