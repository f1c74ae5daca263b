"""Who gets how many steps, and what that does to held-out prompts.

An allocation gives each prompt (or each prompt and seed) one count. A Mixture draws one of several allocations; its
outcome is the expectation. Curves at counts between the rendered ones are interpolated in log n. `violation` is the
share of renders with Q(steps) < q; `violation_controlled` counts the tolerance rule (Q < q there or at a later count),
which is what risk control bounds. Shortfall is max_m e_m / s_m, so 1 - shortfall is quality.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from budgetfusion_nodes.core.curves import FloatArray, tail_max, tail_min

IndexArray = NDArray[np.int64]
Mixture = tuple[tuple[float, IndexArray], ...]
"""(share, index into counts): index is [N], one count a prompt, or [N, S], one a prompt and seed. Shares sum to 1."""


@dataclass(frozen=True)
class HeldOut:
    """Truth of the test prompts at every integer count C."""

    counts: IndexArray
    """[C]"""
    test: FloatArray
    """[N, S, C] measured max_m e_m / s_m; NaN for absent seeds."""

    @property
    def quality(self) -> FloatArray:
        return np.clip(1.0 - self.test, 0.0, 1.0)


# ----------------------------------------------------------------------------------------------------------- outcomes


def needed(counts: IndexArray, quality: FloatArray, q: float) -> FloatArray:
    """t*(q) of curves [..., C]; NaN where a curve is, the last count where none is enough. This is oracle A: hindsight
    for each prompt and seed."""
    tail = tail_min(quality)
    enough = tail >= q
    found = np.where(enough.any(axis=-1), counts[enough.argmax(axis=-1)], counts[-1])
    return np.where(np.isnan(tail[..., -1]), np.nan, found)


def per_prompt(held: HeldOut, index: IndexArray, q: float) -> dict[str, FloatArray]:
    """What an allocation does to each prompt, averaged over its seeds. index: [N] or [N, S]. Values: [N]."""
    at = at_index(held.test, index)  # [N, S]
    later = at_index(tail_min(held.quality), index)
    steps = np.broadcast_to(held.counts[index if index.ndim == 2 else index[:, None]], at.shape).astype(np.float64)
    return {
        "steps": seed_mean(steps, at),
        "violation": seed_mean(1.0 - at < q, at),
        "violation_controlled": seed_mean(later < q, at),
        "shortfall": seed_mean(at, at),
    }


def outcome(held: HeldOut, mixture: Mixture, q: float) -> dict[str, FloatArray]:
    """Expectation of `per_prompt` over the mixture's parts."""
    parts = [(share, per_prompt(held, index, q)) for share, index in mixture]
    return {key: np.sum([share * part[key] for share, part in parts], axis=0) for key in parts[0][1]}


def at_index(curves: FloatArray, index: IndexArray) -> FloatArray:
    """curves [N, S, C] at index [N] or [N, S]: [N, S]."""
    column = index[:, None, None] if index.ndim == 1 else index[..., None]
    return np.take_along_axis(curves, np.broadcast_to(column, (*curves.shape[:2], 1)), -1)[..., 0]


def seed_mean(values: NDArray[Any], reference: FloatArray) -> FloatArray:
    """Mean over the seeds that are present in `reference`. [N, S] -> [N]."""
    return np.nanmean(np.where(np.isnan(reference), np.nan, values), axis=1)


# -------------------------------------------------------------------------------------------------------- allocations


def planned_index(upper: FloatArray, theta: float) -> IndexArray:
    """Index of the planned count for each row: least n with u(n') <= theta for all n' >= n. [..., C] -> [...]."""
    enough = tail_max(upper) <= theta
    return np.where(enough.any(axis=-1), enough.argmax(axis=-1), upper.shape[-1] - 1)


def uniform(held: HeldOut, mean_steps: float) -> Mixture:
    """UNIFORM: each prompt draws one of two neighbouring counts so that the mean is exact."""
    low = int(np.clip(np.searchsorted(held.counts, mean_steps, side="right") - 1, 0, len(held.counts) - 2))
    share = mean_steps - held.counts[low]
    prompts = np.zeros(len(held.test), np.int64)
    return ((float(1.0 - share), prompts + low), (float(share), prompts + low + 1))


def permuted(held: HeldOut, index: IndexArray) -> Mixture:
    """PERMUTED: the planner's own step histogram, given to random prompts."""
    used, times = np.unique(index, return_counts=True)
    prompts = np.zeros(len(held.test), np.int64)
    return tuple((n / len(index), prompts + int(i)) for i, n in zip(used, times, strict=True))


def best_fixed(held: HeldOut, q: float, violation: float, kind: str = "violation_controlled") -> int:
    """The smallest count for all prompts that violates no more than `violation`."""
    prompts = np.zeros(len(held.test), np.int64)
    for i, count in enumerate(held.counts):
        if per_prompt(held, prompts + i, q)[kind].mean() <= violation + 1e-12:
            return int(count)
    return int(held.counts[-1])
