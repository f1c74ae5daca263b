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
    low, high = np.quantile(statistic(*(v[drawn] for v in values)), LEVELS)
    return {"value": float(statistic(*values)), "low": float(low), "high": float(high)}


def bootstrap(values: FloatArray, seed: int) -> dict[str, float]:
    """Mean over prompts with its 95 % percentile interval."""
    return interval(mean, seed, values)


def draws(count: int, seed: int, times: int = TIMES) -> NDArray[np.int64]:
    """[times, count] rows drawn with replacement."""
    return np.random.default_rng(seed).integers(0, count, (times, count))


def mean(values: FloatArray) -> Any:
    return values.mean(axis=-1)


def mean_difference(a: FloatArray, b: FloatArray) -> Any:
    return (a - b).mean(axis=-1)


def ratio_of_means(a: FloatArray, b: FloatArray) -> Any:
    """mean(a) / mean(b); 1 where both are 0, infinite where b alone is."""
    above, below = a.mean(axis=-1), b.mean(axis=-1)
    return _ratio(above, below)


def worst_tenth(values: FloatArray) -> Any:
    """Mean of the largest tenth (at least one) of the values."""
    count = max(1, values.shape[-1] // 10)
    return np.sort(values, axis=-1)[..., -count:].mean(axis=-1)


def worst_tenth_ratio(a: FloatArray, b: FloatArray) -> Any:
    """Each side's own worst tenth of the prompts."""
    return _ratio(worst_tenth(a), worst_tenth(b))


def _ratio(above: Any, below: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.divide(above, below)
    return np.where(np.isnan(found), 1.0, found)
