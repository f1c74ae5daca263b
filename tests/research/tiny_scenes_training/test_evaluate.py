"""The benchmark's arithmetic, without a host."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from budgetfusion_nodes.tiny_scenes.scenes import is_held_out
from research.tiny_scenes_training.classifier import CLASSES, has_lone_object, right_answers
from research.tiny_scenes_training.evaluate import (
    MEASURES,
    Evaluation,
    classify,
    held_out_cases,
    pixel_noise,
    save_grid,
    score,
    table,
)


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson 1927, by hand."""
    z, share = 1.959963984540054, right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return centre - half, centre + half


@pytest.mark.parametrize(("right", "n"), [(0, 10), (7, 10), (190, 200), (200, 200)])
def test_interval_is_wilsons(right: int, n: int) -> None:
    row = score("base", n, right, n)
    assert (row.low, row.high) == pytest.approx(wilson(right, n), abs=1e-9)
    assert row.share == right / n
    assert row.met == (right / n >= 0.95)


def test_empty_row_is_harmless() -> None:
    row = score("shape", 0, 0, 0)
    assert (row.n, row.low, row.high, row.met) == (0, 0.0, 1.0, False)


def test_cases_are_held_out_and_seeded() -> None:
    cases, again = held_out_cases(30, 10, 5), held_out_cases(30, 10, 5)
    assert [case.caption for case in cases] == [case.caption for case in again]
    assert len({case.scene.key for case in cases}) == len(cases) == 40
    assert all(is_held_out(case.scene) for case in cases)
    assert len({case.seed for case in cases}) == 40
    assert sum(case.drawn for case in cases) == 30
    assert all(has_lone_object(case.scene) for case in cases if not case.drawn)


class Oracle:
    """Answers rightly, except for the first `wrong` pictures, about which everything is wrong."""

    def __init__(self, cases: list, wrong: int) -> None:
        self.cases, self.wrong = cases, wrong
        self.calls = 0

    def answer(self, images: torch.Tensor) -> list[dict[str, str]]:
        self.calls += 1
        answers = []
        for index, case in enumerate(self.cases):
            right = right_answers(case.scene)
            answer = {name: next(iter(right.get(name, classes))) for name, classes in CLASSES.items()}
            if self.calls == 1 and index < self.wrong:
                answer = dict.fromkeys(answer, "nonsense")
            answers.append(answer)
        return answers


def test_judging_counts_backgrounds_on_the_grammars_mix_and_objects_on_all() -> None:
    cases = held_out_cases(40, 15, 6)
    scores = classify(Oracle(cases, 10), cases, torch.zeros(55, 3, 64, 64))  # pyright: ignore[reportArgumentType]
    rows = {row.name: row for row in scores}
    lone = sum(has_lone_object(case.scene) for case in cases)
    assert [row.name for row in scores] == [name for name, _ in MEASURES.values()]
    assert rows["background colour"].n == rows["background pattern"].n == 40
    assert rows["object colour"].n == rows["object shape"].n == lone > 15
    assert rows["background colour"].right == 30
    assert rows["object shape"].right == lone - sum(has_lone_object(case.scene) for case in cases[:10])
    assert all(row.on_renderings == 1.0 for row in scores)


def test_noise_estimate_finds_the_noise_that_was_added() -> None:
    rng = np.random.default_rng(0)
    flat = np.full((6, 64, 64, 3), 0.5)
    assert pixel_noise(flat) == pytest.approx(0.0, abs=1e-6)
    assert pixel_noise(flat + rng.normal(0, 4 / 255, flat.shape)) == pytest.approx(4.0, rel=0.1)
    assert pixel_noise(flat[:0]) == 0.0


def test_table_grid_and_json(tmp_path: Path) -> None:
    cases = held_out_cases(5, 0, 7)
    found = Evaluation(3.0, 50, "dpmpp_2m", "karras", (score("base", 200, 191, 200),), 1.25, 0.0, 12.0)
    text = table(found)
    assert "| background colour | 200 | 95.5% | 91.7% to 97.6% | 100.0% | 95% | met |" in text
    assert "1.25 of 255" in text
    assert json.loads(json.dumps(found.to_dict()))["scores"][0]["right"] == 191
    save_grid(cases, torch.rand(5, 3, 64, 64), tmp_path / "images" / "grid.png")
    from PIL import Image

    with Image.open(tmp_path / "images" / "grid.png") as image:
        assert image.width > 1000
