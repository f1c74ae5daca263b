"""Where the time goes: metrics against resolution and batch, and one image from text to pixels."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from budgetfusion_nodes.host.conditioning import extract
from budgetfusion_nodes.metrics.i_clip import i_clip
from budgetfusion_nodes.metrics.images import to_bchw
from budgetfusion_nodes.metrics.l_snr import l_snr
from budgetfusion_nodes.metrics.measure import Backends
from research.sweeps.prompts import StudyPrompt

from .peers import Bench

SIZES = (64, 128, 256, 512, 1024, 2048)
BATCHES = (1, 4)
REPEATS = 3
LARGEST_PIXELS = 2048**2  # of a batch: d_sim keeps some twenty copies
STAGES = ("text encode", "planning", "sampling", "decode", "metrics")


def timed(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median seconds of `call` after one run that is not counted."""
    call()
    laps = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        laps.append(time.perf_counter() - started)
    return float(np.median(laps))


def metric_times(
    backends: Backends, sizes: Sequence[int] = SIZES, batches: Sequence[int] = BATCHES, limit: float = 20.0
) -> list[dict[str, Any]]:
    """Seconds of each metric on square pictures. A size is left out (None) once a smaller one took more than a quarter
    of `limit` seconds."""
    found = []
    for metric in ("l_snr", "d_sim", "i_clip"):
        for batch in batches:
            slow = False
            for size in sizes:
                if batch * size**2 > LARGEST_PIXELS:
                    continue
                seconds = None if slow else _metric_seconds(metric, backends, batch, size)
                slow = seconds is None or seconds > limit / 4
                found.append({"metric": metric, "batch": batch, "size": size, "seconds": seconds})
    return found


@torch.no_grad()
def _metric_seconds(metric: str, backends: Backends, batch: int, size: int) -> float:
    generator = torch.Generator().manual_seed(size)
    x = torch.rand((batch, 3, size, size), generator=generator)
    y = (x + 0.05 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    if metric == "l_snr":
        return timed(lambda: l_snr(x))
    if metric == "d_sim":
        return timed(lambda: backends.d_sim.similarity(x, backends.d_sim.prepare(y)))
    encoder = backends.i_clip
    return float("nan") if encoder is None else timed(lambda: i_clip(x, y, encoder))


def end_to_end(bench: Bench, prompts: Sequence[StudyPrompt], quality: float, risk: float) -> dict[str, Any]:
    """Median seconds of each stage for one image by our plan, and for `target` steps without a plan. `metrics` is what
    the Probe adds where it is connected: it is no part of a render."""
    laps: dict[str, list[float]] = {stage: [] for stage in (*STAGES, "sampling all steps")}
    steps = []
    for prompt in prompts:
        (positive,) = _lap(laps["text encode"], lambda text=prompt.text: bench.renderer.encode([text]))
        tokens, pooled, _ = extract(positive)
        plan = _lap(
            laps["planning"],
            lambda t=tokens, p=pooled: bench.planner.plan(
                t, p, quality=quality, risk=risk, max_steps=bench.planner.target_steps
            ),
        )
        steps.append(plan.steps)
        latent, full = (
            _lap(laps[name], lambda c=positive, n=count, s=prompt.seeds[0]: _sampled(bench, c, s, n))
            for name, count in (("sampling", plan.steps), ("sampling all steps", bench.planner.target_steps))
        )
        image = _lap(laps["decode"], lambda z=latent: bench.renderer.images(z[:, None])[:, 0])
        reference = bench.renderer.images(full[:, None])[:, 0]
        _lap(laps["metrics"], lambda x=image, y=reference: _measured(bench.backends, x, y))
    median = {name: float(np.median(values)) for name, values in laps.items()}
    total = sum(median[stage] for stage in STAGES[:-1])
    return {
        "images": len(prompts),
        "mean_steps": float(np.mean(steps)),
        "seconds": median,
        "share": {stage: median[stage] / total for stage in STAGES[:-1]},
        "seconds_of_an_image": total,
        "seconds_at_all_steps": total - median["planning"] - median["sampling"] + median["sampling all steps"],
    }


def _lap(laps: list[float], call: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    found = call()
    laps.append(time.perf_counter() - started)
    return found


def _sampled(bench: Bench, positive: Any, seed: int, steps: int) -> torch.Tensor:
    return bench.stock(bench.loaded.model, positive, seed, steps, bench.sampling.scheduler)


@torch.no_grad()
def _measured(backends: Backends, image: torch.Tensor, reference: torch.Tensor) -> None:
    x, y = to_bchw(image), to_bchw(reference)
    l_snr(torch.cat([x, y]))
    backends.d_sim.similarity(x, backends.d_sim.prepare(y))
    if backends.i_clip is not None:
        i_clip(x, y, backends.i_clip)
