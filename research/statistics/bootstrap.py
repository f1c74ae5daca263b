"""Bootstrap intervals over prompts. A prompt is drawn with everything that belongs to it: all seeds, all methods.

Percentile intervals (Efron & Tibshirani 1993, chapter 13). They hold the sampling error of the test prompts; the
calibration prompts and the fitted networks stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from budgetfusion_nodes.core.curves import FloatArray

TIMES = 1000
LEVELS = (0.025, 0.975)

Statistic = Callable[..., Any]
"""Takes arrays [..., N] and reduces the last axis."""


def interval(statistic: Statistic, seed: int, *values: FloatArray, times: int = TIMES) -> dict[str, float]:
    """statistic of values [N] each, with its 95 % interval; the same prompts are drawn for all of them (paired)."""
    drawn = draws(len(values[0]), seed, times)
    return with_levels(statistic(*values), statistic(*(v[drawn] for v in values)))


def with_levels(value: Any, drawn: Any) -> dict[str, float]:
    """A value with the 95 % interval of its draws; draws that are not defined are left out."""
    low, high = np.nanquantile(drawn, LEVELS)
    return {"value": float(value), "low": float(low), "high": float(high)}


def bootstrap(values: FloatArray, seed: int) -> dict[str, float]:
    """Mean over prompts with its 95 % percentile interval."""
    return interval(mean, seed, values)


def draws(count: int, seed: int, times: int = TIMES) -> NDArray[np.int64]:
    """[times, count] rows drawn with replacement."""
    return np.random.default_rng(seed).integers(0, count, (times, count))


def draw_weights(count: int, seed: int, times: int = TIMES) -> FloatArray:
    """[times, count] how often `draws` takes each row."""
    rows = draws(count, seed, times)
    return np.stack([np.bincount(row, minlength=count) for row in rows]).astype(np.float64)


def mean(values: FloatArray) -> Any:
    return values.mean(axis=-1)


def mean_difference(a: FloatArray, b: FloatArray) -> Any:
    return (a - b).mean(axis=-1)


def relative_difference(a: FloatArray, b: FloatArray) -> Any:
    """mean(a) / mean(b) - 1."""
    return a.mean(axis=-1) / b.mean(axis=-1) - 1.0


def cvar(values: FloatArray) -> Any:
    """Conditional value at risk: the mean of the largest tenth (at least one) of the values."""
    count = max(1, values.shape[-1] // 10)
    return np.sort(values, axis=-1)[..., -count:].mean(axis=-1)


def cvar_difference(a: FloatArray, b: FloatArray) -> Any:
    """Each side's own worst 10 % of the prompts."""
    return cvar(a) - cvar(b)
