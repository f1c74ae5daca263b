"""A planner that has one count for all prompts, from metrics without a reference: see core/no_reference.py.

For samplers that draw fresh noise at each step there is no full-step picture, so no curve and no quality to choose.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..core.messages import Message, message
from ..core.plan import DEFAULT_MIN_STEPS, DEFAULT_QUALITY, DEFAULT_RISK, Plan, check_request
from ..core.setting import Setting, differences
from .calibrated import Calibrated

STEADY, BEST = "steady", "best"
REASONS = (STEADY, BEST)
"""Why this count: the level no longer changes from it on; or it is best there and falls for real with more steps."""
ANY_RISK = (0.0, 1.0)


@dataclass(frozen=True)
class Level:
    """Mean over prompts at one count, in the metric's own unit, with its 90 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class CountPlanner(Calibrated):
    """Measured by calibration/count_job.py or read by planner_file.load_any_planner. The first metric decided."""

    count: int
    """One of grid."""
    levels: tuple[Level, ...]
    """At each count of grid."""
    prompts: int
    why: str
    """One of REASONS."""

    def said(self) -> Message:
        """That this is one count for all prompts, and why this one."""
        return message(
            "count_steady" if self.why == STEADY else "count_best",
            count=self.count,
            prompts=self.prompts,
            metric=self.metrics[0],
        )

    def plan(
        self,
        tokens: Tensor,
        pooled: Tensor | None = None,
        *,
        quality: float = DEFAULT_QUALITY,
        risk: float = DEFAULT_RISK,
        min_steps: int = DEFAULT_MIN_STEPS,
        max_steps: int | None = None,
        setting: Setting | None = None,
        nfe_of: Callable[[int], int] | None = None,
    ) -> Plan:
        """As `Planner.plan`: the count within the limits, whatever prompt and quality are; no curve and no decision."""
        del tokens, pooled
        started = time.perf_counter()
        max_steps = self.target_steps if max_steps is None else max_steps
        check_request(quality, risk, min_steps, max_steps, ANY_RISK)
        steps = min(max(self.count, min_steps), max_steps)
        return Plan(
            steps=steps,
            max_steps=max_steps,
            min_steps=min_steps,
            quality=quality,
            risk=risk,
            planner=self.name,
            setting=self.setting,
            warnings=(self.said(), *(differences(self.setting, setting) if setting is not None else ())),
            nfe=steps if nfe_of is None else nfe_of(steps),
            seconds=time.perf_counter() - started,
        )
