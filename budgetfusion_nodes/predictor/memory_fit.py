"""What memory is made of: the kernel, and thresholds from planning every remembered render by the others.

Three kinds of prompts are calibrated apart (Mondrian, Vovk et al. 2005), because they are planned apart: prompts met
before (left out: the render itself), prompts near one met before and new ones (left out: all renders of the prompt).
Only the latest prompts count, so that the promise follows an artist who changes style.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import comb

import numpy as np
from numpy.typing import NDArray

from ..core.curves import FloatArray, all_counts, interpolate_log_n, tail_max
from ..core.plan import DEFAULT_QUALITY, DEFAULT_RISK, threshold_at
from ..core.risk import RiskTable, calibrate, critical_thetas
from .memory import LEAST_SUPPORT, NEIGHBOURS, Curves, Memory
from .memory_space import Kernel, Space, high_level, standardised

WINDOW = 120
"""Prompts that thresholds are calibrated on, the latest."""
SEEDS = 6
"""Renders of each of them, the latest."""
RECENT = (15, 30, 60)
"""Latest prompts that show whether the planner's own promise still holds for new ones: few see a change of style soon,
many see a small one."""
DOUBT = 0.02
"""Chance of as many violations among them as there were, below which it does not."""
SUSPICION = 0.2
"""The same for prompts that memory knows something of: it takes over, even where that takes more steps."""
FITTED = 150
"""Renders that the kernel is fitted to."""
SHARES = tuple(round(0.1 * step, 1) for step in range(1, 10))
LENGTHS = (0.1, 0.15, 0.25, 0.4, 0.6, 0.9)
PRIOR = (2.0, 4.0)
"""Beta law of h before anything is measured: most of what a render needs is the seed's."""


@dataclass(frozen=True)
class Trial:
    """Remembered renders [R], each planned from others."""

    row: NDArray[np.int64]
    """Of Curves."""
    neighbours: NDArray[np.int64]
    """[R, n] rows of Curves; those beyond what there are have distance inf."""
    apart: FloatArray
    """[R, n] squared distances."""
    between: FloatArray
    """[R, n, n]"""


def fit_memory(curves: Curves, planner: RiskTable) -> Memory:
    """curves: at least one; planner: the planner's own thresholds."""
    space = Space.of(curves.signatures)
    rows = _window(curves)
    if not len(rows):
        return Memory(curves, space, Kernel(), None, None, None)
    recent = _since_change(curves, rows, planner)
    new = None if recent is None else _table(curves, recent, curves.high[recent])
    again, apart = _trial(curves, space, rows, False), _trial(curves, space, rows, True)
    kernel = fit_kernel(curves, (again, apart))
    if not kernel.share:
        return Memory(curves, space, kernel, None, None, new)
    own = _group(curves, again, kernel, again.apart.min(axis=1) == 0.0, new or planner, by_render=True)
    near = _group(curves, apart, kernel, np.ones(len(rows), bool), new or planner)
    return Memory(curves, space, kernel, own, near, new)


def _window(curves: Curves) -> NDArray[np.int64]:
    """Rows whose plans are tried: of the latest WINDOW prompts the latest SEEDS complete ones that were predicted."""
    usable = np.flatnonzero(curves.complete & ~np.isnan(curves.median).any(axis=1))
    found: dict[int, list[int]] = {}
    for row in usable[::-1]:
        prompt = int(curves.prompts[row])
        if prompt not in found and len(found) == WINDOW:
            continue
        of_prompt = found.setdefault(prompt, [])
        if len(of_prompt) < SEEDS:
            of_prompt.append(int(row))
    return np.array(sorted(row for rows in found.values() for row in rows), np.int64)


def _trial(curves: Curves, space: Space, rows: NDArray[np.int64], whole_prompt: bool) -> Trial:
    """The nearest complete renders of each row but itself, or but all renders of its prompt."""
    others = np.flatnonzero(curves.complete)
    prompts, which = np.unique(curves.prompts[rows], return_inverse=True)
    squared = space.distances(space.places[prompts])[:, curves.prompts[others]]  # [W, J]
    squared[prompts[:, None] == curves.prompts[others][None]] = np.inf if whole_prompt else 0.0
    most = min(NEIGHBOURS + 1, len(others))
    near = np.argpartition(squared, most - 1, axis=1)[:, :most]  # [W, n + 1]: a row may be its own neighbour
    neighbours, apart = others[near[which]], np.take_along_axis(squared, near, axis=1)[which].astype(np.float64)
    apart[neighbours == rows[:, None]] = np.inf
    places = space.places[curves.prompts[neighbours]]  # [R, n, S]
    norms = (places * places).sum(axis=-1)
    between = norms[:, :, None] + norms[:, None, :] - 2.0 * np.einsum("rns,rms->rnm", places, places)
    return Trial(rows, neighbours, apart, np.maximum(between, 0.0).astype(np.float64))


def fit_kernel(curves: Curves, trials: tuple[Trial, ...]) -> Kernel:
    """The share and length that make the renders of `trials` likeliest, each given its neighbours (Vecchia 1988)."""
    best, found = -np.inf, Kernel()
    parts = [_sample(trial) for trial in trials]
    for share in SHARES:
        prior = (PRIOR[0] - 1) * np.log(share) + (PRIOR[1] - 1) * np.log(1 - share)
        for length in LENGTHS:
            kernel = Kernel(share, length)
            value = prior + sum(_likelihood(curves, part, kernel) for part in parts)
            if value > best:
                best, found = value, kernel
    alone = sum(_likelihood(curves, part, Kernel()) for part in parts)
    return found if best > alone else Kernel()


def _sample(trial: Trial) -> Trial:
    last = slice(-FITTED, None)
    return Trial(trial.row[last], trial.neighbours[last], trial.apart[last], trial.between[last])


def _likelihood(curves: Curves, trial: Trial, kernel: Kernel) -> float:
    """Log density of the renders' z given their neighbours', a mean over counts; the variance of z is free."""
    inner = slice(0, len(curves.grid) - 1)  # at the target nothing is left
    mean, explained = _expected(curves, trial, kernel)
    own = standardised(curves.level[trial.row], curves.median[trial.row], curves.high[trial.row])[:, inner]
    left = 1.0 - explained[:, None]
    off = (own - mean[:, inner]) ** 2 / left
    variance = np.maximum(off.mean(axis=0), 1e-6)  # [K - 1]
    return float(-0.5 * (np.log(variance)[None] + np.log(left) + off / variance).mean(axis=1).sum())


def _expected(curves: Curves, trial: Trial, kernel: Kernel) -> tuple[FloatArray, FloatArray]:
    """(mean z [R, K], explained share [R]) of each render from its neighbours."""
    absent = np.isinf(trial.apart)
    apart = np.where(absent, 1e9, trial.apart)  # so far away that it weighs nothing
    between = np.where(absent[:, :, None] | absent[:, None, :], 1e9, trial.between)
    between[:, np.arange(between.shape[1]), np.arange(between.shape[1])] = 0.0
    weights, explained = kernel.weights(apart, between)
    median, high = curves.median[trial.row, None], curves.high[trial.row, None]
    z = standardised(curves.level[trial.neighbours], median, high)  # [R, n, K]
    return np.einsum("rn,rnk->rk", weights, z), explained


def _group(
    curves: Curves,
    trial: Trial,
    kernel: Kernel,
    allowed: NDArray[np.bool_],
    otherwise: RiskTable,
    by_render: bool = False,
) -> RiskTable | None:
    """Thresholds for the renders that memory says something of; None where plans without memory, by the thresholds
    `otherwise`, keep the promise on them and take no more steps."""
    mean, explained = _expected(curves, trial, kernel)
    kept = allowed & (explained >= LEAST_SUPPORT)
    if not kept.any():
        return None
    rows = trial.row[kept]
    median, high = curves.median[rows], curves.high[rows]
    with_memory = high_level(median, high, mean[kept], explained[kept, None])
    table = _table(curves, rows, with_memory, by_render)
    saves = _mean_steps(curves, with_memory, table) < _mean_steps(curves, high, otherwise)
    broken = _broken(curves, rows, otherwise)
    kept_promise = at_least(int(broken.sum()), len(broken), DEFAULT_RISK) > SUSPICION
    return table if saves or not kept_promise else None


def _table(curves: Curves, rows: NDArray[np.int64], upper: FloatArray, by_render: bool = False) -> RiskTable:
    """Thresholds for these upper curves [R, K]. by_render: every render counts alike, as the next one of a prompt that
    comes again is most likely one of those that come often; else every prompt does."""
    counts = all_counts(curves.grid)
    found = interpolate_log_n(curves.grid, upper, counts)
    quality = np.clip(1.0 - interpolate_log_n(curves.grid, curves.level[rows], counts), 0.0, 1.0)
    prompts, which = np.unique(curves.prompts[rows], return_inverse=True)
    if by_render:
        return replace(calibrate(found, quality[:, None]), prompts=len(prompts))
    place = _place_among(which)
    shape = (len(prompts), int(place.max()) + 1, len(counts))
    all_upper, all_quality = np.zeros(shape), np.full(shape, np.nan)
    all_upper[which, place], all_quality[which, place] = found, quality
    return calibrate(all_upper, all_quality)


def _usual(table: RiskTable) -> float:
    """theta at the nodes' own quality and risk."""
    return threshold_at(table.thresholds(DEFAULT_RISK), DEFAULT_QUALITY)


def _mean_steps(curves: Curves, upper: FloatArray, table: RiskTable) -> float:
    """Planned from upper curves [R, K] by these thresholds."""
    counts = all_counts(curves.grid)
    enough = tail_max(interpolate_log_n(curves.grid, upper, counts)) <= _usual(table)
    enough[:, -1] = True
    return float(np.asarray(counts)[enough.argmax(axis=1)].mean())


def _holds(curves: Curves, rows: NDArray[np.int64], table: RiskTable) -> bool:
    """Whether plans without memory may well keep the promise of these thresholds on `rows`, the latest last: one
    render of each prompt."""
    broken = _broken(curves, _first(curves, rows), table)
    parts = [broken[-most:] for most in RECENT if len(broken) >= most]
    return all(at_least(int(part.sum()), len(part), DEFAULT_RISK) > DOUBT for part in parts)


def _first(curves: Curves, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """One row of each prompt, in the order of rows."""
    _, place = np.unique(curves.prompts[rows], return_index=True)
    return rows[np.sort(place)]


def _broken(curves: Curves, rows: NDArray[np.int64], table: RiskTable) -> NDArray[np.bool_]:
    """[R] whether the plan without memory stopped too early."""
    counts = all_counts(curves.grid)
    upper = interpolate_log_n(curves.grid, curves.high[rows], counts)
    quality = np.clip(1.0 - interpolate_log_n(curves.grid, curves.level[rows], counts), 0.0, 1.0)
    return critical_thetas(upper, quality[:, None], DEFAULT_QUALITY)[:, 0] <= _usual(table)


def _place_among(which: NDArray[np.intp]) -> NDArray[np.int64]:
    """0, 1, 2 ... for the first, second, third render of each prompt."""
    seen: dict[int, int] = {}
    place = np.zeros(len(which), np.int64)
    for index, prompt in enumerate(which.tolist()):
        place[index] = seen[prompt] = seen.get(prompt, -1) + 1
    return place


def _since_change(curves: Curves, rows: NDArray[np.int64], planner: RiskTable) -> NDArray[np.int64] | None:
    """One render of each of the latest prompts, taken as new, where the planner breaks its promise on them."""
    latest = _first(curves, rows)
    for most in RECENT:
        part = latest[-most:]
        if planner.enough_prompts(DEFAULT_RISK) and len(part) == most and not _holds(curves, part, planner):
            return part
    return None


def at_least(found: int, of: int, chance: float) -> float:
    """Probability of `found` or more among `of` independent ones of this chance."""
    return sum(comb(of, k) * chance**k * (1.0 - chance) ** (of - k) for k in range(found, of + 1))
