"""What a planned render cost, and what it saved against fixed step counts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..core.messages import Message, counted, message, word
from ..core.plan import Plan
from ..core.stages import told
from ..host.sampling import Render, nfe

log = logging.getLogger(__name__)

COMMON_COUNTS = (20, 30)
"""Step counts that artists leave set: 20 is the host's own default, 30 a common choice."""


@dataclass(frozen=True)
class Receipt:
    """Of one Adaptive KSampler run. Seconds are of the sampling loop, measured."""

    steps: int
    max_steps: int
    nfe: int
    """Denoiser evaluations."""
    seconds: float
    seconds_per_step: float
    seconds_saved_vs_max: float
    saved_vs_20: float
    """1 - steps / 20: negative if more than 20 steps were taken."""
    saved_vs_30: float
    quality: float
    quality_predicted: float | None
    limited_by: str | None
    planner: str
    fallback: Message | None
    warnings: tuple[Message, ...]
    images: int = 1
    """Pictures of the batch."""
    watt_hours: float | None = None
    """Of the GPU during the sampling loop; None where it does not tell."""
    prefix_steps: int = 0
    """Of `steps`, those that every count shares; 0 with the stock schedule."""
    replayed: int = 0
    """Of `nfe`, taken from the draft."""

    def to_dict(self) -> dict[str, Any]:
        fallback = None if self.fallback is None else self.fallback.to_dict()
        return {**asdict(self), "fallback": fallback, "warnings": [warning.to_dict() for warning in self.warnings]}

    def text(self) -> str:
        """A few lines for the node, in English, with the labels that the page shows."""
        return "\n".join(f"{label}: {text}" for label, text in self._rows())

    def _rows(self) -> Iterator[tuple[str, str]]:
        if not self.steps:
            yield word("row_steps"), word("nothing_to_sample")
            return
        each = f"{self.seconds_per_step:.3f} s"
        calls = counted(self.nfe, "calls")
        if self.prefix_steps:
            parts = {"prefix": self.prefix_steps, "tail": self.steps - self.prefix_steps}
            yield word("row_steps"), word("nested_steps", **parts)
        if self.replayed:
            yield word("row_draft"), word("draft_row", n=self.replayed, calls=calls)
        yield word("row_time"), word("time_row", time=f"{self.seconds:.2f} s", each=each, calls=calls)
        for count in dict.fromkeys((self.max_steps, *COMMON_COUNTS)):
            saved = self.seconds_per_step * (count - self.steps)
            if saved:
                said = word("time_saved" if saved > 0 else "time_more", time=f"{abs(saved):.2f} s")
                yield word("row_against", n=count), said
        if self.watt_hours is not None:
            yield word("row_energy"), f"{self.watt_hours:.3g} Wh"


def shown(plan: Plan, render: Render, sampler_name: str) -> tuple[str, dict[str, list[Any]]]:
    """(text, what the page shows) of a finished render, which no fault in the telling may take away."""
    try:
        receipt = make_receipt(plan, render, nfe(sampler_name, render.steps))
        text = f"{plan.summary()}\n{receipt.text()}"
        return text, {"text": [text], "budget_plan": [plan.to_dict()], "receipt": [receipt.to_dict()]}
    except Exception as error:
        log.exception("BudgetFusion rendered %d steps and could not write the receipt", render.steps)
        text = message("no_receipt", steps=render.steps, error=told(error)).text()
        return text, {"text": [text]}


def make_receipt(plan: Plan, render: Render, nfe: int) -> Receipt:
    """nfe: denoiser evaluations of the steps that were executed."""
    against_20, against_30 = (1.0 - render.steps / count for count in COMMON_COUNTS)
    return Receipt(
        steps=render.steps,
        max_steps=plan.max_steps,
        nfe=nfe,
        seconds=render.seconds,
        seconds_per_step=render.seconds_per_step,
        seconds_saved_vs_max=render.seconds_per_step * (plan.max_steps - render.steps),
        saved_vs_20=against_20,
        saved_vs_30=against_30,
        quality=plan.quality,
        quality_predicted=plan.quality_predicted,
        limited_by=plan.limited_by,
        planner=plan.planner,
        fallback=plan.fallback,
        warnings=plan.warnings,
        images=_images(render.latent.get("samples")),
        watt_hours=render.watt_hours,
        prefix_steps=min(plan.prefix_steps, render.steps),
        replayed=render.replayed,
    )


def _images(samples: Any) -> int:
    """Pictures in a LATENT; 1 for the host's own type of multi-part latents."""
    return int(samples.shape[0]) if isinstance(samples, Tensor) and samples.ndim else 1
