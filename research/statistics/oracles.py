"""Limits that know the truth. A: hindsight for each prompt and seed. B: for each prompt, its seeds averaged; the
ceiling of any rule that sees the prompt alone. C: by prompt, with the least mean shortfall at a given cost.

All of them are judged on the seeds they were chosen with, so B and C are optimistic where there are few seeds. Where
no whole allocation has exactly the wanted cost or misses, two are mixed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from budgetfusion_nodes.core.curves import FloatArray, tail_min

from .allocation import HeldOut, IndexArray, Mixture, outcome, planned_at_mean


def needed_steps(held: HeldOut, q: float) -> FloatArray:
    """t*(q) of each prompt and seed, [N, S]; NaN for absent seeds. This is oracle A."""
    return needed(held.counts, held.test_quality, q)


def needed(counts: IndexArray, quality: FloatArray, q: float) -> FloatArray:
    """t*(q) of curves [..., C]; NaN where a curve is."""
    tail = tail_min(quality)
    return np.where(np.isnan(tail[..., -1]), np.nan, counts[(tail >= q).argmax(axis=-1)])


def oracle_b(held: HeldOut, q: float) -> IndexArray:
    """Index of t*(q) of each prompt's seed-averaged quality: the ceiling of what a prompt can tell. [N]."""
    return (tail_min(np.nanmean(held.test_quality, axis=1)) >= q).argmax(axis=1)


def oracle_a_at_mean(held: HeldOut, mean_steps: float) -> Mixture:
    """t* of each prompt and seed, for the one quality at which the mean cost is `mean_steps`."""
    return planned_at_mean(held.counts, held.test, mean_steps)


def oracle_b_at_mean(held: HeldOut, mean_steps: float) -> Mixture:
    """t* of each prompt's mean curve, for the one quality at which the mean cost is `mean_steps`."""
    return planned_at_mean(held.counts, np.nanmean(held.test, axis=1), mean_steps)


def oracle_b_fewest_violations(held: HeldOut, q: float, mean_steps: float) -> Mixture:
    """The allocations by prompt with the fewest controlled violations at `mean_steps` on average. Steps that it
    does not need for that are spent at the target count, so that it costs what the others cost."""
    loss = _loss(held, q)

    def choose(price: float) -> IndexArray:
        return (price * held.counts + loss).argmin(axis=1)

    return _spent(held, _at_price(choose, lambda index: float(held.counts[index].mean()), mean_steps), mean_steps)


def oracle_b_at_violation(held: HeldOut, q: float, violation: float) -> dict[str, FloatArray]:
    """Fewest mean steps of any allocation by prompt whose controlled violation is at most `violation` (by Lagrange
    multiplier; it sees the seeds it is judged on, so it is optimistic)."""
    loss = _loss(held, q)

    def choose(price: float) -> IndexArray:
        return (held.counts + price * loss).argmin(axis=1)

    return outcome(held, _at_price(choose, lambda index: _mean_at(loss, index), violation), q)


def oracle_c(held: HeldOut, mean_steps: float) -> Mixture:
    """The allocations by prompt with the least mean shortfall at `mean_steps` on average."""
    shortfall = np.nanmean(held.test, axis=1)  # [N, C]

    def choose(price: float) -> IndexArray:
        return (price * held.counts + shortfall).argmin(axis=1)

    return _spent(held, _at_price(choose, lambda index: float(held.counts[index].mean()), mean_steps), mean_steps)


def _loss(held: HeldOut, q: float) -> FloatArray:
    """Share of each prompt's seeds that miss q at each count or later, [N, C]."""
    tail = tail_min(held.test_quality)
    return np.nanmean(np.where(np.isnan(tail), np.nan, tail < q), axis=1)


def _at_price(
    choose: Callable[[float], IndexArray],
    value: Callable[[IndexArray], float],
    wanted: float,
    low: float = 1e-9,
    high: float = 1e9,
) -> Mixture:
    """The allocations whose value, which falls with the price, is `wanted`: both ends of the price where it jumps over
    it are optimal there, and so is each mix of them. One of `low` or `high` alone where no price comes that far."""
    dear, cheap = choose(low), choose(high)
    if value(dear) <= wanted:
        return ((1.0, dear),)
    for _ in range(60):
        middle = float(np.sqrt(low * high))
        found = choose(middle)
        if value(found) <= wanted + 1e-12:
            cheap, high = found, middle
        else:
            dear, low = found, middle
    above, below = value(dear), value(cheap)
    share = float(np.clip((wanted - below) / (above - below), 0.0, 1.0)) if above > below else 0.0
    return ((share, dear), (1.0 - share, cheap))


def _spent(held: HeldOut, mixture: Mixture, mean_steps: float) -> Mixture:
    """With what is left of the budget at the target count, where every curve ends at 0."""
    steps = sum(share * float(held.counts[index].mean()) for share, index in mixture)
    if mean_steps - steps <= 1e-9:
        return mixture
    share = min(1.0, (mean_steps - steps) / (float(held.counts[-1]) - steps))
    last = np.full(len(held.test), len(held.counts) - 1)
    return (*(((1.0 - share) * part, index) for part, index in mixture), (share, last))


def _mean_at(values: FloatArray, index: IndexArray) -> float:
    return float(np.take_along_axis(values, index[:, None], 1).mean())
