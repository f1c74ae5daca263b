"""Memory on Tiny Scenes: prompts, their other seeds and their rephrasings, rendered along a nested schedule.

Scenes are dealt in folds. Planner, kernel and thresholds come from the other folds alone; of a scene that is judged,
only the renders that its kind may remember are added: other seeds of the prompt, another wording, or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
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
SPLITS = 5
"""Of scenes before a change of style."""
ORDINARY = ("plain", "gradient")
"""Backgrounds of the style before."""
TAILS, TARGET = (1, 2, 3, 4, 5, 6, 7, 8, 11), 50
QUANTILES = (0.1, 0.5, 0.9)
WORDINGS = 50
"""Tries to say a scene in other words."""
REPHRASED = 48
"""Scenes that are said so."""


@dataclass(frozen=True)
class Renders:
    """[J] renders, of one list of prompts or several."""

    scene: NDArray[np.int64]
    """Which scene a render shows: equal in the list of rephrasings."""
    wording: NDArray[np.int64]
    level: FloatArray
    """[J, K] worst shortfall over its scale."""
    signatures: NDArray[np.float16]
    """[J, S] of each render's prompt."""

    def __len__(self) -> int:
        return len(self.scene)

    @classmethod
    def joined(cls, parts: Sequence[Renders]) -> Renders:
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def in_other_words(prompts: PromptList, seed: int = 0) -> PromptList:
    """The first scenes described anew, with other noise seeds; those whose words can only be the same are left out."""
    rng = np.random.default_rng(seed)
    found = []
    for prompt in prompts.prompts:
        texts = (describe(scene_from_key(prompt.key), rng) for _ in range(WORDINGS))
        text = next((text for text in texts if text != prompt.text), None)
        if text is not None:
            seeds = tuple(int(s) for s in rng.choice(LARGEST_SEED, len(prompt.seeds), replace=False))
            found.append(replace(prompt, text=text, seeds=seeds))
    return PromptList(tuple(found[:REPHRASED]), {"rephrased": dict(prompts.source), "seed": seed})


def in_another_style(key: str) -> bool:
    """Whether a scene has a patterned background."""
    return scene_from_key(key).background.pattern not in ORDINARY


def measured(
    study: Study, schedule: NestedSchedule, scale: FloatArray, wording: int, scenes: Sequence[str]
) -> tuple[tuple[int, ...], Renders]:
    """(grid, renders). scenes: keys; a render's scene is its place among them."""
    grid = (*(schedule.prefix_steps + tail for tail in TAILS), TARGET)
    runs = [schedule.sigmas(count, study.quantile) for count in grid]
    study.prepare(runs)
    target = study.render(runs[-1])
    found = [(study.shortfall(study.render(run), target) / scale).max(axis=1) for run in runs]
    prompts = study.prompts.prompts
    encoded = study.renderer.encode([p.text for p in prompts])
    place = np.repeat(np.arange(len(prompts)), [len(p.seeds) for p in prompts])
    shown = np.array([scenes.index(p.key) for p in prompts])
    own = np.stack([signature(c[0][0][0], _pooled(c)) for c in encoded])
    return grid, Renders(shown[place], np.full(len(place), wording), np.stack(found, axis=1), own[place])


def _pooled(conditioning: object) -> torch.Tensor | None:
    pooled = conditioning[0][1].get("pooled_output")  # type: ignore[index]
    return None if pooled is None else pooled[0]


def judge(grid: tuple[int, ...], renders: Renders, q: float, risk: float, seed: int = 0) -> dict[str, Tally]:
    """Kind of prompt -> tally over the scenes that are rendered in every wording (recurring and new: in any)."""
    scenes, which = np.unique(renders.scene, return_inverse=True)
    fold = (np.random.default_rng(seed).permutation(len(scenes)) % FOLDS)[which]
    found = {"recurring": Tally(), "rephrased": Tally(), "new": Tally()}
    for held in range(FOLDS):
        others = np.flatnonzero(fold != held)
        planner = _made_from(grid, renders, others)
        memory = fit_memory(*_curves(planner, renders, others), planner.table)
        for row in np.flatnonzero(fold == held).tolist():
            same = (renders.scene == renders.scene[row]) & (np.arange(len(renders)) != row)
            alike = renders.wording == renders.wording[row]
            for kind, known in (("recurring", same & alike), ("rephrased", same & ~alike), ("new", None)):
                extra = np.zeros(0, np.int64) if known is None else np.flatnonzero(known)
                if known is None or len(extra):
                    curves, signatures = _curves(planner, renders, np.concatenate([others, extra]))
                    knowing = replace(memory, curves=curves, space=Space.of(signatures))
                    _add(found[kind], planner, knowing, renders, row, q, risk)
    return found


def judge_drift(
    grid: tuple[int, ...], renders: Renders, other: NDArray[np.bool_], after: int, q: float, risk: float
) -> Tally:
    """New prompts of another style (`other`: [J]), `after` renders after the change. In each of SPLITS the planner is
    made from one half of the scenes of the style before, and the other half is remembered."""
    tally = Tally()
    for split in range(SPLITS):
        rng = np.random.default_rng(split)
        before, later = (rng.permutation(np.unique(renders.scene[part])) for part in (~other, other))
        made, known = (np.flatnonzero(np.isin(renders.scene, part)) for part in np.array_split(before, 2))
        seeds = len(renders) // len(np.unique(renders.scene))
        fresh, rest = later[: -(-after // seeds)], later[-(-after // seeds) :]
        fresh = np.flatnonzero(np.isin(renders.scene, fresh))[:after]
        planner = _made_from(grid, renders, made)
        memory = fit_memory(*_curves(planner, renders, np.concatenate([known, fresh])), planner.table)
        for row in np.flatnonzero(np.isin(renders.scene, rest)).tolist():
            _add(tally, planner, memory, renders, row, q, risk)
    return tally


@dataclass(frozen=True)
class _Planner:
    """The mean curve of some renders."""

    prediction: Prediction
    table: RiskTable
    far: FloatArray
    """[J] out-of-distribution score of every render's prompt."""


def _made_from(grid: tuple[int, ...], renders: Renders, rows: NDArray[np.intp]) -> _Planner:
    level = renders.level[rows]
    curves = np.quantile(level, QUANTILES, axis=0).T  # [K, 3]
    curves = np.maximum.accumulate(curves[::-1], axis=0)[::-1] + 1e-4 * np.arange(len(grid))[::-1, None]
    prediction = Prediction(grid, ("worst",), (1.0,), np.asarray(curves[:, None], np.float64), 0.0)
    counts = all_counts(grid)
    upper = interpolate_log_n(grid, curves[:, 2], counts)
    quality = np.clip(1.0 - interpolate_log_n(grid, level, counts), 0.0, 1.0)
    groups = [np.flatnonzero(renders.scene[rows] == s) for s in np.unique(renders.scene[rows])]
    seeds = np.full((len(groups), max(map(len, groups)), len(counts)), np.nan)
    for index, group in enumerate(groups):
        seeds[index, : len(group)] = quality[group]
    table = calibrate(np.tile(upper, (len(groups), 1)), seeds)
    return _Planner(prediction, table, _distances(renders.signatures, rows))


def _distances(place: NDArray[np.float16], rows: NDArray[np.intp]) -> FloatArray:
    """[J] out-of-distribution scores of all renders' prompts, made from those of `rows`."""
    own = torch.from_numpy(np.unique(place[rows], axis=0).astype(np.float32))
    own = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(0))]
    scorer = fit_out_of_distribution(own[: len(own) // 2], own[len(own) // 2 :])
    whitened = (torch.from_numpy(place.astype(np.float32)) - scorer.centre) @ scorer.whitening
    return (whitened.norm(dim=1) / scorer.limit).double().numpy()


def _curves(planner: _Planner, renders: Renders, rows: NDArray[np.intp]) -> tuple[Curves, NDArray[np.float16]]:
    prompt = 2 * renders.scene[rows] + renders.wording[rows]
    _, first, prompts = np.unique(prompt, return_index=True, return_inverse=True)
    _, median, high = planner.prediction.normalised[:, 0].T
    curves = Curves(
        grid=planner.prediction.grid,
        rows=rows.astype(np.int64),
        prompts=prompts.astype(np.int64),
        seeds=np.arange(len(rows), dtype=np.int64),
        level=renders.level[rows],
        median=np.tile(median, (len(rows), 1)),
        high=np.tile(high, (len(rows), 1)),
        distance=planner.far[rows],
        keys=np.array(list(map(str, first)), np.bytes_),
    )
    return curves, renders.signatures[rows][first]


def _add(tally: Tally, planner: _Planner, memory: Memory, renders: Renders, row: int, q: float, risk: float) -> None:
    prediction = replace(planner.prediction, distance=float(planner.far[row]))
    found = consider(
        prediction, planner.table, risk, partial(memory.recall, signature=renders.signatures[row], risk=risk)
    )
    counts = all_counts(prediction.grid)
    quality = np.clip(1.0 - interpolate_log_n(prediction.grid, renders.level[row], counts), 0.0, 1.0)
    need = int(needed(np.array(counts), quality, q))
    tally.add(*found.steps(q, 1, counts[-1]), need, int(renders.scene[row]))


def scale_of(study: Study, target_steps: int = 50) -> FloatArray:
    """[M] medians of the stock schedule's distances at 2 steps, in METRICS order, as in docs/nested_schedules.md."""
    crude, dense = study.render(study.stock(2)), study.render(study.stock(target_steps))
    found = np.median(study.shortfall(crude, dense), axis=0)
    assert len(found) == len(METRICS)
    return found
