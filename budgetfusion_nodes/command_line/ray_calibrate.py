"""`calibrate --ray`: leads a calibration whose trajectories are rendered by many ComfyUIs.

This process alone writes, into the store and the planner folder of the ComfyUI around the pack; ended at any moment, it
goes on when it is started again.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..calibration.job import Progress
from ..calibration.leading import Result, lead
from .comfyui import ComfyUI
from .ray_executor import RayExecutor, connect


@dataclass(frozen=True)
class Throughput:
    """What a run rendered."""

    workers: int
    replaced: int
    """Workers that died and were replaced."""
    renders: int
    evaluations: int
    seconds: float
    """Of the whole job, without the start of the workers."""

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "evaluations_per_second": round(self.evaluations / max(self.seconds, 1e-9), 2)}

    def text(self) -> str:
        return (
            f"{self.renders} renders ({self.evaluations} evaluations) in {self.seconds:.1f} s by {self.workers} "
            f"workers, {self.evaluations / max(self.seconds, 1e-9):.1f} evaluations a second; {self.replaced} replaced."
        )


@contextlib.contextmanager
def executor_of(
    address: str, workers: int | None, graph: Mapping[str, Any], node: str, comfyui: ComfyUI, options: Sequence[str]
) -> Iterator[RayExecutor]:
    """Workers, as long as the block lasts."""
    ray, count, place = connect(address, workers)
    given = (dict(graph), node, str(comfyui.folder), str(comfyui.base), tuple(options))
    try:
        with RayExecutor(ray, count, place, lambda actor: actor.remote(*given)) as executor:
            yield executor
    finally:
        ray.shutdown()


def calibrate(executor: RayExecutor, comfyui: ComfyUI, quiet: bool) -> tuple[Result, Throughput]:
    """Leads the job to its end, with a progress bar unless `quiet`."""
    from tqdm import tqdm

    last: list[Progress] = []
    with tqdm(total=1, unit="step", file=sys.stderr, disable=quiet, dynamic_ncols=True) as bar:

        def listen(progress: Progress) -> None:
            last[:] = [progress]
            bar.total, bar.n = max(1, progress.evaluations + progress.left), progress.evaluations
            said = [one.text() for one in progress.messages()]
            bar.set_description_str(said[0])
            bar.set_postfix_str(" ".join(said[1:3]))

        started = time.monotonic()
        result = lead(comfyui.store, executor, executor.asked, comfyui.planners, listen)
        seconds = time.monotonic() - started
    (end,) = last
    return result, Throughput(executor.workers, executor.deaths, end.renders, end.evaluations, seconds)
