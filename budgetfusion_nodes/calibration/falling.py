"""Models that get worse with more steps: found in the calibration's own renders, and planned at the best count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..core.curves import FloatArray
from ..core.errors import InputError
from ..core.no_reference import Fall, find_fall
from ..metrics.clip_score import NAME as CLIP_SCORE
from .executors import Executor
from .job import Job, Outcome
from .records import Encoded, Measurement, Subject
from .trajectory import Event, Work, next_count


@dataclass(frozen=True)
class AtTarget:
    """An executor whose reference is the picture at another count."""

    executor: Executor
    target: int

    @property
    def subject(self) -> Subject:
        return replace(self.executor.subject, target=self.target)

    @property
    def backends(self) -> Mapping[str, str]:
        return self.executor.backends

    def encode(self, text: str) -> Encoded:
        return self.executor.encode(text)

    def run(self, works: Iterable[Work]) -> Iterator[tuple[Work, Event]]:
        return self.executor.run(works)


def run_to_best(job: Job) -> Outcome:
    """`job.run()`; where its renders get worse after some count, the same again with that count as target.

    The second job replaces the first one's planner. What both render is in the store: queueing again renders nothing.
    """
    outcome = job.run()
    found = _fall_of(job)
    if found is None:
        return outcome
    spec = replace(job.spec, target=found.best)
    try:
        _ = spec.grid
    except InputError:  # nothing can be planned below so small a count: the report says the fall, the target stays
        return outcome
    again = Job(
        job.store,
        AtTarget(job.executor, found.best),
        job.prompts,
        spec,
        job.name,
        job.save,
        job.listen,
        job.fit_options,
        {**job.said, "fall": asdict(found)},
    )
    return replace(again.run(), fall=found)


def _fall_of(job: Job) -> Fall | None:
    counts, levels = job_levels(job)
    return find_fall(counts, levels[CLIP_SCORE], levels["l_snr"]) if CLIP_SCORE in levels else None


def job_levels(job: Job) -> tuple[tuple[int, ...], dict[str, FloatArray]]:
    """(counts [K], metric -> levels [N, K] without a reference): the mean over each finished prompt's seeds. A metric
    is there if every render has it. A count that was left out lies on the line, in log n, between its neighbours."""
    grid, rows = job.spec.grid, job.measured()
    by_prompt: dict[int, list[Mapping[int, Measurement]]] = {}
    for (prompt, _), known in rows.items():
        if next_count(grid, known, job.spec.amount.tolerance) is None:
            by_prompt.setdefault(prompt, []).append(known)
    trajectories = [known for listed in by_prompt.values() for known in listed]
    found: dict[str, FloatArray] = {}
    if trajectories:
        found["l_snr"] = _levels(grid, by_prompt.values(), lambda one: one.l_snr)
        if all(CLIP_SCORE in one.distances for known in trajectories for one in known.values()):
            found[CLIP_SCORE] = _levels(grid, by_prompt.values(), lambda one: one.distances[CLIP_SCORE])
    return grid, found


def _levels(grid: tuple[int, ...], prompts: Iterable[list[Mapping[int, Measurement]]], level: Any) -> FloatArray:
    wanted = np.log(np.array(grid, float))

    def line(known: Mapping[int, Measurement]) -> FloatArray:
        counts = sorted(known)
        return np.interp(wanted, np.log(np.array(counts, float)), [level(known[n]) for n in counts])

    return np.array([np.mean([line(known) for known in listed], axis=0) for listed in prompts])
