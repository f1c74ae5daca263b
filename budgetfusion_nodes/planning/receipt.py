"""What a planned render cost, and what it saved against fixed step counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ..core.plan import Plan
from ..host.sampling import Render

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
    set_by: str | None
    planner: str
    fallback: str | None
    warnings: tuple[str, ...]
    images: int = 1
    """Pictures of the batch."""
    watt_hours: float | None = None
    """Of the GPU during the sampling loop; None where it does not tell."""
    prefix_steps: int = 0
    """Of `steps`, those that every count shares; 0 with the stock schedule."""
    replayed: int = 0
    """Of `nfe`, taken from the draft."""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "warnings": list(self.warnings)}

    def text(self) -> str:
        """A few lines for the node."""
        per_step = f"{self.seconds_per_step:.3f} s a step" if self.steps else "nothing to sample"
        others = [count for count in dict.fromkeys((self.max_steps, *COMMON_COUNTS)) if count != self.steps]
        compared = [self._against(count) for count in others] if self.steps else []
        return "\n".join(
            [
                *([f"{self.prefix_steps} + {self.steps - self.prefix_steps} steps."] if self.prefix_steps else []),
                f"Sampled in {self.seconds:.2f} s ({per_step}, {self.nfe} model evaluations).",
                *([f"{self.replayed} of them were taken from the draft."] if self.replayed else []),
                *([f"{', '.join(compared)}."] if compared else []),
                *([] if self.watt_hours is None else [f"{self.watt_hours:.3g} Wh."]),
            ]
        )

    def _against(self, count: int) -> str:
        saved = self.seconds_per_step * (count - self.steps)
        return f"{abs(saved):.2f} s {'less' if saved > 0 else 'more'} than {count} steps"


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
        set_by=plan.set_by,
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
