"""What memory is made of: the kernel, and thresholds from planning every remembered render by the others.

Three kinds of prompts are calibrated apart (Mondrian, Vovk et al. 2005), because they are planned apart: prompts met
before (left out: the render itself), prompts near one met before and new ones (left out: all renders of the prompt).
Only the latest prompts count, so that the guarantee follows an artist who changes style.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from ..core.curves import FloatArray, all_counts, interpolate_log_n, tail_max
from ..core.plan import DEFAULT_QUALITY, DEFAULT_RISK, threshold_at
from ..core.risk import RiskTable, calibrate, capped_theta, critical_thetas
from .memory import LEAST_SUPPORT, NEIGHBOURS, Curves, Memory
from .memory_drift import SHORT, beginning, since_change
from .memory_space import Kernel, Space, high_level, standardised

WINDOW = 120
"""Prompts that thresholds are calibrated on, the latest."""
SEEDS = 6
"""Renders of each of them, the latest."""
FITTED = 150
"""Renders that the kernel is fitted to."""
SHARES = tuple(round(0.1 * step, 1) for step in range(1, 10))
LENGTHS = (0.1, 0.15, 0.25, 0.4, 0.6, 0.9)
NEAR_PROMPTS = 19
"""Of which thresholds for near ones are made: with fewer they are stricter by more than new prompts gain."""
ABSENT = 1e9
"""A squared distance at which nothing weighs."""
TURNS = 2
"""Of fitting the length and the share."""
PRIOR = (2.0, 4.0)
"""Beta law of h before anything is measured: most of what a render needs is the seed's."""


@dataclass(frozen=True)
class Trial:
    """Remembered renders [R], each planned from others."""

    row: NDArray[np.int64]
    """Of Curves."""
    apart: FloatArray
    """[R, n] squared distances of its neighbours; ABSENT beyond what there are."""
    between: FloatArray
    """[R, n, n]"""
    known: FloatArray
    """[R, n, K] the neighbours' z, in units of what was predicted for the render."""
    z: FloatArray
    """[R, K] its own."""

    def last(self, most: int) -> Trial:
        return Trial(*(getattr(self, field.name)[-most:] for field in fields(self)))


def fit_memory(curves: Curves, signatures: NDArray[np.float16], planner: RiskTable) -> Memory:
    """curves: at least one; signatures: [P, S] of their prompts; planner: the planner's own thresholds."""
    memory = Memory(curves, Space.of(signatures), fitted=len(curves))
    rows = _window(curves)
    if not len(rows):
        return memory
    trials = _trial(memory, rows, False), _trial(memory, rows, True)
    return _with_thresholds(replace(memory, kernel=fit_kernel(trials)), rows, trials, planner)


def refit(memory: Memory, planner: RiskTable) -> Memory:
    """The same space and kernel with thresholds from the latest renders."""
    rows = _window(memory.curves)
    if not len(rows):
        return memory
    return _with_thresholds(memory, rows, (_trial(memory, rows, False), _trial(memory, rows, True)), planner)


def _with_thresholds(
    memory: Memory, rows: NDArray[np.int64], trials: tuple[Trial, Trial], planner: RiskTable
) -> Memory:
    """rows: of _window, at least one; trials: without the render itself, without its prompt."""
    curves, kernel, (again, apart) = memory.curves, memory.kernel, trials
    latest = _since_change(curves, rows, planner)
    new = None if latest is None else since_change(_measured(curves, latest), planner)
    if not kernel.share:
        return replace(memory, own=None, near=None, new=new)
    counted = np.ones(len(rows), bool) if latest is None else np.isin(curves.prompts[rows], curves.prompts[latest])
    met = counted & (again.apart.min(axis=1) == 0.0)
    own = _group(curves, again, kernel, met, planner, new, by_render=True)
    near = _group(curves, apart, kernel, counted, planner, new)
    return replace(memory, own=own, near=near, new=new)


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


def _trial(memory: Memory, rows: NDArray[np.int64], whole_prompt: bool) -> Trial:
    """The nearest complete renders of each row but itself, or but all renders of its prompt."""
    curves, space = memory.curves, memory.space
    others = np.flatnonzero(curves.complete)
    prompts, which = np.unique(curves.prompts[rows], return_inverse=True)
    squared = space.distances(space.at(prompts))[:, curves.prompts[others]]  # [W, J]
    squared[prompts[:, None] == curves.prompts[others][None]] = np.inf if whole_prompt else 0.0
    most = min(NEIGHBOURS + 1, len(others))
    near = np.argpartition(squared, most - 1, axis=1)[:, :most]  # [W, n + 1]: a row may be its own neighbour
    neighbours, apart = others[near[which]], np.take_along_axis(squared, near, axis=1)[which].astype(np.float64)
    absent = np.isinf(apart) | (neighbours == rows[:, None])
    places = space.at(curves.prompts[neighbours])  # [R, n, S]
    norms = (places * places).sum(axis=-1)
    between = norms[:, :, None] + norms[:, None, :] - 2.0 * np.einsum("rns,rms->rnm", places, places)
    between = np.where(absent[:, :, None] | absent[:, None, :], ABSENT, np.maximum(between, 0.0).astype(np.float64))
    between[:, np.arange(between.shape[1]), np.arange(between.shape[1])] = 0.0
    median, high = curves.median[rows], curves.high[rows]
    known = standardised(curves.level[neighbours], median[:, None], high[:, None])
    own = standardised(curves.level[rows], median, high)
    return Trial(rows, np.where(absent, ABSENT, apart), between, known, own)


def fit_kernel(trials: tuple[Trial, ...]) -> Kernel:
    """The share and length that make the renders of `trials` likeliest, each given its neighbours (Vecchia 1988), by
    turns."""
    parts = [trial.last(FITTED) for trial in trials]

    def value(kernel: Kernel) -> float:
        prior = (PRIOR[0] - 1) * np.log(kernel.share) + (PRIOR[1] - 1) * np.log(1 - kernel.share)
        return float(prior + sum(_likelihood(part, kernel) for part in parts))

    found = Kernel(SHARES[len(SHARES) // 2])
    for _ in range(TURNS):
        found = max((replace(found, length=length) for length in LENGTHS), key=value)
        found = max((replace(found, share=share) for share in SHARES), key=value)
    alone = sum(_likelihood(part, Kernel()) for part in parts)
    return found if value(found) > alone else Kernel()


def _likelihood(trial: Trial, kernel: Kernel) -> float:
    """Log density of the renders' z given their neighbours', a mean over counts; the variance of z is free."""
    mean, explained = _expected(trial, kernel)
    left = 1.0 - explained[:, None]
    off = ((trial.z - mean) ** 2 / left)[:, :-1]  # at the target nothing is left
    variance = np.maximum(off.mean(axis=0), 1e-6)  # [K - 1]
    return float(-0.5 * (np.log(variance)[None] + np.log(left) + off / variance).mean(axis=1).sum())


def _expected(trial: Trial, kernel: Kernel) -> tuple[FloatArray, FloatArray]:
    """(mean z [R, K], explained share [R]) of each render from its neighbours."""
    weights, explained = kernel.weights(trial.apart, trial.between)
    return np.matmul(weights[:, None], trial.known)[:, 0], explained


def _group(
    curves: Curves,
    trial: Trial,
    kernel: Kernel,
    allowed: NDArray[np.bool_],
    planner: RiskTable,
    new: RiskTable | None,
    by_render: bool = False,
) -> RiskTable | None:
    """Thresholds for the renders that memory says something of; None where the planner's own keep the guarantee on them
    and plans without memory take no more steps. new: in place of the planner's, after a change."""
    mean, explained = _expected(trial, kernel)
    kept = allowed & (explained >= LEAST_SUPPORT)
    if not kept.any():
        return None
    rows = trial.row[kept]
    median, high = curves.median[rows], curves.high[rows]
    with_memory = high_level(median, high, mean[kept], explained[kept, None])
    table = _table(curves, rows, with_memory, by_render)
    if new is not None or SHORT.beginning(_broken(curves, rows, planner)) is not None:
        return table
    if not by_render and table.prompts < NEAR_PROMPTS:
        return None
    alone = _as_the_planners(_laid_out(curves, rows, high, by_render), planner.prompts)
    return table if _mean_steps(curves, with_memory, _usual(table)) < _mean_steps(curves, high, alone) else None


def _table(curves: Curves, rows: NDArray[np.int64], upper: FloatArray, by_render: bool = False) -> RiskTable:
    """Thresholds for these upper curves [R, K]. by_render: every render counts alike, as the next one of a prompt that
    comes again is most likely one of those that come often; else every prompt does."""
    found = calibrate(*_laid_out(curves, rows, upper, by_render))
    return replace(found, prompts=len(np.unique(curves.prompts[rows])))


def _laid_out(
    curves: Curves, rows: NDArray[np.int64], upper: FloatArray, by_render: bool
) -> tuple[FloatArray, FloatArray]:
    """(upper, measured quality) [N, S, C]: a row for each prompt or, `by_render`, each render."""
    counts = all_counts(curves.grid)
    found = interpolate_log_n(curves.grid, upper, counts)
    quality = np.clip(1.0 - interpolate_log_n(curves.grid, curves.level[rows], counts), 0.0, 1.0)
    if by_render:
        return found[:, None], quality[:, None]
    prompts, which = np.unique(curves.prompts[rows], return_inverse=True)
    place = _place_among(which)
    shape = (len(prompts), int(place.max()) + 1, len(counts))
    all_upper, all_quality = np.zeros(shape), np.full(shape, np.nan)
    all_upper[which, place], all_quality[which, place] = found, quality
    return all_upper, all_quality


def _as_the_planners(laid_out: tuple[FloatArray, FloatArray], prompts: int) -> float:
    """theta at the nodes' own quality and risk, with as many too short as the planner's own for its `prompts` allow.

    Plans with memory are compared with this, and not with the planner's own: both thresholds come from the same
    renders, so that luck with these moves both alike. Where plans are chosen for being shorter than others of other
    renders, they are chosen for lax thresholds, and more than the risk are too short.
    """
    critical = critical_thetas(*laid_out, DEFAULT_QUALITY)
    share = (DEFAULT_RISK * (prompts + 1) - 1.0) / max(prompts, 1)
    rows = len(critical)
    return capped_theta(critical, DEFAULT_QUALITY, (rows * share + 1.0) / (rows + 1))


def _usual(table: RiskTable) -> float:
    """theta at the nodes' own quality and risk."""
    return threshold_at(table.thresholds(DEFAULT_RISK), DEFAULT_QUALITY)


def _mean_steps(curves: Curves, upper: FloatArray, theta: float) -> float:
    """Planned from upper curves [R, K]."""
    counts = all_counts(curves.grid)
    enough = tail_max(interpolate_log_n(curves.grid, upper, counts)) <= theta
    enough[:, -1] = True
    return float(np.asarray(counts)[enough.argmax(axis=1)].mean())


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
    """One render of each prompt since the planner's guarantee holds no more, taken as new; None where it holds."""
    latest = _first(curves, rows)
    with np.errstate(invalid="ignore"):
        far = curves.distance[latest] > 1.0
    place = beginning(far, _broken(curves, latest, planner))
    return None if place is None else latest[place:]


def _measured(curves: Curves, rows: NDArray[np.int64]) -> RiskTable:
    """Thresholds for plans without memory, from these renders."""
    return _table(curves, rows, curves.high[rows])
