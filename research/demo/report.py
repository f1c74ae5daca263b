"""What the demo found out, as numbers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from research.shipped_models import EPS, ShippedModel


@dataclass(frozen=True)
class Row:
    """One prompt: the adaptive render beside the full-step render of the same seed."""

    prompt: str
    seed: int
    steps: int
    """Executed by Adaptive KSampler."""
    prefix_steps: int
    """Of these, the ones that every count begins with; 0 with the stock schedule."""
    steps_stock: int
    """What the planner of the stock schedule takes for the same quality."""
    quality_predicted: float | None
    """The plan's median prediction; None where the plan fell back to the full step count."""
    quality_measured: float | None
    """Measured by the Probe against the full-step image of the same schedule, on the planner's scale."""
    set_by: str | None
    """The metric that set the budget."""
    seconds: float
    """Budget Planner and Adaptive KSampler together, as if nothing had been taken from a draft."""
    seconds_target: float
    """The render at the target count, likewise."""
    notes: tuple[str, ...] = ()
    """What the node warned of, and why it fell back where it did. Printed, not in the report."""

    def missed(self, quality: float) -> bool:
        return self.quality_measured is not None and self.quality_measured < quality


@dataclass(frozen=True)
class Report:
    host_version: str
    target_steps: int
    rows: tuple[Row, ...]
    model: ShippedModel = EPS

    @property
    def mean_steps(self) -> float:
        return sum(row.steps for row in self.rows) / len(self.rows)

    @property
    def mean_steps_stock(self) -> float:
        return sum(row.steps_stock for row in self.rows) / len(self.rows)

    @property
    def setting(self) -> str:
        """Model, sampler and schedule."""
        return self.model.describe(max(row.prefix_steps for row in self.rows))

    @property
    def saved_steps_pct(self) -> float:
        return 100.0 * (1.0 - self.mean_steps / self.target_steps)

    @property
    def saved_seconds_pct(self) -> float:
        """Of the time for all full-step renders together."""
        target = sum(row.seconds_target for row in self.rows)
        return 100.0 * (1.0 - sum(row.seconds for row in self.rows) / target) if target > 0 else 0.0

    def reached(self, quality: float) -> tuple[int, int]:
        """(renders whose measured quality is at least `quality`, renders that were measured)."""
        measured = [row.quality_measured for row in self.rows if row.quality_measured is not None]
        return sum(value >= quality for value in measured), len(measured)

    def to_dict(self) -> dict[str, Any]:
        return {
            "host_version": self.host_version,
            "model": self.model.title,
            **self.model.setting,
            "target_steps": self.target_steps,
            "prompts": [{key: value for key, value in asdict(row).items() if key != "notes"} for row in self.rows],
            "mean_steps": self.mean_steps,
            "mean_steps_stock": self.mean_steps_stock,
            "saved_steps_pct": self.saved_steps_pct,
            "saved_seconds_pct": self.saved_seconds_pct,
        }

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def summary(self, quality: float) -> str:
        """The lines that the demo ends with."""
        reached, measured = self.reached(quality)
        lines: list[str] = []
        for row in self.rows:
            mark = "  (below the slider)" if row.missed(quality) else ""
            lines.append(
                f"{_count(row):>13}  (stock {row.steps_stock:>2})  quality {_number(row.quality_measured)} measured, "
                f"{_number(row.quality_predicted)} predicted  {row.prompt}{mark}"
            )
            lines.extend(f"{'':>11}{note}" for note in row.notes)
        lines.append(
            f"{self.setting}, in ComfyUI {self.host_version}: {self.mean_steps:.1f} steps on average in place "
            f"of {self.target_steps} ({self.saved_steps_pct:.1f} % fewer), {self.saved_seconds_pct:.1f} % of the "
            f"sampling time saved. Plans of the stock schedule take {self.mean_steps_stock:.1f}."
        )
        if measured:
            lines.append(f"{reached} of {measured} renders reached the wanted quality of {quality:.2f}.")
        else:
            lines.append("No quality could be measured: the plan fell back to the full step count.")
        return "\n".join(lines)


def _count(row: Row) -> str:
    if row.prefix_steps:
        return f"{row.prefix_steps} + {row.steps - row.prefix_steps} steps"
    return f"{row.steps} step{'' if row.steps == 1 else 's'}"


def _number(value: float | None) -> str:
    return "  - " if value is None else f"{value:.2f}"
