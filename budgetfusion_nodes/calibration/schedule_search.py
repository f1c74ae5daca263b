"""Finds the nested schedule of a model: commit point, and the shortest prefix whose target is as good as a dense run.

Knows no host: `render` turns sigmas into pictures of the same prompts and seeds, metrics turn pictures into numbers.
Only the commit point and the tail, which cannot change what a picture is measured by, are found by nearness to a longer
run. The prefix can, so its target is compared by metrics without a reference alone: a cheap target that looks like
itself is no saving.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.curves import FloatArray
from ..core.schedule import LARGEST_PREFIX, NestedSchedule, SigmaQuantile, Sigmas

Pictures = Any
"""What `render` gives for N renders (P prompts, the S seeds of each one after the other); only metrics look at it."""
Render = Callable[[Sigmas], Pictures]
"""sigmas [n + 1] -> pictures."""

BOOTSTRAP_TIMES = 1000
LEVELS = (0.025, 0.975)
COARSE_TAIL = 6
"""Steps of the tail that finds the commit point."""
PREFIXES = (3, 4, 5, 6, 8, 10, 13)
SHARES = (0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.92)
"""Places u of a scheduler where its commit point is looked for."""


@dataclass(frozen=True)
class Measure:
    """A metric without a reference."""

    values: Callable[[Pictures], FloatArray]
    """Pictures -> [N] numbers, or [N, D] features of a set."""
    tolerance: float
    """How much worse a target's mean may be, in the metric's own unit."""
    kind: str = "larger"
    """What is worse: `larger`; `other`, any departure of the mean from the dense runs'; `set`, features whose kernel
    distance to the dense runs of other seeds grows."""


@dataclass(frozen=True)
class Worsening:
    """How much worse than the dense target, with the 95 % interval over prompts; negative is better."""

    value: float
    low: float
    high: float
    accepted: bool
    """Not surely worse, and by no more than the tolerance."""


@dataclass(frozen=True)
class Trial:
    """One prefix."""

    schedule: NestedSchedule
    target_steps: int
    worsening: Mapping[str, Worsening]

    @property
    def accepted(self) -> bool:
        return all(found.accepted for found in self.worsening.values())


def commit_candidates(quantile: SigmaQuantile, shares: Sequence[float] = SHARES) -> tuple[float, ...]:
    """Sigmas at which a commit point is looked for, falling, to two digits."""
    return tuple(float(f"{sigma:.2g}") for sigma in quantile(shares))


def commit_runs(
    quantile: SigmaQuantile, dense: Sigmas, candidates: Sequence[float], tail_end: float = 1.0
) -> dict[float, Sigmas]:
    """Sigma -> sigmas of the run that tests it: the dense run's own down to the level next to it, then COARSE_TAIL
    steps. Rising, so that each run has its beginning in common with the one before and with the dense run."""
    runs: dict[float, Sigmas] = {}
    for sigma in sorted(candidates):
        place = max(1, int(np.abs(np.log(dense[:-1]) - np.log(sigma)).argmin()))
        level = float(dense[place])
        tail = NestedSchedule(1, level, tail_end).sigmas(1 + COARSE_TAIL, quantile)[1:]
        runs[level] = np.concatenate([dense[:place], tail]).astype(np.float32)
    return runs


def find_commit(
    render: Render,
    dense: Pictures,
    changed: Callable[[Pictures, Pictures], NDArray[np.bool_]],
    runs: Mapping[float, Sigmas],
    allowed: float = 0.02,
) -> tuple[float | None, dict[float, float]]:
    """(the greatest sigma of `commit_runs` from which on at most `allowed` of the renders change, sigma -> share).

    changed(pictures, dense): [N] whether the composition is another. None where no sigma holds: such a model keeps the
    stock schedule.
    """
    shares = {sigma: float(np.mean(changed(render(sigmas), dense))) for sigma, sigmas in runs.items()}
    settled: list[float] = []
    for sigma in sorted(shares):
        if shares[sigma] > allowed:
            break
        settled.append(sigma)
    return (settled[-1] if settled else None), shares


def find_prefix(
    render: Render,
    quantile: SigmaQuantile,
    dense: Pictures,
    start: NestedSchedule,
    measures: Mapping[str, Measure],
    prompts: int,
    *,
    prefixes: Sequence[int] = PREFIXES,
    target_tail: int = 40,
    most_steps: int = LARGEST_PREFIX,
    seed: int = 0,
    stop: bool = True,
) -> tuple[NestedSchedule | None, tuple[Trial, ...]]:
    """(`start` with the least accepted prefix, or None; every prefix tried). Refused is refused, whatever it saves.

    dense: pictures of the stock target; prompts: P, each with the same number of seeds. A prefix's target has
    `target_tail` steps of tail, and no more than `most_steps` in all. stop: at the first accepted.
    """
    before = {name: measure.values(dense) for name, measure in measures.items()}
    trials: list[Trial] = []
    for prefix in sorted(prefixes):
        schedule = replace(start, prefix_steps=prefix)
        steps = min(prefix + target_tail, most_steps)
        target = render(schedule.sigmas(steps, quantile))
        found = {
            name: worsening(measure, measure.values(target), before[name], prompts, seed)
            for name, measure in measures.items()
        }
        trials.append(Trial(schedule, steps, found))
        if trials[-1].accepted and stop:
            break
    accepted = [trial.schedule for trial in trials if trial.accepted]
    return (accepted[0] if accepted else None), tuple(trials)


def worsening(measure: Measure, target: FloatArray, dense: FloatArray, prompts: int, seed: int) -> Worsening:
    """Percentile bootstrap over prompts (Efron & Tibshirani 1993, chapter 13); all seeds of a prompt stay together."""
    rows = np.random.default_rng(seed).integers(0, prompts, (BOOTSTRAP_TIMES, prompts))
    if measure.kind == "set":
        statistic = _set_statistic(target, dense, prompts)
        value, drawn = statistic(np.arange(prompts)), np.array([statistic(row) for row in rows])
    else:
        difference = (np.asarray(target, float) - np.asarray(dense, float)).reshape(prompts, -1).mean(axis=1)
        value, drawn = float(difference.mean()), difference[rows].mean(axis=1)
    low, high = np.quantile(drawn, LEVELS).tolist()
    if measure.kind == "other" and value < 0:  # a departure to either side is the same
        value, low, high = -value, -high, -low
    return Worsening(value, low, high, low <= 0.0 and value <= measure.tolerance)


def _set_statistic(target: FloatArray, dense: FloatArray, prompts: int) -> Callable[[NDArray[np.int64]], float]:
    """MMD^2 to the dense runs of the other seeds, target less dense, for drawn prompts.

    Kernel (x . y / D + 1)^3 (KID, Binkowski et al. 2018). The first half of each prompt's seeds is compared with the
    second half of the dense runs; pairs of one prompt are left out, so that nothing is compared with itself.
    """
    t, d = (np.asarray(f, float).reshape(prompts, -1, np.shape(f)[-1]) for f in (target, dense))
    half = max(1, t.shape[1] // 2)
    ours, theirs, other = t[:, :half], d[:, :half], d[:, half:] if d.shape[1] > half else d[:, :half]
    gain = _pairs(ours, ours) - 2 * _pairs(ours, other) - _pairs(theirs, theirs) + 2 * _pairs(theirs, other)

    def statistic(rows: NDArray[np.int64]) -> float:
        apart = rows[:, None] != rows[None, :]
        return float(gain[rows][:, rows][apart].mean()) if apart.any() else 0.0

    return statistic


def _pairs(x: FloatArray, y: FloatArray) -> FloatArray:
    """[P, P] mean kernel between the pictures of two prompts; x: [P, S, D], y: [P, R, D]."""
    product = np.einsum("psd,qrd->pqsr", x, y) / x.shape[-1] + 1.0
    return (product**3).mean(axis=(2, 3))
