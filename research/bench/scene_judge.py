"""The scene classifier as a judge that needs no reference: does a picture show what its caption says?

Answered from the picture strips that a sweep keeps (`--keep-images`), after the sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.predictor.dataset import SweepDataset
from budgetfusion_nodes.tiny_scenes.scenes import Background, Group, Scene
from research.sweeps.prompts import PromptList
from research.sweeps.strips import read_strip, strip_path
from research.tiny_scenes_training.classifier import SceneClassifier, right_answers

WRONG = "scene_wrong"
"""Name of the judge: share of the classifier's questions about a picture that it answers against the caption."""


def scene_from_key(key: str) -> Scene:
    """The scene of `Scene.key`. InputError for a key of another kind, for instance of a prompt list of your own."""
    try:
        background, *groups = key.split("|")
        pattern, colour, second, scale = (None if word == "None" else word for word in background.split("/"))
        if pattern is None or colour is None:
            raise ValueError("no background")
        scene = Scene(Background(pattern, colour, second, scale), tuple(_group(text) for text in groups))
    except ValueError as error:
        raise InputError(f"{key!r} is no Tiny Scenes scene, so the scene classifier cannot judge it.") from error
    return scene


def _group(text: str) -> Group:
    count, size, fill, colour, shape, place = text.split("/")
    return Group(int(count), size, fill, colour, shape, None if place == "None" else place)


def wrong_answers(
    dataset: SweepDataset, rows: Sequence[int], prompts: PromptList, folder: Path, classifier: SceneClassifier
) -> NDArray[np.float32]:
    """[n, S, K] share of wrong answers for these rows of the data set; NaN for seeds that are absent or whose strip was
    not kept. folder: that of the sweep."""
    places = {prompt.text: index for index, prompt in enumerate(prompts.prompts)}
    seeds, counts = dataset.seeds.shape[1], len(dataset.grid)
    found = np.full((len(rows), seeds, counts), np.nan, np.float32)
    for i, row in enumerate(rows):
        place = places[dataset.prompts[row]]
        scene = scene_from_key(prompts.prompts[place].key)
        for s in np.flatnonzero(dataset.present[row]):
            strip = strip_path(folder, place, int(dataset.seeds[row, s]))
            if strip.is_file():
                found[i, s] = share_wrong(classifier, scene, read_strip(strip, counts))
    return found


def share_wrong(classifier: SceneClassifier, scene: Scene, images: Tensor) -> list[float]:
    """For each image [K, 3, 64, 64] the share of the questions this scene answers that come out wrong."""
    right = right_answers(scene)
    return [
        float(np.mean([answer[question] not in accepted for question, accepted in right.items()]))
        for answer in classifier.answer(images)
    ]
