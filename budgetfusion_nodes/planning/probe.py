"""Measures images against a reference, and against a plan where there is one."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from ..core.curves import METRICS, parse_grid, quality
from ..core.errors import BudgetFusionError, InputError
from ..core.messages import Message, message, word
from ..core.plan import Plan
from ..core.schedule import described
from ..core.sources import SWEPT
from ..host.measuring import render_device
from ..host.paths import encoder_folders
from ..metrics.images import to_bchw
from ..metrics.l_snr import l_snr
from ..metrics.matching import differences, matching_backends
from ..metrics.measure import measure
from ..predictor.planner import Planner
from .choice import planner_of
from .origin import marked, remember


@dataclass(frozen=True)
class Probe:
    """Distances of each image from the reference; 0 is equal."""

    steps: tuple[int, ...]
    """Step counts, or 1, 2, 3 ... where none were given."""
    counted: bool
    """Whether `steps` are step counts."""
    distances: Mapping[str, tuple[float, ...]]
    """Metric -> one value for each of `steps`, the mean over its frames; l_snr in dB."""
    quality: tuple[float, ...] | None
    """Q on the scale of the plan's planner; None where it cannot be told."""
    backends: Mapping[str, str]
    """Metric -> what measured it."""
    reference: Message
    notes: tuple[Message, ...]
    frames: int = 1
    """Images of each count: frames of a video, or pictures of a batch."""

    def first(self) -> tuple[float, float, float]:
        """l_snr, d_sim, i_clip of the first image."""
        l_snr, d_sim, i_clip = (self.distances[metric][0] for metric in METRICS)
        return l_snr, d_sim, i_clip

    def to_dict(self) -> dict[str, Any]:
        return {
            "steps": list(self.steps),
            "counted": self.counted,
            "frames": self.frames,
            **{metric: list(self.distances[metric]) for metric in METRICS},
            "quality": None if self.quality is None else list(self.quality),
            "backends": dict(self.backends),
            "reference": self.reference.to_dict(),
            "notes": [note.to_dict() for note in self.notes],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), allow_nan=False)

    def text(self) -> str:
        """A table, one line for each image, then what it was measured with."""
        counted = word("axis_steps" if self.counted else "axis_image")
        head = f"{counted:>5}  {'L-SNR dB':>8}  {'D-SIM':>7}  {'I-CLIP':>7}"
        rows = [
            f"{steps:>5}  {values[0]:>8.2f}  {values[1]:>7.4f}  {values[2]:>7.4f}"
            for steps, *values in zip(self.steps, *(self.distances[m] for m in METRICS), strict=True)
        ]
        if self.quality is not None:
            head += f"  {word('column_quality')}"
            rows = [f"{row}  {value:>7.3f}" for row, value in zip(rows, self.quality, strict=True)]
        used = ", ".join(f"{metric}: {self.backends[metric]}" for metric in METRICS)
        told = f"{word('distances', reference=self.reference)} {word('measured_with', backends=used)}"
        return "\n".join([head, *rows, told, *(note.text() for note in self.notes)])


def probe(
    images: Tensor, reference: Tensor | None, step_counts: str, d_sim: str, clip_vision: Any, plan: Plan | None
) -> Probe:
    """images: BHWC in [0, 1]; reference: one image or as many; step_counts: text, may be empty. InputError says what
    cannot be measured and why."""
    count = to_bchw(images).shape[0]
    if reference is None and count < 2:
        raise InputError(message("probe_one_image"))
    steps = _steps(step_counts, count)
    frames = count // len(steps) if steps else 1
    planner, notes = _planner(plan)
    wanted = {} if planner is None else {metric: planner.backends[metric] for metric in planner.metrics}
    backends = matching_backends(wanted, d_sim, clip_vision, encoder_folders())
    with render_device(backends, *to_bchw(images[:1]).shape[2:]) as device:
        measured = measure(images, _references(images, reference, frames), backends, device=device)
    distances = {m: tuple(measured[m].double().reshape(-1, frames).mean(dim=1).tolist()) for m in METRICS}
    other = (*differences(wanted, backends.names(), d_sim, clip_vision), *_other_schedule(images, plan))
    found = None if planner is None or other else _quality(distances, planner)
    notes = (*notes, *([message("probe_frames", frames=frames)] if frames > 1 else []))
    result = Probe(
        steps=steps or tuple(range(1, count + 1)),
        counted=bool(steps),
        frames=frames,
        distances=distances,
        quality=found,
        backends=backends.names(),
        reference=message("reference_last") if reference is None else message("reference_given"),
        notes=(*notes, *other),
    )
    kept = _remembered(images, reference, result)
    if kept is not None:
        result = replace(result, notes=(*result.notes, kept))
    error = None if plan is None else prediction_error(result, plan)
    if error is None:
        return result
    return replace(result, notes=(*result.notes, message("prediction_error", error=error)))


def _other_schedule(images: Tensor, plan: Plan | None) -> tuple[Message, ...]:
    """That a sweep went along another schedule than the plan's, whose counts are other pictures."""
    swept = marked(images)
    if swept is None or plan is None or plan.fallback is not None or swept[0].setting.schedule == plan.schedule:
        return ()
    schedules = {"swept": described(swept[0].setting.schedule), "planned": described(plan.schedule)}
    return (message("probe_schedule", **schedules),)


def _remembered(images: Tensor, reference: Tensor | None, result: Probe) -> Message | None:
    """Keeps a sweep's curve for later plans; None where these pictures are no untouched sweep against its own end."""
    found = marked(images)
    if found is None or reference is not None or result.frames > 1 or result.steps != found[1]:
        return None
    decibel = dict(zip(result.steps, l_snr(images).tolist(), strict=True))
    distances = {n: {m: result.distances[m][i] for m in METRICS} for i, n in enumerate(result.steps)}
    return remember(found[0], distances, decibel, result.backends, SWEPT)


def _references(images: Tensor, reference: Tensor | None, frames: int) -> Tensor:
    """What each of the images [K * frames, ...] is compared with: the same frame of the last count, or of a reference
    of as many frames; else the reference as it is (one image, or one for each)."""
    if reference is None:
        reference = images[-frames:]
    if frames == 1 or reference.shape[0] != frames:
        return reference
    return reference.repeat(images.shape[0] // frames, *[1] * (reference.ndim - 1))


def _planner(plan: Plan | None) -> tuple[Planner | None, tuple[Message, ...]]:
    """The planner of the plan, or why there is none."""
    if plan is None:
        return None, ()
    try:
        return planner_of(plan), ()
    except BudgetFusionError as error:
        return None, (message("no_quality", reason=error.message),)


def _quality(distances: Mapping[str, tuple[float, ...]], planner: Planner) -> tuple[float, ...]:
    """Q of each image on the planner's scale."""
    shortfall = np.stack([distances[metric] for metric in planner.metrics], axis=-1)
    return tuple(quality(shortfall, planner.scale).tolist())


def prediction_error(result: Probe, plan: Plan) -> float | None:
    """Mean |predicted - measured| quality over the counts that the plan covers; None where there are none."""
    if result.quality is None or not result.counted or plan.decision is None:
        return None
    pairs = [
        (plan.decision.quality_at(steps), measured)
        for steps, measured in zip(result.steps, result.quality, strict=True)
        if plan.decision.counts[0] <= steps <= plan.decision.counts[-1]
    ]
    errors = [abs(predicted - measured) for predicted, measured in pairs if predicted is not None]
    return math.fsum(errors) / len(errors) if errors else None


def _steps(text: str, count: int) -> tuple[int, ...]:
    """The counts that text names; each has `count / len` images: frames of a video, or pictures of a batch."""
    if not text.strip():
        return ()
    steps = parse_grid(text)
    if count % len(steps):
        raise InputError(message("probe_counts", named=len(steps), images=count))
    return steps
