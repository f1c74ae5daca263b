from __future__ import annotations

import numpy as np
import pytest

from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.tiny_scenes.scenes import sample_scenes
from research.options import WEIGHTS
from research.tiny_scenes_training.classifier import load_classifier, to_tensor
from research.tiny_scenes_training.renderer import render
from research.tiny_scenes_training.scene_check import scene_from_key, share_wrong


def test_a_scene_comes_back_from_its_key():
    for scene in sample_scenes(200, 1, held_out=True):
        found = scene_from_key(scene.key)
        assert found.key == scene.key and found.background == scene.background
        assert sorted(found.groups, key=lambda g: g.key) == sorted(scene.groups, key=lambda g: g.key)


@pytest.mark.parametrize("key", ["a red star", "plain/red", "None/None/None/None", "plain/red/None/None|1/large"])
def test_other_keys_are_refused(key):
    with pytest.raises(InputError, match="scene classifier"):
        scene_from_key(key)


def test_right_pictures_are_right_and_others_are_wrong():
    classifier = load_classifier(WEIGHTS / "classifier" / "tiny_scenes_classifier.safetensors")
    scenes, rng = sample_scenes(12, 3, held_out=True), np.random.default_rng(0)
    right, wrong = [], []
    for scene, other in zip(scenes, scenes[1:] + scenes[:1], strict=True):
        pictures = to_tensor(np.stack([render(scene, rng), render(other, rng)]))
        for found, value in zip((right, wrong), share_wrong(classifier, scene, pictures), strict=True):
            found.append(value)
    assert np.mean(right) < 0.05 < 0.4 < np.mean(wrong)
