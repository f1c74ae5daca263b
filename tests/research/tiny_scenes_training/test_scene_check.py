from __future__ import annotations

import numpy as np
import pytest
import torch

from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.tiny_scenes.scenes import sample_scenes
from research.bench.scene_judge import scene_from_key, share_wrong, wrong_answers
from research.options import WEIGHTS
from research.sweeps.strips import read_strip, save_strip, strip_path
from research.tiny_scenes_training.classifier import load_classifier, to_tensor
from research.tiny_scenes_training.renderer import render


def test_a_scene_comes_back_from_its_key():
    for scene in sample_scenes(200, 1, held_out=True):
        found = scene_from_key(scene.key)
        assert found.key == scene.key and found.background == scene.background
        assert sorted(found.groups, key=lambda g: g.key) == sorted(scene.groups, key=lambda g: g.key)


@pytest.mark.parametrize("key", ["a red star", "plain/red", "None/None/None/None", "plain/red/None/None|1/large"])
def test_other_keys_are_refused(key):
    with pytest.raises(InputError, match="scene classifier"):
        scene_from_key(key)


def test_a_strip_gives_back_its_pictures(tmp_path):
    images = torch.randint(0, 256, (5, 3, 16, 16), generator=torch.Generator().manual_seed(0)).float() / 255
    save_strip(tmp_path / "strip.png", images)
    assert torch.equal(read_strip(tmp_path / "strip.png", 5), images)
    with pytest.raises(InputError, match="80 pixels wide"):
        read_strip(tmp_path / "strip.png", 3)


def test_right_pictures_are_right_and_others_are_wrong(make_dataset, tmp_path):
    """Strips that hold the drawn scene at most counts and a picture of another one at the first."""
    from dataclasses import replace

    from research.sweeps.prompts import PromptList, StudyPrompt

    classifier = load_classifier(WEIGHTS / "classifier" / "tiny_scenes_classifier.safetensors")
    scenes = sample_scenes(12, 3, held_out=True)
    rng = np.random.default_rng(0)
    data = make_dataset(4, 4, 4)
    data = replace(data, grid=data.grid[-3:], shortfall=data.shortfall[:, :, -3:], l_snr=data.l_snr[:, :, -3:])
    prompts = PromptList(
        tuple(StudyPrompt(p, "test", (1,), s.key) for p, s in zip(data.prompts, scenes, strict=True)), {}
    )
    for i, scene in enumerate(scenes[:11]):
        other = scenes[(i + 1) % 12]
        pictures = to_tensor(np.stack([render(other, rng), render(scene, rng), render(scene, rng)]))
        save_strip(strip_path(tmp_path, i, int(data.seeds[i, 0])), pictures)
    found = wrong_answers(data, range(12), prompts, tmp_path, classifier)
    assert found.shape == (12, 4, 3)
    assert np.isnan(found[11]).all() and np.isnan(found[:, 1:]).all()  # not kept
    assert np.nanmean(found[:, :, 1:]) < 0.05 < 0.4 < np.nanmean(found[:, :, 0])
    assert share_wrong(classifier, scenes[0], to_tensor(render(scenes[0], rng)[None])) == [0.0]
