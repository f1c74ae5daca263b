"""Renders what a calibration of a small model still lacks, many trajectories at a time, into the calibration's store.

On Tiny Scenes and a CPU a batch of 32 takes about half the time of one picture after the other, and every picture
differs from the one rendered alone by rounding (at most 1e-4, see host/batch.py). Calibrate itself, queued on that
store afterwards, finds everything measured and makes the planner.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from budgetfusion_nodes.calibration.host_job import Asked, Prepared, along, prepare
from budgetfusion_nodes.calibration.host_renderer import Graph, HostRenderer
from budgetfusion_nodes.calibration.job import Job
from budgetfusion_nodes.calibration.records import Encoded, Measurement, Subject
from budgetfusion_nodes.calibration.store import Store
from budgetfusion_nodes.calibration.trajectory import Event, Finished, Measured, Work, next_count
from budgetfusion_nodes.host.batch import render_batch, token_count
from budgetfusion_nodes.host.prefix_cache import Evaluation, PrefixCache, with_replay
from budgetfusion_nodes.host.sampling import nfe, shared_evaluations
from budgetfusion_nodes.metrics.measure import Series
from research.sweeps.rendering import LoadedModel

log = logging.getLogger(__name__)

BATCH = 32
Rows = Sequence[int]


class BatchExecutor:
    """`calibration.executors.Executor`: BATCH trajectories at a time, count by count; of each only what it needs."""

    def __init__(self, ready: Prepared) -> None:
        self.ready = ready
        self.subject: Subject = ready.subject
        self.backends: Mapping[str, str] = ready.backends

    def encode(self, text: str) -> Encoded:
        return self.ready.renderer.encode(text)

    def run(self, works: Iterable[Work]) -> Iterator[tuple[Work, Event]]:
        """Works that were begun elsewhere are left to it: their targets are not rendered twice."""
        fresh = (work for work in works if not work.known)
        while batch := list(islice(fresh, BATCH)):
            groups: dict[int, list[Work]] = {}
            for work in batch:
                groups.setdefault(token_count(self.ready.renderer.conditioning(work.text)), []).append(work)
            for group in groups.values():
                yield from _run(self.ready.renderer, group)


def _run(renderer: HostRenderer, works: Sequence[Work]) -> Iterator[tuple[Work, Event]]:
    grid, everyone = works[0].grid, range(len(works))
    shared = PrefixCache(limit=2**30)
    latents, seconds, evaluations = _render(renderer, works, everyone, grid[-1], shared)
    series: list[Series] = []
    known: list[dict[int, Measurement]] = []
    for work, latent in zip(works, latents, strict=True):
        started = time.perf_counter()
        picture = renderer.decode(latent[None])
        series.append(Series(picture, renderer.backends, renderer.metrics))
        found = _measured(series[-1], picture, renderer, grid[-1], evaluations, seconds, started, reference=True)
        known.append({grid[-1]: found})
        yield work, Measured(found)
    for steps in grid[:-1]:
        rows = [i for i in everyone if next_count(grid, known[i], works[i].tolerance) == steps]
        if not rows:
            continue
        latents, seconds, evaluations = _render(renderer, works, rows, steps, shared)
        for i, latent in zip(rows, latents, strict=True):
            started = time.perf_counter()
            picture = renderer.decode(latent[None])
            known[i][steps] = _measured(series[i], picture, renderer, steps, evaluations, seconds, started)
            yield works[i], Measured(known[i][steps])
    for work in works:
        yield work, Finished()


def _render(
    renderer: HostRenderer, works: Sequence[Work], rows: Rows, steps: int, shared: PrefixCache
) -> tuple[Tensor, float, int]:
    """(latents [B, C, H, W], seconds and evaluations of each picture)."""
    graph = renderer.graph
    sigmas, prefix = renderer.sigmas(steps)
    started = time.perf_counter()
    keep, key = shared_evaluations(graph.sampler_name, prefix), f"draft of {prefix} steps"
    cache = shared if len(rows) == len(works) else _of_rows(shared, key, rows)
    model, replay = with_replay(graph.model, key, keep, cache)
    latents = render_batch(
        model,
        [renderer.conditioning(works[i].text) for i in rows],
        graph.negative,
        [works[i].seed for i in rows],
        steps,
        sampler_name=graph.sampler_name,
        scheduler=graph.scheduler,
        cfg=graph.cfg,
        sigmas=sigmas,
    )
    replayed = 0 if replay is None else replay.replayed
    return latents, (time.perf_counter() - started) / len(rows), nfe(graph.sampler_name, steps) - replayed


def _of_rows(shared: PrefixCache, key: str, rows: Rows) -> PrefixCache:
    """A cache of the same draft with some of its pictures alone."""
    part, index = PrefixCache(limit=shared.limit), torch.tensor(rows)
    for whole in shared.draft(key):
        part.append(key, Evaluation(whole.x[index], whole.timestep[index], tuple(one[index] for one in whole.out)))
    return part


def _measured(
    series: Series,
    picture: Tensor,
    renderer: HostRenderer,
    steps: int,
    evaluations: int,
    seconds: float,
    started: float,
    reference: bool = False,
) -> Measurement:
    found = series.add(picture)
    distances = {m: 0.0 if reference else float(found.distances[m]) for m in renderer.metrics}
    spent = time.perf_counter() - started
    return Measurement(steps, distances, float(found.decibel), evaluations, seconds, spent)


class Filling(Job):
    """The calibration job without its planners."""

    def _milestone(self, new: bool) -> None:
        del new


@torch.inference_mode()
def fill(store: Store, loaded: LoadedModel, asked: Asked, sampler_name: str, scheduler: str, cfg: float) -> Filling:
    """Measures what is open. The same graph as `python -m budgetfusion_nodes calibrate --checkpoint` queues."""
    nodes = importlib.import_module("nodes")
    negative = nodes.CLIPTextEncode().encode(loaded.clip, "")[0]
    given: tuple[Any, ...] = (loaded.model, loaded.clip, loaded.vae, negative, sampler_name, scheduler, cfg)
    graph = Graph.connected(*given, width=64, height=64)
    ready = along(prepare(graph, asked, None, lambda _steps, model: model), asked.schedule)
    job = Filling(store, BatchExecutor(ready), asked.prompts, ready.spec, ready.name, lambda _planner: ("", ""))
    job.listen = lambda progress: _tell(progress.prompts, progress.wanted, progress.evaluations)
    job.measure()
    return job


_told = [0.0]


def _tell(prompts: int, wanted: int, steps: int) -> None:
    if time.monotonic() - _told[0] > 10.0:
        _told[0] = time.monotonic()
        log.info("%d of %d prompts, %d steps rendered", prompts, wanted, steps)
