"""Finds the nested schedule of a model: commit point, and a short prefix whose target is as good as a dense run.

Knows no host: `render` turns sigmas into pictures of the same prompts and seeds, metrics turn pictures into numbers.
Only the commit point and the tail, which cannot change what a picture is measured by, are found by nearness to a longer
run. The prefix can, so its target is compared by metrics without a reference alone: a cheap target that looks like
itself is no saving.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.curves import FloatArray
from ..core.schedule import LARGEST_PREFIX, NestedSchedule, SigmaQuantile, Sigmas

Pictures = Any
"""What `render` gives for N renders (P prompts, the S seeds of each one after the other); only metrics look at it."""
Render = Callable[[Sigmas], Pictures]
"""sigmas [n + 1] -> pictures."""

LEVEL = 0.975
"""Of each end of an interval."""
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
    tolerance: float

    @property
    def accepted(self) -> bool:
        """Shown to be not worse by more than the tolerance (non-inferiority): the bad end of the interval is within it.
        That nothing was seen is no evidence where few pictures would show nothing."""
        return self.high <= self.tolerance


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
    stop: bool = True,
) -> tuple[NestedSchedule | None, tuple[Trial, ...]]:
    """(`start` with the prefix to take, or None; every prefix tried, rising). Refused is refused, whatever it saves.

    Taken is the first accepted prefix after another accepted one: of prefixes that are too short, chance accepts one in
    a while, hardly two in a row, and a step too many costs less than a worse target.

    dense: pictures of the stock target; prompts: P >= 3, each with the same number of seeds. A prefix's target has
    `target_tail` steps of tail, and no more than `most_steps` in all. stop: at the one to take.
    """
    before = {name: measure.values(dense) for name, measure in measures.items()}
    trials: list[Trial] = []
    for prefix in sorted(prefixes):
        schedule = replace(start, prefix_steps=prefix)
        steps = min(prefix + target_tail, most_steps)
        target = render(schedule.sigmas(steps, quantile))
        found = {
            name: worsening(measure, measure.values(target), before[name], prompts)
            for name, measure in measures.items()
        }
        trials.append(Trial(schedule, steps, found))
        if stop and _taken(trials) is not None:
            break
    return _taken(trials), tuple(trials)


def _taken(trials: Sequence[Trial]) -> NestedSchedule | None:
    found = (later.schedule for one, later in pairwise(trials) if one.accepted and later.accepted)
    return next(found, None)


def worsening(measure: Measure, target: FloatArray, dense: FloatArray, prompts: int) -> Worsening:
    """With Student's t interval over P prompts; all seeds of a prompt stay together."""
    from scipy.special import stdtrit  # on use: planning never judges a schedule

    if measure.kind == "set":
        value, error = _set_distance(target, dense, prompts)
    else:
        difference = (np.asarray(target, float) - np.asarray(dense, float)).reshape(prompts, -1).mean(axis=1)
        value, error = float(difference.mean()), float(difference.std(ddof=1)) / prompts**0.5
    if measure.kind == "other":  # a departure to either side is the same
        value = abs(value)
    half = float(stdtrit(prompts - 1, LEVEL)) * error
    return Worsening(value, value - half, value + half, measure.tolerance)


def _set_distance(target: FloatArray, dense: FloatArray, prompts: int) -> tuple[float, float]:
    """(MMD^2 to the dense runs of the other seeds, target less dense; its standard error over prompts).

    Kernel (x . y / D + 1)^3 (KID, Binkowski et al. 2018). The first half of each prompt's seeds is compared with the
    second half of the dense runs; pairs of one prompt are left out, so that nothing is compared with itself. That is a
    U statistic, whose variance for P prompts is 4 (P - 2) / (P (P - 1)) cov(h12, h13) + 2 / (P (P - 1)) var(h12)
    (Hoeffding 1948), both estimated from all pairs and triples of different prompts.
    """
    t, d = (np.asarray(f, float).reshape(prompts, -1, np.shape(f)[-1]) for f in (target, dense))
    half = max(1, t.shape[1] // 2)
    ours, theirs, other = t[:, :half], d[:, :half], d[:, half:] if d.shape[1] > half else d[:, :half]
    gain = _pairs(ours, ours) - 2 * _pairs(ours, other) - _pairs(theirs, theirs) + 2 * _pairs(theirs, other)
    gain = (gain + gain.T) / 2
    np.fill_diagonal(gain, 0.0)
    pairs = prompts * (prompts - 1)
    mean = gain.sum() / pairs
    rows, squares = gain.sum(axis=1), (gain**2).sum(axis=1)
    shared = (rows**2 - squares).sum() / (pairs * (prompts - 2)) - mean**2
    variance = (4 * (prompts - 2) * max(shared, 0.0) + 2 * (squares.sum() / pairs - mean**2)) / pairs
    return float(mean), float(max(variance, 0.0)) ** 0.5


def _pairs(x: FloatArray, y: FloatArray) -> FloatArray:
    """[P, P] mean kernel between the pictures of two prompts; x: [P, S, D], y: [P, R, D]."""
    product = np.einsum("psd,qrd->pqsr", x, y) / x.shape[-1] + 1.0
    return (product**3).mean(axis=(2, 3))
