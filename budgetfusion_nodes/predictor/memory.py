"""Memory: measured curves of this prompt, and of prompts near it, correct what the planner predicts.

With y = log(shortfall + c), the planner's quantiles give a mean and a spread at every count; z is what was measured, in
those units. Of the variance of z the prompt holds the share h and the seed the rest, and two prompts at distance d are
correlated by h exp(-d^2 / (2 l^2)). A render's z given those remembered is then normal (Gaussian process regression,
Rasmussen & Williams 2006, eq. 2.25 and 2.26): k renders of one prompt are shrunk by k h / (1 + (k - 1) h), those of
farther prompts by more. The law only shapes the curves; what is guaranteed comes from memory_fit, which plans every
remembered render from the others and calibrates on that.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..core.curves import FloatArray
from ..core.messages import Message, message
from ..core.plan import QUALITY_RANGE, RememberedUse
from ..core.risk import RiskTable
from .memory_space import OFFSET, Kernel, Space, high_level, spread_of, standardised
from .prediction import Prediction

NEIGHBOURS = 24
"""Remembered renders that a plan looks at, at most; the nearest, so those of this prompt first."""
LEAST_SUPPORT = 0.1
"""Share of the variance that neighbours must explain at some count before they count as near."""
OWN = 1e-3
"""Squared distance below which two prompts are one: what rounding makes of a signature lies far below."""
SHOWN = 4
"""Renders of this prompt whose measured points are shown, the latest."""


@dataclass(frozen=True)
class Curves:
    """Remembered renders of one setting, schedule, target and set of backends; the oldest first."""

    grid: tuple[int, ...]
    """The planner's, [K]."""
    rows: NDArray[np.int64]
    """[J] what the store calls them."""
    prompts: NDArray[np.int64]
    """[J] row of `keys`."""
    seeds: NDArray[np.int64]
    """[J], as the store has them: 64 bits with a sign."""
    level: FloatArray
    """[J, K] worst shortfall over its scale; NaN where it was not measured."""
    median: FloatArray
    """[J, K] what the planner predicts for the prompt; NaN where nobody knows it."""
    high: FloatArray
    """[J, K]"""
    distance: FloatArray
    """[J] the planner's out-of-distribution score of the prompt; NaN where nobody knows it."""
    keys: NDArray[np.bytes_]
    """[P] digests of the conditionings."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def complete(self) -> NDArray[np.bool_]:
        """[J] whether a render was measured at every count."""
        return np.asarray(~np.isnan(self.level).any(axis=1))

    def take(self, rows: NDArray[np.bool_]) -> Curves:
        """Some renders, of the same prompts."""
        where = np.flatnonzero(rows)
        in_a_row = len(where) and where[-1] - where[0] + 1 == len(where)  # as after an eviction: a view, not a copy
        part = slice(where[0], where[-1] + 1) if in_a_row else where
        return replace(self, **{name: getattr(self, name)[part] for name in OF_RENDERS})

    def joined(self, fresh: Curves) -> tuple[Curves, NDArray[np.bool_]]:
        """(these and later ones, [P of fresh] which of its prompts are new)."""
        known = [np.flatnonzero(self.keys == key) for key in fresh.keys]
        new = np.array([not len(place) for place in known])
        added = iter(range(len(self.keys), len(self.keys) + int(new.sum())))
        place = np.array([int(p[0]) if len(p) else next(added) for p in known], np.int64)
        moved = replace(fresh, prompts=place[fresh.prompts])
        both = {name: np.concatenate([getattr(self, name), getattr(moved, name)]) for name in OF_RENDERS}
        return replace(self, **both, keys=np.concatenate([self.keys, fresh.keys[new]])), new


OF_RENDERS = ("rows", "prompts", "seeds", "level", "median", "high", "distance")
"""Fields of Curves with an entry for each render."""


@dataclass(frozen=True)
class Recalled:
    """A prediction with what memory knows."""

    prediction: Prediction
    thresholds: RiskTable | None
    """In place of the planner's; None where they hold."""
    own: int
    """Renders of this prompt that it comes from."""
    near: int
    """Renders of other prompts."""
    exact: bool = False
    """This very render was measured before."""
    points: tuple[tuple[int, float], ...] = ()
    """(steps, quality) measured of this prompt."""

    @property
    def used(self) -> bool:
        """Whether anything was corrected."""
        return bool(self.own or self.near)

    def told(self, steps: int, without: int) -> RememberedUse | None:
        """For the plan; None where nothing is remembered of this prompt and nothing was corrected."""
        if not (self.used or self.points or self.thresholds is not None):
            return None
        return RememberedUse(self.own, self.near, without, self._said(steps, without), self.points)

    def _said(self, steps: int, without: int) -> Message | None:
        counts = {"steps": steps, "without": without}
        if self.exact:
            return message("memory_exact", **counts)
        if self.own:
            return message("memory_own_one" if self.own == 1 else "memory_own", own=self.own, **counts)
        if self.near:
            return message("memory_near_one" if self.near == 1 else "memory_near", near=self.near, **counts)
        return None if self.thresholds is None else message("memory_drift", **counts)

    def knots(self, risk: float) -> tuple[tuple[float, float], ...] | None:
        """Thresholds to decide by; None: the planner's."""
        if self.exact:
            low = QUALITY_RANGE[0]
            return ((low, 1.0 - low), (1.0, 0.0))
        return None if self.thresholds is None else self.thresholds.thresholds(risk)


@dataclass(frozen=True)
class Memory:
    """What is remembered for one planner; made by memory_fit.fit_memory."""

    curves: Curves
    space: Space
    kernel: Kernel = field(default_factory=Kernel)
    own: RiskTable | None = None
    """Thresholds for prompts met before; None where they cannot guarantee the risk or save nothing."""
    near: RiskTable | None = None
    """The same for prompts near one met before."""
    new: RiskTable | None = None
    """For all others; None while the planner's own hold."""
    fitted: int = 0
    """Renders that space and kernel were made from; 0: none, so that only a very same render counts."""

    def updated(
        self, kept: NDArray[np.bool_], fresh: Curves | None = None, signatures: NDArray[np.float16] | None = None
    ) -> Memory:
        """Without some renders and with later ones, by the same kernel and thresholds. kept: [J]; signatures: [P, S] of
        the prompts of `fresh`."""
        curves = self.curves if kept.all() else self.curves.take(kept)
        if fresh is None or signatures is None:
            return replace(self, curves=curves)
        curves, new = curves.joined(fresh)
        return replace(self, curves=curves, space=self.space.joined(signatures[new]))

    def compacted(self) -> Memory:
        """Without prompts that no render is left of, in one piece."""
        used, place = np.unique(self.curves.prompts, return_inverse=True)
        if len(used) == len(self.curves.keys) and self.space.late is None:
            return self
        curves = replace(self.curves, prompts=place.astype(np.int64), keys=self.curves.keys[used])
        return replace(self, curves=curves, space=self.space.only(used))

    def recall(
        self,
        prediction: Prediction,
        signature: NDArray[np.float16],
        risk: float,
        key: str = "",
        seed: int | None = None,
    ) -> Recalled:
        """signature: of this prompt. key and seed: of the render at hand, where it may be one that was measured."""
        curves = self.curves
        squared = self.space.distances(self.space.place(signature)[None])[0].astype(np.float64)
        to_renders = squared[curves.prompts]
        own = np.flatnonzero(to_renders <= OWN)
        points = self._points(own)
        same = [
            j
            for j in own
            if seed is not None and curves.seeds[j] == seed and curves.keys[curves.prompts[j]] == key.encode()
        ]
        if same and not np.isnan(curves.level[same[-1]]).any():
            return Recalled(_measured(prediction, curves.level[same[-1]]), None, 1, 0, True, points)
        plain = Recalled(prediction, _guaranteeing(self.new, risk), 0, 0, points=points)
        if not self.kernel.share or _guaranteeing(self.own if len(own) else self.near, risk) is None:
            return plain
        chosen = nearest(to_renders, NEIGHBOURS)
        mean, explained, median, high = self._expected(prediction, to_renders, chosen)
        if explained.max() < LEAST_SUPPORT:
            return plain
        after = high_level(median, high, mean, explained)
        corrected = _corrected(prediction, mean, explained, after)
        count = int(np.isin(chosen, own).sum())
        table = self.own if len(own) else self.near
        return Recalled(corrected, table, count, len(chosen) - count, points=points)

    def _expected(
        self, prediction: Prediction, to_renders: FloatArray, chosen: NDArray[np.intp]
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        curves = self.curves
        median, high = (prediction.normalised[..., level].max(axis=1) for level in (1, 2))
        places = self.space.at(curves.prompts[chosen])
        between = ((places[:, None] - places[None]) ** 2).sum(axis=-1).astype(np.float64)
        z = standardised(curves.level[chosen], median, high)
        mean, explained = self.kernel.expected(z, to_renders[chosen], between)
        return mean, explained, median, high

    def _points(self, own: NDArray[np.intp]) -> tuple[tuple[int, float], ...]:
        found: list[tuple[int, float]] = []
        for row in own[-SHOWN:]:
            levels = self.curves.level[row]
            quality = np.clip(1.0 - levels, 0.0, 1.0)
            found += [(n, float(q)) for n, q in zip(self.curves.grid, quality, strict=True) if not np.isnan(q)]
        return tuple(found)


def nearest(to_renders: FloatArray, most: int) -> NDArray[np.intp]:
    """Rows of the `most` least finite distances [J], the latest first among equals, in ascending order of rows."""
    if len(to_renders) > 4 * most:  # sorting all of 10,000 would take a millisecond
        near = np.flatnonzero(to_renders <= np.partition(to_renders, most - 1)[most - 1])
        if len(near) < len(to_renders):
            return near[nearest(to_renders[near], most)]
    ranked = np.argsort(to_renders[::-1], kind="stable")[:most]
    rows = len(to_renders) - 1 - ranked
    return np.sort(rows[np.isfinite(to_renders[rows])])


def _guaranteeing(table: RiskTable | None, risk: float) -> RiskTable | None:
    """The table, where so many prompts can guarantee this risk."""
    return table if table is not None and table.enough_prompts(risk) else None


def _measured(prediction: Prediction, level: FloatArray) -> Prediction:
    """The measured curve in place of all quantiles; which metric sets it stays the predicted one."""
    old = prediction.normalised
    worst = old.max(axis=1, keepdims=True)  # [K, 1, 3]
    share = np.divide(old, worst, out=np.ones_like(old), where=worst > 0)
    return replace(prediction, normalised=share * level[:, None, None])


def _corrected(prediction: Prediction, mean: FloatArray, explained: FloatArray, high: FloatArray) -> Prediction:
    """Each quantile moved for all metrics alike, so that the worst metric's is as memory has it."""
    low, median, above = prediction.normalised.max(axis=1).T
    left = np.sqrt(1.0 - explained)
    centre = np.log(median + OFFSET) + spread_of(median, above) * mean
    below = (np.log(median + OFFSET) - np.log(low + OFFSET)) * left
    wanted = np.stack([np.exp(centre - below) - OFFSET, np.exp(centre) - OFFSET, high], axis=-1)  # [K, 3]
    wanted = np.where(explained[:, None] > 0, np.maximum(wanted, 0.0), np.stack([low, median, above], axis=-1))
    wanted = np.maximum.accumulate(wanted, axis=-1)
    wanted[-1] = 0.0
    worst = prediction.normalised.max(axis=1)
    factor = np.divide(wanted, worst, out=np.zeros_like(wanted), where=worst > 0)
    return replace(prediction, normalised=prediction.normalised * factor[:, None, :])
