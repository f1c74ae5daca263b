"""Nested schedules ("commit, then refine"): every step count begins with the same sigmas down to a commit point.

A scheduler is known by its quantile function Q: [0, 1] -> sigma, taken from its own sigmas for many steps. With u_c the
place of `sigma_commit`, a nested schedule of n steps is

    Q(u_c i / p),                 i = 0 .. p - 1       the prefix, the same for every n
    Q(u_c + (1 - u_c) W(v_j)),    v_j = j / (m - e)    the tail of m = n - p steps, j = 0 .. m - 1
    0

with e = `tail_end` and W the tail's warp. e = 1 ends on the scheduler's least sigma, as karras and normal do; e = 0
stops one spacing before it, as simple and sgm_uniform do. Tails of 2 and 3 steps use e = 0 and half of it: a point on
the least sigma would waste one of so few (measured in docs/nested_schedules.md). Nothing here knows a model: eps, v and
flow differ in Q alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .curves import FloatArray
from .errors import InputError
from .messages import Message, message, verbatim

Sigmas = NDArray[np.float32]
"""[steps + 1], strictly decreasing, the last 0."""

STOCK = "stock"
"""The scheduler's own sigmas for each count, as KSampler has them."""
NESTED = "nested"
LARGEST_SIGMA = 1e6
LARGEST_PREFIX = 1000
LARGEST_WARP = 65
FULL_DENOISE = 0.9999
"""From here on the host too starts at the scheduler's first sigma."""
EDGE = 1e-9


@dataclass(frozen=True)
class SigmaQuantile:
    """Q of one scheduler and model: piecewise linear in log sigma between the sigmas that the scheduler gave."""

    levels: tuple[float, ...]
    """sigma_max down to the least positive sigma, strictly decreasing."""
    shares: tuple[float, ...]
    """u in [0, 1] of each, strictly increasing."""

    @classmethod
    def from_sigmas(cls, sigmas: ArrayLike) -> SigmaQuantile:
        """sigmas: [N + 1] of a scheduler asked for many steps, ending in 0; how many it gave does not matter, and a
        sigma that it repeats counts once. InputError where fewer than two positive levels are left or they rise."""
        values = np.asarray(sigmas, dtype=np.float64).reshape(-1)
        positive = values[values > 0]
        kept = np.concatenate([[True], np.diff(positive) != 0]) if positive.size else np.zeros(0, bool)
        levels = positive[kept]
        if levels.size < 2 or not np.isfinite(levels).all() or (np.diff(levels) > 0).any():
            raise InputError(message("scheduler_unusable"))
        shares = np.flatnonzero(kept) / (positive.size - 1)
        shares[-1] = 1.0  # where the last level is the repeated one
        return cls(tuple(levels.tolist()), tuple(shares.tolist()))

    @cached_property
    def _arrays(self) -> tuple[FloatArray, FloatArray]:
        return np.log(np.asarray(self.levels)), np.asarray(self.shares)

    def __call__(self, shares: ArrayLike) -> FloatArray:
        """sigma at each u; outside [0, 1] that of the nearer end."""
        logs, known = self._arrays
        return np.exp(np.interp(np.asarray(shares, dtype=np.float64), known, logs))

    def share(self, sigma: float) -> float:
        """u in [0, 1] of a sigma; outside the levels that of the nearer end."""
        logs, known = self._arrays
        return float(np.interp(-math.log(sigma), -logs, known))


@dataclass(frozen=True)
class NestedSchedule:
    """What is calibrated of a nested schedule; the rest is the scheduler's."""

    prefix_steps: int
    """p >= 1: steps from the first sigma to `sigma_commit`."""
    sigma_commit: float
    """Below it the composition no longer changes. In the model's own sigmas."""
    tail_end: float = 1.0
    """e in [0, 1]; see above."""
    tail_warp: tuple[float, ...] = ()
    """W at equal distances of v from 0 to 1, increasing from 0 to 1; empty: the scheduler's own spacing."""

    def __post_init__(self) -> None:
        warp = np.asarray(self.tail_warp or (0.0, 1.0), dtype=np.float64)
        sound = (
            1 <= self.prefix_steps <= LARGEST_PREFIX
            and 0.0 < self.sigma_commit <= LARGEST_SIGMA
            and 0.0 <= self.tail_end <= 1.0
            and warp.size <= LARGEST_WARP
            and _is_warp(warp)
        )
        if not sound:
            raise InputError(message("schedule_unreadable", schedule=self.to_text()))

    def sigmas(
        self, steps: int, quantile: SigmaQuantile, *, denoise: float = 1.0, discard_penultimate: bool = False
    ) -> Sigmas:
        """[steps + 1] float32, strictly decreasing, the last 0; [0] at denoise 0.

        denoise < 1 starts at Q(1 - denoise), for every count: above the commit point the prefix keeps its density,
        at or below it only the tail is left. discard_penultimate: the host's rule for some samplers, which are given
        one step more without its last positive sigma. With `steps` <= the prefix nothing is nested, and the
        scheduler's own spacing is used. InputError where the model has no such sigma.
        """
        if steps < 1:
            raise InputError(message("schedule_steps", steps=steps))
        if denoise <= 0.0:
            return np.zeros(0, dtype=np.float32)
        start, commit = _start(denoise), self.commit_share(quantile)
        prefix = self.prefix_at(start, commit)
        extra = 1 if discard_penultimate else 0
        if steps <= prefix:
            shares = start + (1.0 - start) * _even(steps, extra, self.tail_end)
        else:
            shares = np.concatenate([_prefix(prefix, start, commit), self._tail(steps - prefix, extra, start, commit)])
        return _ended(quantile(shares))

    def commit_share(self, quantile: SigmaQuantile) -> float:
        """u_c. InputError where sigma_commit lies outside the model's sigmas."""
        if not quantile.levels[-1] < self.sigma_commit < quantile.levels[0]:
            high, low = (f"{level:g}" for level in (quantile.levels[0], quantile.levels[-1]))
            said = message("schedule_out_of_range", sigma=f"{self.sigma_commit:g}", high=high, low=low)
            raise InputError(said)
        return quantile.share(self.sigma_commit)

    def shared_steps(self, quantile: SigmaQuantile, denoise: float = 1.0) -> int:
        """Steps that every count of a render at this denoise begins with. InputError as for `sigmas`."""
        return self.prefix_at(_start(denoise), self.commit_share(quantile))

    def prefix_at(self, start: float, commit: float) -> int:
        """Prefix steps of a render that starts at u = `start`: as dense as the whole prefix, 0 from `commit` on."""
        left = max(commit - start, 0.0) / commit
        return math.ceil(self.prefix_steps * left - EDGE)

    def _tail(self, steps: int, extra: int, start: float, commit: float) -> FloatArray:
        """u of the tail's points."""
        begin = max(start - commit, 0.0) / (1.0 - commit)
        knots = np.asarray(self.tail_warp or (0.0, 1.0))
        mass = np.linspace(0.0, 1.0, knots.size)
        first = float(np.interp(begin, knots, mass))
        end = self.tail_end * min(max((steps + extra - 2) / 2, 0.0), 1.0)
        places = np.interp(first + (1.0 - first) * _even(steps, extra, end), mass, knots)
        return commit + (1.0 - commit) * places

    def to_text(self) -> str:
        """As a Setting holds it: `nested 5@1.0`, and `end=` and `warp=` where they are not the default."""
        parts = [NESTED, f"{self.prefix_steps}@{self.sigma_commit!r}"]
        if self.tail_end != 1.0:
            parts.append(f"end={self.tail_end!r}")
        if self.tail_warp:
            parts.append("warp=" + ",".join(map(repr, self.tail_warp)))
        return " ".join(parts)

    @classmethod
    def from_text(cls, text: str) -> NestedSchedule | None:
        """Reads `to_text`; None for the stock schedule. InputError for anything else."""
        if text == STOCK:
            return None
        try:
            kind, where, *options = text.split(" ")
            prefix, sigma = where.split("@")
            given = dict(option.split("=") for option in options)
            warp = tuple(float(value) for value in given.pop("warp", "").split(",") if value)
            end = float(given.pop("end", "1.0"))
            if kind != NESTED or given:
                raise ValueError(text)
            return cls(int(prefix), float(sigma), end, warp)
        except ValueError:
            raise InputError(message("schedule_unreadable", schedule=text)) from None


def least_steps(schedule: str) -> int:
    """The fewest steps that a plan along a Setting's schedule may have: with a nested one, the prefix and a step."""
    nested = NestedSchedule.from_text(schedule)
    return 1 if nested is None else nested.prefix_steps + 1


def described(schedule: str) -> Message:
    """A schedule as an artist knows it; text that nobody can read as it is."""
    try:
        nested = NestedSchedule.from_text(schedule)
    except InputError:
        return verbatim(schedule)
    if nested is None:
        return message("schedule_stock")
    return message("schedule_nested", prefix=nested.prefix_steps, sigma=nested.sigma_commit)


def density_warp(shares: ArrayLike, speed: ArrayLike, exponent: float, knots: int = 17) -> tuple[float, ...]:
    """W of a tail whose points lie as densely as speed^exponent.

    shares: [N] increasing places in the tail, 0 to 1; speed: [N] >= 0, how fast the denoised prediction moves there.
    The inverse of the normalised cumulative density, at `knots` equal distances. Exponent 0 gives the identity.
    """
    places, density = np.asarray(shares, dtype=np.float64), np.asarray(speed, dtype=np.float64) ** exponent
    density = np.maximum(density, 1e-3 * density.max())  # a stretch without any movement still gets a point
    mass = np.concatenate([[0.0], np.cumsum(np.diff(places) * (density[1:] + density[:-1]) / 2)])
    warp = np.interp(np.linspace(0.0, mass[-1], knots), mass, places)
    warp = (warp - warp[0]) / (warp[-1] - warp[0])
    return tuple(np.round(warp, 6).tolist())


def _start(denoise: float) -> float:
    """u where a render at this denoise begins."""
    return 0.0 if denoise > FULL_DENOISE else 1.0 - denoise


def _prefix(steps: int, start: float, commit: float) -> FloatArray:
    return start + (commit - start) * np.arange(steps) / steps if steps else np.zeros(0)


def _even(steps: int, extra: int, end: float) -> FloatArray:
    """[steps] equal distances from 0; of `steps + extra` points the last ones are left out."""
    points = steps + extra
    return np.arange(steps) / (points - end) if points > 1 else np.zeros(1)


def _ended(levels: FloatArray) -> Sigmas:
    sigmas = np.append(levels, 0.0).astype(np.float32)
    if (np.diff(sigmas) >= 0).any():
        raise InputError(message("schedule_too_dense", steps=len(levels)))
    return sigmas


def _is_warp(warp: FloatArray) -> bool:
    ends = warp.size >= 2 and warp[0] == 0.0 and warp[-1] == 1.0
    return bool(ends and np.isfinite(warp).all() and (np.diff(warp) > 0).all())
