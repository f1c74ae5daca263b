"""Curves over step counts: the grid, interpolation in log n, quality, and the tolerance rule.

Array conventions: `[..., K, M]` with K grid counts and M metrics in the order of METRICS; shortfall is >= 0 and
0 is the full-step image; quality is in [0, 1] and 1 is the full-step image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError
from .messages import message

FloatArray = NDArray[np.float64]

METRICS: tuple[str, ...] = ("l_snr", "d_sim", "i_clip")
DEFAULT_GRID: tuple[int, ...] = (2, 3, 4, 6, 8, 10, 13, 17, 22, 29, 38, 50)
MAX_COUNT = 1000  # the largest `steps` a stock KSampler accepts is 10000; beyond 1000 a sweep would not end


def validate_grid(grid: Sequence[int]) -> tuple[int, ...]:
    """The grid as a tuple of strictly increasing step counts in 1..1000, at least two; else InputError."""
    counts: list[int] = []
    for value in grid:
        if isinstance(value, bool) or int(value) != value:
            raise InputError(message("counts_not_whole", value=str(value)))
        counts.append(int(value))
    if len(counts) < 2:
        raise InputError(message("counts_too_few", n=len(counts)))
    if counts[0] < 1 or counts[-1] > MAX_COUNT:
        raise InputError(message("counts_range", limit=MAX_COUNT, low=counts[0], high=counts[-1]))
    for before, after in pairwise(counts):
        if after <= before:
            raise InputError(message("counts_order", before=before, after=after))
    return tuple(counts)


def parse_grid(text: str) -> tuple[int, ...]:
    """A grid typed by an artist: whole numbers separated by spaces, commas or semicolons."""
    words = [word for word in re.split(r"[\s,;]+", text.strip()) if word]
    for word in words:
        if not re.fullmatch(r"[0-9]{1,6}", word):
            raise InputError(message("counts_not_whole", value=word))
    return validate_grid([int(word) for word in words])


def all_counts(grid: Sequence[int]) -> tuple[int, ...]:
    """Every integer step count that the grid covers, from its smallest to its largest."""
    return tuple(range(grid[0], grid[-1] + 1))


def interpolate_log_n(grid: Sequence[int], values: ArrayLike, counts: Sequence[int]) -> FloatArray:
    """Monotone piecewise cubic in log n (Fritsch & Butland 1984, scipy's PCHIP).

    values: [..., K], finite. counts: step counts inside the grid's range. Returns [..., len(counts)]; exact on the
    grid, and it never leaves the range of the two neighbouring grid values.
    """
    from scipy.interpolate import PchipInterpolator  # on use: half of this module's callers never interpolate

    array = np.asarray(values, dtype=np.float64)
    if array.shape[-1:] != (len(grid),):
        raise InputError(f"curve: expected {len(grid)} values, one for each step count, got shape {array.shape}.")
    wanted = np.asarray(counts, dtype=np.float64)
    if wanted.size and (wanted.min() < grid[0] or wanted.max() > grid[-1]):
        raise InputError(
            f"step counts {wanted.min():g} to {wanted.max():g} leave the measured {grid[0]} to {grid[-1]}."
        )
    if not np.isfinite(array).all():
        raise InputError("curve: it holds values that are not finite. Measure it again.")
    log_n = np.log(np.asarray(grid, dtype=np.float64))
    # log(T) can differ in the last bit between the two calls on some builds: keep it inside
    at = np.clip(np.log(wanted), log_n[0], log_n[-1])
    curve = np.array(PchipInterpolator(log_n, array, axis=-1)(at), dtype=np.float64)
    for position, count in enumerate(counts):
        if count in grid:  # e(T) must be 0 and not 1e-17: thresholds may be 0
            curve[..., position] = array[..., tuple(grid).index(count)]
    return curve


def normalised(shortfall: ArrayLike, scale: ArrayLike) -> FloatArray:
    """e_m(n) / s_m. shortfall: [..., K, M]; scale: [M], > 0. Returns [..., K, M]."""
    scales = np.asarray(scale, dtype=np.float64)
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        raise InputError(f"scale: expected positive numbers, one for each metric, got {scales.tolist()}.")
    return np.asarray(shortfall, dtype=np.float64) / scales


def worst(shortfall: ArrayLike, scale: ArrayLike) -> FloatArray:
    """max_m e_m(n) / s_m: the normalised shortfall that sets the budget. [..., K, M] -> [..., K]."""
    return normalised(shortfall, scale).max(axis=-1)


def quality(shortfall: ArrayLike, scale: ArrayLike) -> FloatArray:
    """Q(n) = 1 - max_m e_m(n) / s_m, clipped to [0, 1]. [..., K, M] -> [..., K]."""
    return np.clip(1.0 - worst(shortfall, scale), 0.0, 1.0)


def limiting_metric(shortfall: ArrayLike, scale: ArrayLike) -> NDArray[np.intp]:
    """Index of the metric that attains the max of `quality`. [..., K, M] -> [..., K]."""
    return normalised(shortfall, scale).argmax(axis=-1)


def tail_min(values: ArrayLike) -> FloatArray:
    """min over n' >= n along the last axis: a lucky dip does not count."""
    return np.minimum.accumulate(np.asarray(values, dtype=np.float64)[..., ::-1], axis=-1)[..., ::-1]


def tail_max(values: ArrayLike) -> FloatArray:
    """max over n' >= n along the last axis."""
    return -tail_min(-np.asarray(values, dtype=np.float64))
