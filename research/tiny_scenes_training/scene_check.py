"""The scene classifier as a metric without a reference: does a picture show what its caption says?"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.tiny_scenes.scenes import Background, Group, Scene

from .classifier import SceneClassifier, right_answers


def scene_from_key(key: str) -> Scene:
    """The scene of `Scene.key`. InputError for a key of another kind, for instance of a prompt list of your own."""
    try:
        background, *groups = key.split("|")
        pattern, colour, second, scale = (None if word == "None" else word for word in background.split("/"))
        if pattern is None or colour is None:
            raise ValueError("no background")
        scene = Scene(Background(pattern, colour, second, scale), tuple(_group(text) for text in groups))
    except ValueError as error:
        raise InputError(
            f"{key!r} is no Tiny Scenes scene, so the scene classifier cannot be asked about it."
        ) from error
    return scene


def _group(text: str) -> Group:
    count, size, fill, colour, shape, place = text.split("/")
    return Group(int(count), size, fill, colour, shape, None if place == "None" else place)


def share_wrong(classifier: SceneClassifier, scene: Scene, images: Tensor) -> list[float]:
    """For each image [K, 3, 64, 64] the share of the questions this scene answers that come out wrong."""
    right = right_answers(scene)
    return [
        float(np.mean([answer[question] not in accepted for question, accepted in right.items()]))
        for answer in classifier.answer(images)
    ]
