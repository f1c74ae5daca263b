"""One step count for all prompts from metrics that need no full-step image, with its uncertainty.

For samplers whose pictures never settle there is no full-step image to come near, and for models that get worse with
more steps (audio models, some finetunes) it is the wrong one. What is left is the level of a metric without a
reference, such as L-SNR or a classifier's errors, over many prompts: where it no longer changes, or where it is best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError
from .messages import message

FloatArray = NDArray[np.float64]

ERROR_RATE = 0.05
"""Of each decision, one-sided. "As good as" is a test for equivalence (Schuirmann 1987); "worse" is tested for every
earlier count, so its rate is shared among them (Bonferroni)."""
MARGIN_SHARE = 0.07
"""Levels nearer to the best than this share of the whole range count as equal to it: a quarter of a decibel with
euler_ancestral on Tiny Scenes, where two counts of one picture differ by half a decibel (docs/noisy_samplers.md)."""
FEWEST_PICTURES = 8
L_SNR_TOLERANCE = 1.0
"""dB. A count whose pictures have this much less L-SNR than those of the last is not better, whatever they mean. With
Tiny Scenes Flow the level moves by .6 dB over counts whose pictures come ever nearer (docs/calibration.md)."""


@dataclass(frozen=True)
class LevelDecision:
    """The count that the levels ask for."""

    steps: int
    """Least count that is as good as `best`."""
    best: int
    """Count with the highest mean level from which on nothing gets better for real."""
    falls_after_best: bool
    """Whether the last count is worse than `best` by more than the margin, with confidence."""
    settled: bool
    """False where the level still rises at the last count, or noise hides whether it does: then steps is the last."""
    level: tuple[float, ...]
    """Mean over pictures at each count."""
    margin: float


def decide_level(counts: Sequence[int], levels: ArrayLike) -> LevelDecision:
    """levels: [n, K], higher is better, n pictures that are paired over the K increasing counts, all finite.

    Pictures are independent (one a prompt). InputError for less than two counts or FEWEST_PICTURES pictures.
    """
    array = np.asarray(levels, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != len(counts) or len(counts) < 2 or len(array) < FEWEST_PICTURES:
        raise InputError(message("levels_shape", shape=str(array.shape), counts=len(counts), pictures=FEWEST_PICTURES))
    if not np.isfinite(array).all():
        raise InputError(message("levels_finite"))
    mean = array.mean(axis=0)
    margin = MARGIN_SHARE * float(mean.max() - mean.min())
    best = _best(array, mean, margin)
    last = len(counts) - 1
    # the least count from which on every one up to the best is as good as the best, with confidence
    first = best
    while first > 0 and _upper(array[:, best] - array[:, first - 1]) <= margin:
        first -= 1
    falls = best < last
    settled = falls or first < last
    return LevelDecision(
        counts[first] if settled else counts[-1], counts[best], falls, settled, tuple(mean.tolist()), margin
    )


def steady_from(counts: Sequence[int], levels: ArrayLike) -> int | None:
    """The least count from which on the level equals that of the last count in both directions, by more than chance;
    None where there is none. levels as in `decide_level`.

    Stricter than `decide_level`, where a higher level is as good: a picture that is smooth because it is unfinished
    may have a higher L-SNR than the finished one (docs/calibration.md).
    """
    margin = decide_level(counts, levels).margin
    array = np.asarray(levels, dtype=np.float64)
    last = first = len(counts) - 1
    while first > 0 and max(_upper(d := array[:, last] - array[:, first - 1]), _upper(-d)) <= margin:
        first -= 1
    return counts[first] if first < last else None


@dataclass(frozen=True)
class Fall:
    """Pictures get worse with more steps than `best`."""

    best: int
    last: int
    """The count that was to be the target."""
    drop: float
    """How much lower the mean level is at `last`."""
    pictures: int
    counts: tuple[int, ...]
    levels: tuple[tuple[float, float, float], ...]
    """(mean, low, high) at each count, with its two-sided 90 % interval."""


def find_fall(counts: Sequence[int], scores: ArrayLike, decibels: ArrayLike) -> Fall | None:
    """Where more steps make pictures worse, by what they mean and not by L-SNR alone: a smooth unfinished picture has
    more L-SNR than the finished one. None where they do not, where that is not certain, or where the scores tell
    nothing because picture and text encoder share no space.

    scores: [n, K] CLIP scores over those with other prompts (0 on average without a common space); decibels: [n, K]
    L-SNR. An earlier count is better when its score is, with ERROR_RATE shared by all counts, and its L-SNR is not
    lower by more than L_SNR_TOLERANCE. Of counts as good as the peak the last one is taken: the target moves least.
    """
    array, snr = np.asarray(scores, dtype=np.float64), np.asarray(decibels, dtype=np.float64)
    if len(array) < FEWEST_PICTURES:
        return None
    found = decide_level(counts, array)
    peak, last = list(counts).index(found.best), len(counts) - 1
    if not found.falls_after_best or _upper(-array[:, peak]) >= 0.0:
        return None
    best = max(i for i in range(peak, last) if found.level[i] >= found.level[peak] - found.margin)
    if -_upper(snr[:, best] - snr[:, last]) > L_SNR_TOLERANCE:
        return None
    drop = found.level[best] - found.level[last]
    return Fall(counts[best], counts[-1], drop, len(array), tuple(counts), level_intervals(array))


def level_intervals(levels: ArrayLike) -> tuple[tuple[float, float, float], ...]:
    """(mean, low, high) at each count: the mean over pictures [n, K] with its two-sided 90 % interval."""
    array = np.asarray(levels, dtype=np.float64)
    return tuple((float(c.mean()), -_upper(-c), _upper(c)) for c in array.T)


def _best(array: FloatArray, mean: FloatArray, margin: float) -> int:
    """The last count, unless an earlier one is better than it for real: then the earliest peak."""
    last = len(mean) - 1
    peak = int(mean.argmax())
    worse = peak < last and -_upper(array[:, last] - array[:, peak], ERROR_RATE / last) > margin
    return peak if worse else last


def _upper(differences: FloatArray, error_rate: float = ERROR_RATE) -> float:
    """Upper one-sided bound (Student's t) of the mean of paired differences [n]."""
    from scipy.special import stdtrit  # on use: planning never decides levels

    n = len(differences)
    error = float(differences.std(ddof=1)) / n**0.5
    return float(differences.mean()) + float(stdtrit(n - 1, 1.0 - error_rate)) * error
