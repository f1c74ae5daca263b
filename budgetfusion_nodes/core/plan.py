"""A plan is a frozen decision: the sampler obeys it and never decides again.

`decide_steps` is the one rule that turns a predicted curve into a count. The browser repeats it while the slider moves;
tests/cases/decide_cases.json holds the cases both sides run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np

from .curves import METRICS, all_counts, interpolate_log_n
from .errors import InputError
from .messages import Message, counted, message, word
from .schedule import STOCK
from .setting import Setting

QUALITY_RANGE = (0.50, 0.99)
ROUNDING = 1e-6  # a slider's 0.99 may arrive as float32
DEFAULT_QUALITY = 0.90
DEFAULT_RISK = 0.10
DEFAULT_MIN_STEPS = 2
DEFAULT_MAX_STEPS = 20
COUNT_CODES = ("count_steady", "count_best")
"""What a plan of one count for all prompts says of itself; here and on the page it is known by that."""
LATER_FIELDS = ("schedule", "prefix_steps", "remembered")
"""Of a Plan; plans of before lack them."""


def metric_words(metric: str) -> str:
    """What a metric is called, in English; its own name where it is not one of ours."""
    return word(f"metric_{metric}") if metric in METRICS else metric


def threshold_at(thresholds: Sequence[Sequence[float]], q: float) -> float:
    """theta(q): linear between the knots [[q, theta], ...] (q increasing), constant outside them."""
    if q <= thresholds[0][0]:
        return thresholds[0][1]
    for (q0, theta0), (q1, theta1) in pairwise(thresholds):
        if q < q1:  # at a knot the difference is exactly 0, so its own theta comes out, here and in the browser
            return theta0 + (theta1 - theta0) * ((q - q0) / (q1 - q0))
    return thresholds[-1][1]


def sufficient_index(upper: Sequence[float], theta: float) -> int:
    """Index of the least count with upper[n'] <= theta for it and every later one; the last index if there is none."""
    index = len(upper) - 1
    while index > 0 and upper[index] <= theta and upper[index - 1] <= theta:
        index -= 1
    return index


def decide_steps(
    counts: Sequence[int],
    upper: Sequence[float],
    thresholds: Sequence[Sequence[float]],
    q: float,
    min_steps: int,
    max_steps: int,
) -> int:
    """steps(q) = least n with u(n') <= theta(q) for all n' >= n, then at least min_steps, then at most max_steps.

    counts: increasing integers, the last is the target T. upper: u(n) >= 0 at each of them.
    """
    steps = counts[sufficient_index(upper, threshold_at(thresholds, q))]
    return min(max(steps, min_steps), max_steps)


@dataclass(frozen=True)
class Decision:
    """Everything needed to decide again for another slider value, without the planner."""

    grid: tuple[int, ...]
    shortfall_high_norm: tuple[float, ...]
    """u on the grid: max over metrics of the upper shortfall quantile over its scale."""
    thresholds: tuple[tuple[float, float], ...]
    """Knots [q, theta] of the chosen risk."""
    counts: tuple[int, ...]
    """Every integer from grid[0] to T."""
    upper: tuple[float, ...]
    """u at each of `counts`, so no reader has to interpolate."""
    limiting: tuple[str, ...]
    """The metric that attains u at each of `counts`."""
    quality: tuple[float, ...]
    """Median predicted quality at each of `counts`."""

    def steps(self, q: float, min_steps: int, max_steps: int) -> int:
        return decide_steps(self.counts, self.upper, self.thresholds, q, min_steps, max_steps)

    def limited_by(self, q: float) -> str | None:
        """The metric that still forbids one step less; None where the smallest count already suffices."""
        index = sufficient_index(self.upper, threshold_at(self.thresholds, q))
        return self.limiting[index - 1] if index else None

    def quality_at(self, steps: int) -> float | None:
        """Median predicted quality; None below the smallest calibrated count. Beyond T it is the full-step image."""
        if steps < self.counts[0]:
            return None
        return self.quality[min(steps, self.counts[-1]) - self.counts[0]]

    def limit_warnings(self, q: float, min_steps: int, max_steps: int) -> tuple[Message, ...]:
        """What to say of limits that keep the quality from being reached, or that lie beyond the target."""
        target = self.counts[-1]
        wanted = self.steps(q, 1, target)
        found: list[Message] = []
        if wanted > max_steps:
            found.append(message("max_too_low", quality=q, steps=wanted, max=max_steps))
        if max_steps > target:
            found.append(message("max_beyond", max=max_steps, target=target))
        if min_steps > target:
            found.append(message("min_beyond", min=min_steps, target=target))
        return tuple(found)

    @classmethod
    def from_curves(
        cls,
        grid: tuple[int, ...],
        high: Mapping[str, Sequence[float]],
        quality_median: Sequence[float],
        thresholds: Sequence[tuple[float, float]],
    ) -> Decision:
        """high: metric -> K upper normalised shortfalls; quality_median: K values in [0, 1]."""
        names = tuple(high)
        worst = [max(values) for values in zip(*high.values(), strict=True)]
        counts = all_counts(grid)
        rows = [*(list(high[name]) for name in names), worst, list(quality_median)]
        *by_metric, upper, median = interpolate_log_n(grid, rows, counts)
        return cls(
            grid=grid,
            shortfall_high_norm=tuple(worst),
            thresholds=tuple((float(q), float(theta)) for q, theta in thresholds),
            counts=counts,
            upper=tuple(upper.tolist()),
            limiting=tuple(names[i] for i in np.argmax(by_metric, axis=0).tolist()),
            quality=tuple(median.tolist()),
        )

    def to_dict(self) -> dict[str, Any]:
        return _json_safe(asdict(self))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Decision:
        return cls(**{f.name: _frozen(_field(data, f.name, "decision")) for f in fields(cls)})


@dataclass(frozen=True)
class RememberedUse:
    """How much of a plan came from memory."""

    own: int
    """Remembered renders of this prompt that it was corrected by."""
    near: int
    """The same of other prompts."""
    without: int
    """Steps that would have been planned without."""
    said: Message | None
    points: tuple[tuple[int, float], ...] = ()
    """(steps, quality) measured of this prompt, for the chart."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RememberedUse:
        said = data["said"]
        return cls(**{**data, "said": None if said is None else Message.from_dict(said)})


@dataclass(frozen=True)
class Plan:
    """The number of steps for one prompt, and why."""

    steps: int
    max_steps: int
    min_steps: int
    quality: float
    """The slider: wanted quality, 1 is the full-step image."""
    risk: float
    """Share of prompts that may end below `quality`."""
    quality_predicted: float | None = None
    """Median predicted quality at `steps`."""
    limited_by: str | None = None
    """The metric that forbids fewer steps."""
    grid: tuple[int, ...] = ()
    quality_low: tuple[float, ...] = ()
    """Pessimistic quality at each grid count."""
    quality_median: tuple[float, ...] = ()
    quality_high: tuple[float, ...] = ()
    shortfall_median: Mapping[str, tuple[float, ...]] | None = None
    """Metric -> predicted distance to the full-step image at each grid count, in the metric's own unit."""
    threshold: float = 0.0
    """theta(q): the upper normalised shortfall may not exceed it."""
    planner: str = ""
    setting: Setting | None = None
    """The setting that the planner was calibrated for."""
    fallback: Message | None = None
    """Why no prediction was used; then steps == max_steps."""
    warnings: tuple[Message, ...] = ()
    nfe: int = 0
    """Denoiser evaluations of `steps`; the node corrects it for samplers with more than one a step."""
    seconds: float = 0.0
    """Planning time."""
    schedule: str = STOCK
    """What the render runs along: `NestedSchedule.to_text`, or "stock"."""
    prefix_steps: int = 0
    """Steps that every count shares; 0 with the stock schedule."""
    distance: float | None = None
    """Distance from the prompts the planner was made with; above 1 it is unlike them."""
    decision: Decision | None = None
    remembered: RememberedUse | None = None
    """What memory had to say; None where it had nothing, or was not asked."""

    @property
    def is_count(self) -> bool:
        """One count for all prompts, from a planner without curves: quality and risk have no say."""
        said = any(warning.code in COUNT_CODES for warning in self.warnings)
        return said and self.fallback is None and self.decision is None

    @classmethod
    def fallback_plan(
        cls,
        max_steps: int,
        min_steps: int,
        quality: float,
        risk: float,
        reason: Message,
        *,
        planner: str = "",
        setting: Setting | None = None,
        warnings: tuple[Message, ...] = (),
        nfe: int | None = None,
        seconds: float = 0.0,
    ) -> Plan:
        """Render all `max_steps`, and say why."""
        return cls(
            steps=max_steps,
            max_steps=max_steps,
            min_steps=min_steps,
            quality=quality,
            risk=risk,
            planner=planner,
            setting=setting,
            fallback=reason,
            warnings=warnings,
            nfe=max_steps if nfe is None else nfe,
            seconds=seconds,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe: lists, numbers, text and null only; a Message is its code and values."""
        said: dict[str, Any] = {"warnings": [warning.to_dict() for warning in self.warnings]}
        if self.fallback is not None:
            said["fallback"] = self.fallback.to_dict()
        if self.remembered is not None and self.remembered.said is not None:
            said["remembered"] = {**asdict(self.remembered), "said": self.remembered.said.to_dict()}
        return _json_safe({**asdict(self), **said})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Reads `to_dict`; InputError if a field is missing."""
        known = [f.name for f in fields(cls) if f.name in data or f.name not in LATER_FIELDS]
        values = {name: _frozen(_field(data, name, "plan")) for name in known}
        if values["setting"] is not None:
            values["setting"] = Setting.from_dict(values["setting"])
        if values["decision"] is not None:
            values["decision"] = Decision.from_dict(values["decision"])
        if values.get("remembered") is not None:
            values["remembered"] = RememberedUse.from_dict(values["remembered"])
        if values["fallback"] is not None:
            values["fallback"] = Message.from_dict(values["fallback"])
        values["warnings"] = tuple(Message.from_dict(warning) for warning in values["warnings"])
        return cls(**values)

    def summary(self) -> str:
        """A few lines for the node, in English; the page words the same in the artist's language."""
        lines = [self._headline(), *self._reasons(), *(warning.text() for warning in self.warnings)]
        return "\n".join(lines)

    def _headline(self) -> str:
        if self.fallback is not None:
            return f"{word('all_steps', steps=counted(self.steps, 'steps'))}: {self.fallback.text()}"
        share = 1.0 - self.steps / self.max_steps
        saved = word("fewer", share=share) if share > 0 else word("none_saved")
        return word("headline", steps=self.steps, max=counted(self.max_steps, "steps"), saved=saved)

    def _reasons(self) -> list[str]:
        if self.fallback is not None:
            return []
        predicted = word("unknown") if self.quality_predicted is None else self.quality_predicted
        lines = [] if self.is_count else [word("wanted", wanted=self.quality, predicted=predicted, risk=self.risk)]
        if self.limited_by is not None:
            lines.append(word("limited_by", metric=metric_words(self.limited_by)))
        if self.remembered is not None and self.remembered.said is not None:
            lines.append(self.remembered.said.text())
        return [*lines, f"{word('row_planner')}: {self.planner}"] if self.planner else lines


def check_request(quality: float, risk: float, min_steps: int, max_steps: int, risk_range: tuple[float, float]) -> None:
    """InputError that names the input and the remedy unless a plan can be made from these values."""
    low, high = QUALITY_RANGE
    if not (math.isfinite(quality) and low - ROUNDING <= quality <= high + ROUNDING):
        raise InputError(message("quality_range", value=quality, low=low, high=high))
    if not (math.isfinite(risk) and risk_range[0] - ROUNDING <= risk <= risk_range[1] + ROUNDING):
        raise InputError(message("risk_range", value=risk, low=risk_range[0], high=risk_range[1]))
    if min_steps < 1:
        raise InputError(message("min_steps_low", value=min_steps))
    if min_steps > max_steps:
        raise InputError(message("min_above_max", min=min_steps, max=max_steps))


def _field(data: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in data:
        raise InputError(message("plan_incomplete", what=what, field=name))
    return data[name]


def _json_safe(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _frozen(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item) for item in value)
    return value
