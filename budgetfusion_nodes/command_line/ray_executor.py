"""Trajectories on many machines: one genuine ComfyUI a worker and GPU, led through Ray.

A worker that dies is replaced, and its trajectory goes on elsewhere from the counts that came back. Nothing is written
here: the job that takes the events does that.
"""

from __future__ import annotations

import importlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..calibration.leading import Asked
from ..calibration.records import Encoded, Subject
from ..calibration.trajectory import Event, Failed, Finished, Measured, Work
from ..calibration.wire import (
    Described,
    Json,
    describe_task,
    encode_task,
    encoded_from_json,
    event_from_json,
    work_to_json,
)
from ..core.errors import InputError
from .comfyui import ServerError, ServerGone
from .ray_worker import Worker

ROOM_SECONDS = 900.0
"""For Ray to find room for a worker and for its ComfyUI to start."""
SILENCE_SECONDS = 3600.0
"""A worker's own client gives up after half of this."""
STORE_BYTES = 512 << 20
"""Of Ray's object store on a machine where this command starts Ray; only latents of target pictures pass through it."""
CLOSE_SECONDS = 20.0
STARTS_IN_VAIN = 2
"""Workers in one place that may die in a row before any answer, until the place is given up."""
DEATHS = 2
"""Workers that one trajectory may take down before it is set aside."""


def connect(address: str, workers: int | None) -> tuple[Any, int, dict[str, Any]]:
    """(ray, number of workers, how Ray places each). address: `local` starts Ray on this machine; else a cluster's.
    workers: None for one a GPU, or one a machine where there is none. InputError without Ray.

    Where there are GPUs each worker has one of its own: Ray names it to the worker and its ComfyUI alone
    (CUDA_VISIBLE_DEVICES, or what other makers' GPUs go by). Else workers are spread over the machines.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no telemetry
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise InputError(
            "--ray needs Ray on every machine: python -m pip install -r requirements/ray.txt in the pack's folder."
        ) from error
    here = {"num_cpus": max(workers or 1, os.cpu_count() or 1), "object_store_memory": STORE_BYTES}
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level="ERROR",
            **(here if address == "local" else {}),
        )
    except Exception as error:  # where its parts do not start within 30 s Ray raises just that
        if address == "local":
            raise ServerError(
                f"Ray did not start here ({error}). Try again when this machine has less to do."
            ) from error
        raise ServerError(f"No Ray answers at {address} ({error}). 'ray start --head' starts one.") from error
    gpus = int(ray.cluster_resources().get("GPU", 0))
    machines = sum(bool(node["Alive"]) for node in ray.nodes())
    place = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 1, "scheduling_strategy": "SPREAD"}
    return ray, workers or gpus or machines, place


@dataclass
class _Place:
    """Room for one worker, and the worker that is in it."""

    worker: Any
    answers: Any = None
    """Stream of the task at work; None where it has nothing to do."""
    work: Work | None = None
    ready: bool = False
    """Whether it has said what it calibrates."""
    in_vain: int = 0


class RayExecutor:
    """See `calibration.executors.Executor`. Close it, or use it in a `with`."""

    def __init__(self, ray: Any, workers: int, takes: Mapping[str, Any], make: Callable[[Any], Any]) -> None:
        """takes: Ray's options for each worker. make: from the actor class to a new actor. ServerError where no worker
        starts."""
        self._ray, self._make = ray, make
        self._actor = ray.remote(Worker).options(max_restarts=0, **takes)
        self._described: Described | None = None
        self._first: Json = {}
        self._places: list[_Place] = []
        self.deaths = 0
        """Workers that were replaced."""
        for _ in range(workers):
            place = _Place(None)
            self._places.append(place)
            self._start(place)
        while self._described is None:
            self._step(ROOM_SECONDS)

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        closing = [place.worker.close.remote() for place in self._places]
        if closing:
            self._ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
        for place in self._places:
            self._ray.kill(place.worker)
        self._places = []

    @property
    def workers(self) -> int:
        return len(self._places)

    @property
    def subject(self) -> Subject:
        return self._known.subject

    @property
    def backends(self) -> Mapping[str, str]:
        return self._known.backends

    @property
    def asked(self) -> Asked:
        """What the graph asks for, with its prompts."""
        return self._known.asked

    @property
    def _known(self) -> Described:
        assert self._described is not None  # the constructor waited for it
        return self._described

    def encode(self, text: str) -> Encoded:
        """By a worker that has nothing else to do. To be called while no work is under way."""
        while True:
            place = next((one for one in self._places if one.ready and one.answers is None), None)
            if place is None:
                self._step(ROOM_SECONDS)
                continue
            self._give(place, encode_task(text))
            while place.ready and place.answers is not None:
                found, answer = self._step(SILENCE_SECONDS)
                if found is place and answer is not None and "encoded" in answer:
                    return self._finish(place, encoded_from_json(answer))

    def run(self, works: Iterable[Work]) -> Iterator[tuple[Work, Event]]:
        source, waiting, died = iter(works), deque[Work](), Counter[int]()
        while True:
            self._deal(source, waiting)
            if not waiting and all(place.work is None for place in self._places):
                return
            place, answer = self._step(SILENCE_SECONDS)
            work = place.work
            if work is None or answer is None:
                continue
            if "gone" not in answer:
                yield self._taken(place, work, event_from_json(answer))
                continue
            place.work = None
            died[work.trajectory_id] += 1
            if died[work.trajectory_id] < DEATHS:
                waiting.append(work)
            else:
                yield work, Failed(work.grid[-1], f"{DEATHS} workers ended over it: {answer['gone']}")

    # ------------------------------------------------------------------------------------------------------- works

    def _deal(self, source: Iterator[Work], waiting: deque[Work]) -> None:
        """Gives every free worker a trajectory."""
        free = [place for place in self._places if place.ready and place.answers is None]
        for place in free:
            work = waiting.popleft() if waiting else next(source, None)
            if work is None:
                return
            place.work = work
            self._give(place, work_to_json(work))
        if not free and not waiting and all(place.work is None for place in self._places):
            waiting.extend(work for work in (next(source, None),) if work is not None)

    @staticmethod
    def _taken(place: _Place, work: Work, event: Event) -> tuple[Work, Event]:
        """The event, once it is noted how far the trajectory is, for the case that its worker dies."""
        if isinstance(event, Measured):
            latent = work.latent if event.latent is None else event.latent
            place.work = replace(work, known={**work.known, event.found.steps: event.found}, latent=latent)
        elif isinstance(event, (Finished, Failed)):
            place.work = None
        return work, event

    # ----------------------------------------------------------------------------------------------------- workers

    def _start(self, place: _Place) -> None:
        """A new worker in this place; it is ready when it has described what it calibrates."""
        place.worker, place.ready = self._make(self._actor), False
        self._give(place, describe_task())

    def _give(self, place: _Place, task: Json) -> None:
        place.answers = place.worker.ask.options(num_returns="streaming").remote(task)

    def _step(self, seconds: float) -> tuple[_Place, Json | None]:
        """(place, its next answer), None at the end of a task. A worker that died has been replaced already; its last
        answer is {"gone": reason}. ServerError where all fail, or nothing happens for so long."""
        busy = {id(place.answers): place for place in self._places if place.answers is not None}
        done, _ = self._ray.wait([place.answers for place in busy.values()], num_returns=1, timeout=seconds)
        if not done:
            raise ServerGone(
                f"Ray had no room for a worker, or none answered, for {seconds / 60:.0f} minutes. 'ray status' shows "
                "which machines and GPUs are free. What was measured is kept; run the command again to go on."
            )
        place = busy[id(done[0])]
        answer = self._answer(place)
        if answer is None:
            place.answers = None
        elif "error" in answer:
            raise ServerError(answer["error"])
        elif "gone" in answer:
            self._replace(place, answer["gone"])
        else:
            place.in_vain = 0
            self._compare(place, answer)
        return place, answer

    def _answer(self, place: _Place) -> Json | None:
        try:
            return self._ray.get(next(place.answers))
        except StopIteration:
            return None
        except self._ray.exceptions.RayError as error:
            return {"gone": str(error).strip().splitlines()[0]}

    def _replace(self, place: _Place, reason: str) -> None:
        self.deaths += 1
        place.in_vain += 1
        place.answers = None
        self._ray.kill(place.worker)
        if place.in_vain <= STARTS_IN_VAIN:
            self._start(place)
            return
        self._places.remove(place)
        if not self._places:
            raise ServerGone(f"No worker stays alive. The last one: {reason}")

    def _compare(self, place: _Place, answer: Json) -> None:
        """Every worker calibrates the same thing with the same measures, or the whole would be of no model."""
        if place.ready or "setting" not in answer:
            return
        if self._described is None:
            self._described, self._first = Described.from_json(answer), answer
        differs = [key for key in self._first if answer.get(key) != self._first[key]]
        if differs:
            where = self._ray.get(place.worker.where.remote())
            raise ServerError(
                f"The worker on {where} differs from the first one in: {', '.join(differs)}. All machines need the "
                "same pack, model files and metric weights."
            )
        place.ready = True

    def _finish(self, place: _Place, encoded: Encoded) -> Encoded:
        """Waits for the end of the task, so that the worker is free."""
        while place.ready and place.answers is not None:
            self._step(SILENCE_SECONDS)
        return encoded
