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
from ..metrics.images import to_bchw
from ..metrics.measure import Backends, measure
from .choice import planner_of


@dataclass(frozen=True)
class Probe:
    """Distances of each image from the reference; 0 is equal."""

    steps: tuple[int, ...]
    """Step counts, or 1, 2, 3 ... where none were given."""
    counted: bool
    """Whether `steps` are step counts."""
    distances: Mapping[str, tuple[float, ...]]
    """Metric -> one value for each image; l_snr in dB."""
    quality: tuple[float, ...] | None
    """Q on the scale of the plan's planner; None where it cannot be told."""
    backends: Mapping[str, str]
    """Metric -> what measured it."""
    reference: Message
    notes: tuple[Message, ...]

    def first(self) -> tuple[float, float, float]:
        """l_snr, d_sim, i_clip of the first image."""
        l_snr, d_sim, i_clip = (self.distances[metric][0] for metric in METRICS)
        return l_snr, d_sim, i_clip

    def to_dict(self) -> dict[str, Any]:
        return {
            "steps": list(self.steps),
            "counted": self.counted,
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
    backends, absent = _backends(d_sim, clip_vision, plan)
    measured = measure(images, images[-1:] if reference is None else reference, backends)
    distances = {metric: tuple(measured[metric].double().tolist()) for metric in METRICS}
    found, notes = _measured_quality(distances, backends.names(), plan)
    notes = (*notes, *absent)
    result = Probe(
        steps=steps or tuple(range(1, count + 1)),
        counted=bool(steps),
        distances=distances,
        quality=found,
        backends=backends.names(),
        reference=message("reference_last") if reference is None else message("reference_given"),
        notes=notes,
    )
    error = None if plan is None else prediction_error(result, plan)
    if error is None:
        return result
    return replace(result, notes=(*notes, message("prediction_error", error=error)))


def _backends(d_sim: str, clip_vision: Any, plan: Plan | None) -> tuple[Backends, tuple[Message, ...]]:
    """With d_sim "auto" the plan's own, so that its quality can be told. Where that is not there, what is, and why."""
    if d_sim != "auto" or plan is None:
        return Backends.from_values(d_sim, "auto", clip_vision), ()
    try:
        own = planner_of(plan).backends.get("d_sim", "auto")
    except BudgetFusionError:  # `_measured_quality` says so
        return Backends.from_values("auto", "auto", clip_vision), ()
    try:
        return Backends.from_values(own, "auto", clip_vision), ()
    except BudgetFusionError as error:
        return Backends.from_values("auto", "auto", clip_vision), (error.message,)


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
    if not text.strip():
        return ()
    steps = parse_grid(text)
    if len(steps) != count:
        raise InputError(message("probe_counts", named=len(steps), images=count))
    return steps


def _measured_quality(
    distances: Mapping[str, tuple[float, ...]], backends: Mapping[str, str], plan: Plan | None
) -> tuple[tuple[float, ...] | None, tuple[Message, ...]]:
    """Q of each image on the scale of the plan's planner, if that was calibrated with the same backends."""
    if plan is None:
        return None, ()
    try:
        planner = planner_of(plan)
    except BudgetFusionError as error:
        return None, (message("no_quality", reason=error.message),)
    other = [m for m in planner.metrics if planner.backends.get(m) != backends[m]]
    if other:
        wanted = ", ".join(f"{m} with {planner.backends.get(m)}" for m in other)
        return None, (message("other_backends", wanted=wanted),)
    shortfall = np.stack([distances[metric] for metric in planner.metrics], axis=-1)
    return tuple(quality(shortfall, planner.scale).tolist()), ()
