"""What every kind of planner is, whatever it decides by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.setting import Setting


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Made for one setting, from renders at the counts of a grid."""

    name: str
    setting: Setting
    grid: tuple[int, ...]
    metrics: tuple[str, ...]
    backends: Mapping[str, str]
    """Metric -> the backend that measured it."""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def target_steps(self) -> int:
        """T: the highest count that was measured, where plans end. With curves its image counts as full quality."""
        return self.grid[-1]
