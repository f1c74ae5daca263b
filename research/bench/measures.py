"""What picture sets are measured by. No host: pictures in, arrays out, each kept beside the pictures and never made
twice.

Without a reference: the scene classifier's errors, the L-SNR level and features for set distances. Against the
schedule's own target of the same prompt and seed: the planner's three metrics, and two that took no part, 1 - MS-SSIM
and MDSI of piq.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from budgetfusion_nodes.core.curves import METRICS, FloatArray
from budgetfusion_nodes.core.files import in_one_piece
from budgetfusion_nodes.metrics.l_snr import l_snr
from budgetfusion_nodes.metrics.measure import Backends, Series
from budgetfusion_nodes.predictor.dataset import SweepDataset
from research.options import WEIGHTS
from research.statistics.allocation import IndexArray
from research.sweeps.picture_sets import BATCH, PictureSets
from research.tiny_scenes_training.classifier import SceneClassifier, load_classifier, to_tensor
from research.tiny_scenes_training.renderer import render
from research.tiny_scenes_training.scene_check import scene_from_key, share_wrong

from .catalogue import NESTED, STOCK, Catalogue, Method, load_conditioning
from .efficientnet import features, load_weights

log = logging.getLogger(__name__)

HELD_OUT = ("1 - MS-SSIM", "MDSI")
"""Distances to the target that no plan is made with; 0 is equal."""
COLUMNS = (*METRICS, *HELD_OUT)
TRUE_SCENES = 4
"""Drawings of each caption by the renderer that made the training pictures."""
TRUTH = "truth"
TRUTH_SEED = 77
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001)
"""Of the first three scales (Wang, Simoncelli & Bovik 2003, table 1): 64 pixels have no room for all five."""
MS_SSIM_WINDOW = 7


@dataclass(frozen=True)
class Values:
    """A set of P prompts without a reference."""

    wrong: FloatArray
    """[P] share of the classifier's questions answered against the caption, mean over seeds."""
    l_snr: FloatArray
    """[P] dB."""
    features: FloatArray
    """[P, S, D]"""

    def take(self, rows: IndexArray) -> Values:
        return Values(self.wrong[rows], self.l_snr[rows], self.features[rows])


@dataclass(frozen=True)
class Curves:
    """One schedule against its own target."""

    counts: tuple[int, ...]
    """[K] rendered; the last is the target."""
    distances: FloatArray
    """[P, S, K, COLUMNS] >= 0."""

    def take(self, rows: IndexArray) -> Curves:
        return Curves(self.counts, self.distances[rows])


def _measured(sets: PictureSets, name: str) -> Path:
    (sets.folder / "measured").mkdir(exist_ok=True)
    return sets.folder / "measured" / f"{name}.npz"


def _save(path: Path, **arrays: NDArray[Any]) -> None:
    with in_one_piece(path) as partial, partial.open("wb") as file:  # given a name, numpy adds an ending
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType] - its stubs take keywords for options


# ------------------------------------------------------------------------------------------------------------ measuring


def measure_all(sets: PictureSets) -> None:
    """Everything that was rendered of a setting and is not measured yet."""
    catalogue = Catalogue.load(sets.folder)
    classifier = load_classifier(WEIGHTS / "classifier" / "tiny_scenes_classifier.safetensors")
    _measure_truth(sets, classifier)
    backends = Backends.from_values("tiny_scenes", "shipped")
    for batch in sets.batches(len(sets.prompts.prompts)):  # so that a stopped run has the first prompts of all methods
        for method in catalogue.methods:
            path = _measured(sets, f"{method.key}-{batch}")
            if sets.file(method.key, batch).is_file() and not path.is_file():
                _measure_pictures(path, sets, sets.load(method.key, batch), batch, classifier)
        for family in (STOCK, NESTED):
            _measure_distances(sets, list(catalogue.family(family).values()), batch, backends)


def _measure_pictures(path: Path, sets: PictureSets, images: Tensor, batch: int, classifier: SceneClassifier) -> None:
    prompts = [p for p in sets.prompts.prompts for _ in p.seeds][batch * BATCH : (batch + 1) * BATCH]
    pairs = zip(prompts, images, strict=False)  # the last batch of a longer list may hold more
    wrong = [share_wrong(classifier, scene_from_key(p.key), image[None])[0] for p, image in pairs]
    _save(path, wrong=np.array(wrong), **_alone(images[: len(wrong)]))
    log.info("measured %s", path.stem)


def _alone(images: Tensor) -> dict[str, NDArray[Any]]:
    found = features(images, load_weights())
    return {"l_snr": l_snr(images).double().numpy(), "features": found.half().numpy()}


def _measure_truth(sets: PictureSets, classifier: SceneClassifier) -> None:
    """Other drawings of the same captions; rows [P * TRUE_SCENES]."""
    path = _measured(sets, TRUTH)
    known = len(np.load(path)["wrong"]) // TRUE_SCENES if path.is_file() else 0
    if known >= len(sets.prompts.prompts):
        return
    wrong, parts = [], []
    for index, prompt in enumerate(sets.prompts.prompts):
        scene = scene_from_key(prompt.key)
        rng = np.random.default_rng([TRUTH_SEED, index])
        images = to_tensor(np.stack([render(scene, rng) for _ in range(TRUE_SCENES)]))
        wrong += share_wrong(classifier, scene, images)
        parts.append(_alone(images))
    _save(path, wrong=np.array(wrong), **{name: np.concatenate([p[name] for p in parts]) for name in parts[0]})


def _measure_distances(sets: PictureSets, methods: Sequence[Method], batch: int, backends: Backends) -> None:
    """Each count of one schedule to its target; what belongs to the target's picture is computed once."""
    target = methods[-1]
    rendered = [m for m in methods if sets.file(m.key, batch).is_file()]
    missing = [m for m in rendered if not _distance(sets, m, target, batch).is_file()]
    if not missing or target not in rendered:
        return
    reference = sets.load(target.key, batch)
    stack = torch.stack([sets.load(m.key, batch) for m in missing])  # [K, B, 3, H, W]
    rows = [_to_target(stack[:, i], reference[i : i + 1], backends) for i in range(len(reference))]
    for method, values in zip(missing, np.stack(rows, axis=1), strict=True):
        _save(_distance(sets, method, target, batch), distances=values)
    log.info("measured %d counts of batch %d against %s", len(missing), batch + 1, target.name)


def _distance(sets: PictureSets, method: Method, target: Method, batch: int) -> Path:
    return _measured(sets, f"{method.key}-to-{target.key}-{batch}")


def _to_target(images: Tensor, target: Tensor, backends: Backends) -> FloatArray:
    """[K, COLUMNS] of images [K, 3, H, W] to target [1, 3, H, W]; 0 for equal pictures."""
    found = Series(target, backends).add(images).distances
    columns = [found[metric] for metric in METRICS]
    same = (images == target).flatten(1).all(dim=1)
    values = torch.stack([*columns, *_held_out(images, target)], dim=-1)
    return torch.where(same[:, None], 0.0, values).double().numpy()


def _held_out(images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """1 - MS-SSIM and MDSI (Nafchi et al. 2016), [K] each."""
    from piq import mdsi, multi_scale_ssim

    y = target.expand_as(images).contiguous()
    weights = torch.tensor(MS_SSIM_WEIGHTS)
    similarity = multi_scale_ssim(
        images, y, kernel_size=MS_SSIM_WINDOW, data_range=1.0, reduction="none", scale_weights=weights / weights.sum()
    )
    return (1.0 - similarity).clamp_min(0.0), torch.nan_to_num(mdsi(images, y, data_range=1.0, reduction="none"))


# -------------------------------------------------------------------------------------------------------------- reading


def load_values(sets: PictureSets, key: str, prompts: int) -> Values:
    """The first `prompts` prompts of a set."""
    parts = [np.load(_measured(sets, f"{key}-{batch}")) for batch in sets.batches(prompts)]
    names = ("wrong", "l_snr", "features")
    joined = {name: np.concatenate([part[name] for part in parts]).astype(np.float64) for name in names}
    return _by_prompt(joined, prompts, sets.seeds)


def load_truth(sets: PictureSets, prompts: int) -> Values:
    found = np.load(_measured(sets, TRUTH))
    return _by_prompt({name: found[name].astype(np.float64) for name in found}, prompts, TRUE_SCENES)


def _by_prompt(arrays: dict[str, FloatArray], prompts: int, each: int) -> Values:
    rows = {name: values[: prompts * each].reshape(prompts, each, -1) for name, values in arrays.items()}
    return Values(rows["wrong"].mean(axis=(1, 2)), rows["l_snr"].mean(axis=(1, 2)), rows["features"])


def measured_prompts(sets: PictureSets, key: str) -> int:
    """Prompts from the first on that are rendered and measured."""
    batch = 0
    while _measured(sets, f"{key}-{batch}").is_file():
        batch += 1
    return min(batch * BATCH // sets.seeds, sets.covered(key))


def load_curves(sets: PictureSets, methods: Sequence[Method], prompts: int) -> Curves:
    """Of every count of a schedule that is measured for all `prompts`."""
    target = methods[-1]
    kept = [m for m in methods if all(_distance(sets, m, target, b).is_file() for b in sets.batches(prompts))]
    files = [[np.load(_distance(sets, m, target, b))["distances"] for b in sets.batches(prompts)] for m in kept]
    values = [np.concatenate(parts) for parts in files]
    rows = np.stack(values, axis=1)[: prompts * sets.seeds]  # [P * S, K, columns]
    return Curves(tuple(m.steps for m in kept), rows.reshape(prompts, sets.seeds, len(kept), len(COLUMNS)))


def as_dataset(sets: PictureSets, curves: Curves, catalogue: Catalogue, seed: int) -> SweepDataset:
    """The picture set of a schedule as data for statistics/transfer.py: half of the prompts, drawn at random, are for
    calibration, the others for the test."""
    prompts = len(curves.distances)
    tokens, pooled = load_conditioning(sets.folder)
    split = np.where(np.random.default_rng(seed).permutation(prompts) < prompts // 2, "calibration", "test")
    chosen = sets.prompts.prompts[:prompts]
    distances = curves.distances[..., : len(METRICS)].astype(np.float32)
    return SweepDataset(
        prompts=tuple(p.text for p in chosen),
        split=tuple(split.tolist()),
        tokens=tokens[:prompts],
        pooled=pooled[:prompts],
        seeds=np.array([p.seeds for p in chosen], np.int64),
        shortfall=distances,
        l_snr=np.zeros(distances.shape[:3], np.float32),
        grid=curves.counts,
        setting=catalogue.setting,
        backends=Backends.from_values("tiny_scenes", "shipped").names(),
    )
