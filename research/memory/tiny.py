"""Memory on Tiny Scenes: prompts, their other seeds and their rephrasings, rendered along a nested schedule.

Scenes are dealt in folds. Planner, kernel and thresholds come from the other folds alone; of a scene that is judged,
only the renders that its kind may remember are added: other seeds of the prompt, another wording, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from budgetfusion_nodes.core.curves import METRICS, FloatArray, all_counts, interpolate_log_n
from budgetfusion_nodes.core.risk import RiskTable, calibrate
from budgetfusion_nodes.core.schedule import NestedSchedule
from budgetfusion_nodes.predictor.features import fit_out_of_distribution
from budgetfusion_nodes.predictor.memory import Curves, Memory
from budgetfusion_nodes.predictor.memory_fit import fit_memory
from budgetfusion_nodes.predictor.memory_space import Space, signature
from budgetfusion_nodes.predictor.planner import consider
from budgetfusion_nodes.predictor.prediction import Prediction
from budgetfusion_nodes.tiny_scenes.captions import describe
from research.statistics.allocation import needed
from research.sweeps.nested_study import Study
from research.sweeps.prompts import LARGEST_SEED, PromptList
from research.tiny_scenes_training.scene_check import scene_from_key

from .judging import Tally

FOLDS = 8
TAILS = (1, 2, 3, 4, 5, 6, 7, 8, 11, 46)
QUANTILES = (0.1, 0.5, 0.9)
WORDINGS = 50
"""Tries to say a scene in other words."""


@dataclass(frozen=True)
class Renders:
    """[J] renders of one list of prompts."""

    scene: NDArray[np.int64]
    """Which scene a render shows: equal in the list of rephrasings."""
    wording: int
    level: FloatArray
    """[J, K] worst shortfall over its scale."""
    signatures: NDArray[np.float16]
    """[J, S] of each render's prompt."""


def in_other_words(prompts: PromptList, seed: int = 0) -> PromptList:
    """The same scenes described anew, with other noise seeds; those whose words can only be the same are left out."""
    rng = np.random.default_rng(seed)
    found = []
    for prompt in prompts.prompts:
        texts = (describe(scene_from_key(prompt.key), rng) for _ in range(WORDINGS))
        text = next((text for text in texts if text != prompt.text), None)
        if text is not None:
            seeds = tuple(int(s) for s in rng.choice(LARGEST_SEED, len(prompt.seeds), replace=False))
            found.append(replace(prompt, text=text, seeds=seeds))
    return PromptList(tuple(found), {"rephrased": dict(prompts.source), "seed": seed})


def measured(
    study: Study, schedule: NestedSchedule, scale: FloatArray, wording: int, scenes: Sequence[int]
) -> tuple[tuple[int, ...], Renders]:
    """(grid, renders). scenes: of each prompt of the study."""
    grid = tuple(schedule.prefix_steps + tail for tail in TAILS)
    runs = [schedule.sigmas(count, study.quantile) for count in grid]
    study.prepare(runs)
    target = study.render(runs[-1])
    found = [(study.shortfall(study.render(run), target) / scale).max(axis=1) for run in runs]
    prompts = study.prompts.prompts
    encoded = study.renderer.encode([p.text for p in prompts])
    place = np.repeat(np.arange(len(prompts)), [len(p.seeds) for p in prompts])
    own = np.stack([signature(c[0][0][0], _pooled(c)) for c in encoded])
    return grid, Renders(np.asarray(scenes)[place], wording, np.stack(found, axis=1), own[place])


def _pooled(conditioning: object) -> torch.Tensor | None:
    pooled = conditioning[0][1].get("pooled_output")  # type: ignore[index]
    return None if pooled is None else pooled[0]


def judge(grid: tuple[int, ...], parts: Sequence[Renders], q: float, risk: float, seed: int = 0) -> dict[str, Tally]:
    """Kind of prompt -> tally over the scenes that are rendered in every wording (recurring and new: in any)."""
    scenes = np.unique(np.concatenate([part.scene for part in parts]))
    fold = dict(
        zip(scenes.tolist(), (np.random.default_rng(seed).permutation(len(scenes)) % FOLDS).tolist(), strict=True)
    )
    scene = np.concatenate([part.scene for part in parts])
    wording = np.concatenate([np.full(len(part.scene), part.wording) for part in parts])
    level = np.concatenate([part.level for part in parts])
    place = np.concatenate([part.signatures for part in parts])
    own_fold = np.array([fold[s] for s in scene.tolist()])
    found = {"recurring": Tally(), "rephrased": Tally(), "new": Tally()}
    for held in range(FOLDS):
        fitted = _fit(grid, scene, wording, level, place, np.flatnonzero(own_fold != held))
        for row in np.flatnonzero(own_fold == held).tolist():
            same = scene == scene[row]
            allowed = {
                "recurring": same & (wording == wording[row]),
                "rephrased": same & (wording != wording[row]),
                "new": np.zeros(len(scene), bool),
            }
            for kind, known in allowed.items():
                extra = np.flatnonzero(known & (np.arange(len(scene)) != row))
                if kind == "new" or len(extra):
                    _add(found[kind], fitted, scene, wording, level, place, row, extra, q, risk)
    return found


@dataclass(frozen=True)
class _Fitted:
    prediction: Prediction
    table: RiskTable
    memory: Memory
    rows: NDArray[np.intp]
    far: FloatArray


def _fit(
    grid: tuple[int, ...],
    scene: NDArray[np.int64],
    wording: NDArray[np.int64],
    level: FloatArray,
    place: NDArray[np.float16],
    rows: NDArray[np.intp],
) -> _Fitted:
    curves = np.quantile(level[rows], QUANTILES, axis=0).T  # [K, 3]
    curves = np.maximum.accumulate(curves[::-1], axis=0)[::-1] + 1e-4 * np.arange(len(grid))[::-1, None]
    prediction = Prediction(grid, ("worst",), (1.0,), np.asarray(curves[:, None], np.float64), 0.0)
    counts = all_counts(grid)
    upper = interpolate_log_n(grid, curves[:, 2], counts)
    quality = np.clip(1.0 - interpolate_log_n(grid, level[rows], counts), 0.0, 1.0)
    groups = [np.flatnonzero(scene[rows] == s) for s in np.unique(scene[rows])]
    seeds = np.full((len(groups), max(map(len, groups)), len(counts)), np.nan)
    for index, group in enumerate(groups):
        seeds[index, : len(group)] = quality[group]
    table = calibrate(np.tile(upper, (len(groups), 1)), seeds)
    far = _distances(place, rows)
    curves, signatures = _curves(prediction, scene, wording, level, place, far, rows)
    return _Fitted(prediction, table, fit_memory(curves, signatures, table), rows, far)


def _distances(place: NDArray[np.float16], rows: NDArray[np.intp]) -> FloatArray:
    """[J] out-of-distribution scores of all renders' prompts, made from those of `rows`."""
    own = torch.from_numpy(np.unique(place[rows], axis=0).astype(np.float32))
    own = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(0))]
    scorer = fit_out_of_distribution(own[: len(own) // 2], own[len(own) // 2 :])
    whitened = (torch.from_numpy(place.astype(np.float32)) - scorer.centre) @ scorer.whitening
    return (whitened.norm(dim=1) / scorer.limit).double().numpy()


def _curves(
    prediction: Prediction,
    scene: NDArray[np.int64],
    wording: NDArray[np.int64],
    level: FloatArray,
    place: NDArray[np.float16],
    far: FloatArray,
    rows: NDArray[np.intp],
) -> tuple[Curves, NDArray[np.float16]]:
    _, first, prompts = np.unique(2 * scene[rows] + wording[rows], return_index=True, return_inverse=True)
    _, median, high = prediction.normalised[:, 0].T
    curves = Curves(
        grid=prediction.grid,
        rows=rows.astype(np.int64),
        prompts=prompts.astype(np.int64),
        seeds=np.arange(len(rows), dtype=np.int64),
        level=level[rows],
        median=np.tile(median, (len(rows), 1)),
        high=np.tile(high, (len(rows), 1)),
        distance=far[rows],
        keys=np.array(list(map(str, first)), np.bytes_),
    )
    return curves, place[rows][first]


def _add(
    tally: Tally,
    fitted: _Fitted,
    scene: NDArray[np.int64],
    wording: NDArray[np.int64],
    level: FloatArray,
    place: NDArray[np.float16],
    row: int,
    extra: NDArray[np.intp],
    q: float,
    risk: float,
) -> None:
    rows = np.concatenate([fitted.rows, extra])
    curves, signatures = _curves(fitted.prediction, scene, wording, level, place, fitted.far, rows)
    memory = replace(fitted.memory, curves=curves, space=Space.of(signatures))
    recall = partial(memory.recall, signature=place[row], risk=risk)
    found = consider(replace(fitted.prediction, distance=float(fitted.far[row])), fitted.table, risk, recall)
    counts = all_counts(fitted.prediction.grid)
    quality = np.clip(1.0 - interpolate_log_n(fitted.prediction.grid, level[row], counts), 0.0, 1.0)
    tally.add(*found.steps(q, 1, counts[-1]), int(needed(np.array(counts), quality, q)), int(scene[row]))


def scale_of(study: Study, target_steps: int = 50) -> FloatArray:
    """[M] medians of the stock schedule's distances at 2 steps, in METRICS order, as in docs/nested_schedules.md."""
    crude, dense = study.render(study.stock(2)), study.render(study.stock(target_steps))
    found = np.median(study.shortfall(crude, dense), axis=0)
    assert len(found) == len(METRICS)
    return found
