"""How much of what a render needs the prompt explains."""

from __future__ import annotations

import numpy as np

from budgetfusion_nodes.core.curves import FloatArray

from .bootstrap import draws, with_levels

ROUNDING = 1e-12
"""A variance of logarithms below this is none."""


def variance_share(values: FloatArray) -> FloatArray:
    """Share of the variance that the prompt explains: the intraclass correlation ICC(1) of a one-way random-effects
    analysis of variance (Shrout & Fleiss 1979). values: [..., P, S]; NaN where nothing varies. It may be
    negative, which keeps it nearly unbiased."""
    seeds = values.shape[-1]
    between = seeds * values.mean(axis=-1).var(axis=-1, ddof=1)
    within = values.var(axis=-1, ddof=1).mean(axis=-1)
    whole = between + (seeds - 1) * within
    varies = whole > ROUNDING
    return np.where(varies, (between - within) / np.where(varies, whole, 1.0), np.nan)


def prompt_share(values: FloatArray) -> float:
    """`variance_share` of [P, S], at least 0; 0 where nothing varies."""
    return max(float(np.nan_to_num(variance_share(values))), 0.0)


def prompt_share_interval(values: FloatArray, seed: int) -> dict[str, float]:
    """With its 95 % bootstrap interval over prompts. values: [P, S], for instance log t*."""
    value, drawn = (np.nan_to_num(variance_share(v)) for v in (values, values[draws(len(values), seed)]))
    return {name: max(found, 0.0) for name, found in with_levels(value, drawn).items()}
