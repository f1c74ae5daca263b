"""The classifier: its labels, what counts as right, its file, and that it is good enough to score with."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from budgetfusion_nodes.tiny_scenes.scenes import Background, Group, Scene, sample_scenes
from research.tiny_scenes_training.classifier import (
    CLASSES,
    NONE,
    UNASKED,
    ClassifierTrainer,
    SceneClassifier,
    accuracy,
    has_lone_object,
    labels,
    load_classifier,
    right_answers,
    save_classifier,
)
from research.tiny_scenes_training.commands import CLASSIFIER
from research.tiny_scenes_training.data import RenderedScenes, attributes_of
from research.tiny_scenes_training.renderer import render
from research.tiny_scenes_training.settings import ClassifierSettings


def test_labels_are_right_answers() -> None:
    scenes = sample_scenes(1500, 0, held_out=False)
    found = labels(np.stack([attributes_of(scene) for scene in scenes]))
    asked = 0
    for index, scene in enumerate(scenes):
        right = right_answers(scene)
        for question, answers in CLASSES.items():
            label = found[question][index]
            if question in right:
                assert answers[label] in right[question]
                asked += 1
            else:
                assert label == UNASKED
    assert asked > 3 * len(scenes) + 300


def test_either_colour_of_checks_is_its_background_colour() -> None:
    first, second = (Scene(Background("checks", *pair, "wide"), ()) for pair in (("red", "blue"), ("blue", "red")))
    assert right_answers(first)["base"] == right_answers(second)["base"] == {"red", "blue"}
    assert right_answers(Scene(Background("dots", "red", "blue", "wide"), ()))["base"] == {"red"}
    assert right_answers(Scene(Background("plain", "red", None, None), ()))["second"] == {NONE}
    found = labels(np.stack([attributes_of(first), attributes_of(second)]))
    assert found["base"][0] == found["base"][1]
    assert found["second"][0] == found["second"][1]


@pytest.mark.parametrize(
    ("groups", "lone"),
    [
        ((Group(1, "large", "solid", "red", "star", None),), True),
        ((Group(1, "medium", "striped", "red", "star", None),), True),
        ((Group(1, "small", "solid", "red", "star", None),), False),
        ((Group(2, "medium", "solid", "red", "star", None),), False),
        ((Group(1, "medium", "solid", "red", "star", None), Group(1, "tiny", "solid", "blue", "ring", None)), False),
        ((), False),
    ],
)
def test_only_lone_large_enough_objects_are_asked_about(groups: tuple[Group, ...], lone: bool) -> None:
    scene = Scene(Background("plain", "white", None, None), groups)
    assert has_lone_object(scene) is lone
    assert ("shape" in right_answers(scene)) is lone


def rendered(count: int = 40) -> RenderedScenes:
    scenes, rng = sample_scenes(count, 1, held_out=False), np.random.default_rng(0)
    images = np.stack([render(scene, rng) for scene in scenes])
    return RenderedScenes(images, np.zeros((count, 4, 48), np.uint8), np.stack([attributes_of(s) for s in scenes]))


def test_stopped_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    settings, data = ClassifierSettings(steps=4, batch=8, warmup=1), rendered()
    whole = ClassifierTrainer(tmp_path / "whole.pt", settings, data)
    whole.run()
    ClassifierTrainer(tmp_path / "parts.pt", settings, data).run(limit=2)
    part = ClassifierTrainer(tmp_path / "parts.pt", settings, data)
    part.run(limit=2)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, part.model.state_dict()[key]), key
    with pytest.raises(ValueError, match="other settings"):
        ClassifierTrainer(tmp_path / "parts.pt", ClassifierSettings(steps=5), data).run()


def test_file_keeps_the_answers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SceneClassifier()
    model(torch.rand(16, 3, 64, 64))  # running statistics
    path = tmp_path / "classifier.safetensors"
    save_classifier(model.eval(), path, {"note": "test"})
    again = load_classifier(path)
    images = torch.rand(8, 3, 64, 64)
    for name, logits in model(images).items():
        assert torch.allclose(logits, again(images)[name], atol=0.02)
    assert not again.training
    save_file(load_file(path), path, {"classes": "{}"})
    with pytest.raises(ValueError, match="train it again"):
        load_classifier(path)


def test_shipped_judge_is_small_documented_and_nearly_always_right() -> None:
    torch.set_num_threads(1)
    model, provenance = load_classifier(CLASSIFIER), json.loads(CLASSIFIER.with_suffix(".json").read_text())
    assert CLASSIFIER.stat().st_size < 1_000_000
    assert sum(p.numel() for p in model.parameters()) == provenance["parameters"] <= 500_000
    assert provenance["settings"] == asdict(ClassifierSettings())
    measured = accuracy(model, count=250, lone=150, seed=77)  # other scenes than the recorded figures
    for question, limit in {"base": 0.97, "pattern": 0.97, "colour": 0.97, "shape": 0.95}.items():
        assert measured[question] >= limit
        assert provenance["accuracy_on_held_out_renderings"][question] >= limit
