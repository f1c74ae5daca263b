"""One count for all prompts of a sampler that does not settle: the job's own renders, decided without a reference."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.messages import Message, message
from ..core.no_reference import FEWEST_PICTURES, decide_level, level_intervals, steady_from
from ..predictor.count_planner import BEST, STEADY, CountPlanner, Level
from ..predictor.dataset import SweepDataset
from .job import CalibrationError, Job, Progress
from .store import KeptPlanner

METRIC = "l_snr"


@dataclass(frozen=True)
class CountOutcome:
    """What a finished job gave."""

    planner: CountPlanner
    file: str
    progress: Progress

    def messages(self) -> tuple[Message, ...]:
        """The report, one sentence after the other."""
        planner = self.planner
        levels = ", ".join(
            f"{n}: {one.mean:.2f} ({one.low:.2f} to {one.high:.2f})"
            for n, one in zip(planner.grid, planner.levels, strict=True)
        )
        return (
            message("calibrate_done", file=self.file, setting=planner.setting.describe()),
            planner.said(),
            message("calibrate_levels", metric=METRIC, levels=levels),
            message("calibrate_measured_with", metric=METRIC, backend=planner.backends[METRIC]),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe, for the page."""
        return {
            "messages": [one.to_dict() for one in self.messages()],
            "file": self.file,
            "prompts": self.progress.prompts,
            "wanted": self.progress.wanted,
            "counts": list(self.planner.grid),
            "levels": [one.mean for one in self.planner.levels],
        }


def run_count_job(job: Job) -> CountOutcome:
    """Renders what is open, decides and saves. CalibrationError where too few prompts were measured or no level holds.

    job: its spec has levels_only, so that every count is rendered and no curves are fitted.
    """
    job.measure()
    data = job.dataset()
    prompts = 0 if data is None else len(data.prompts)
    if data is None or prompts < FEWEST_PICTURES:
        raise CalibrationError(message("calibrate_too_few", prompts=prompts, least=FEWEST_PICTURES))
    planner = decide_count(data, job.name, job.provenance())
    if planner is None:
        values = {"sampler": data.setting.sampler_name, "prompts": prompts, "target": data.grid[-1]}
        raise CalibrationError(message("calibrate_no_level", **values))
    file, digest = job.save(planner)
    if file:
        figures = {"predictor": "count", "count": planner.count, "why": planner.why}
        job.record(KeptPlanner(file, digest, prompts, figures, time.time()))
    return CountOutcome(planner, file, job.progress())


def prompt_levels(data: SweepDataset) -> NDArray[np.float64]:
    """[N, K] dB: L-SNR of each prompt, the mean over its seeds."""
    return np.nanmean(data.l_snr.astype(np.float64), axis=1)


def decide_count(data: SweepDataset, name: str, provenance: dict[str, Any]) -> CountPlanner | None:
    """The least count from which on the level stays; else the best where more steps lower it for real; else None."""
    levels = prompt_levels(data)
    steady, decision = steady_from(data.grid, levels), decide_level(data.grid, levels)
    if steady is None and not decision.falls_after_best:
        return None
    return CountPlanner(
        name=name,
        setting=data.setting,
        count=decision.best if steady is None else steady,
        grid=data.grid,
        levels=tuple(Level(*one) for one in level_intervals(levels)),
        metrics=(METRIC,),
        backends={METRIC: data.backends[METRIC]},
        prompts=len(levels),
        why=BEST if steady is None else STEADY,
        provenance=provenance,
    )


def fall(data: SweepDataset) -> Message | None:
    """What to say of a sampler that settles where the level falls for real after its best count; None where not.

    No target is moved for it: L-SNR alone is no proof, a smooth unfinished picture may have more of it (`falling` moves
    it where the CLIP score says so). The artist compares, and a calibration with max_steps at that count plans no
    further.
    """
    if len(data.prompts) < FEWEST_PICTURES or METRIC not in data.backends:
        return None
    found = decide_level(data.grid, prompt_levels(data))
    if not found.falls_after_best:
        return None
    drop = max(found.level) - found.level[-1]
    return message("calibrate_falls", metric=METRIC, best=found.best, target=data.grid[-1], drop=f"{drop:.2f}")
