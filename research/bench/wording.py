"""How figures and their intervals are written in reports."""

from __future__ import annotations

import math
from collections.abc import Mapping


def number(interval: Mapping[str, float | None] | float | None, form: str = ".3f") -> str:
    """A value with its interval, or what there is of it."""
    if isinstance(interval, Mapping):
        if interval["value"] is None:
            return "n/a"
        value, low, high = (number(interval[key], form) for key in ("value", "low", "high"))
        return f"{value} ({low} to {high})"
    return "n/a" if interval is None or not math.isfinite(interval) else f"{interval:{form}}"


def share(value: Mapping[str, float | None] | float | None) -> str:
    return number(value, ".1%")
