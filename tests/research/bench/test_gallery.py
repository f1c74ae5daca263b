from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from budgetfusion_nodes.predictor.fit import FitOptions, fit_planner
from research.bench.evidence import gather
from research.bench.gallery import OVER, UNDER, draw, reasons, to_dict, worst_failures
from research.statistics.allocation import planned_index
from research.sweeps.prompts import PromptList, StudyPrompt
from research.sweeps.strips import save_strip, strip_path


@pytest.fixture(scope="module")
def known(make_dataset):
    """One test render is made much too hard for its plan and one of another prompt much too easy."""
    data = make_dataset(40, 40, 40)
    planner = fit_planner(data, 0, options=FitOptions(networks=1, epochs=10))
    shortfall = data.shortfall.copy()
    hard, easy = data.rows("test")[[3, 7]]
    shortfall[hard, 1, :-1] = shortfall[:, :2, 0].max() * 3
    shortfall[easy, 2, 1:] = 0.0
    data = replace(data, shortfall=shortfall)
    prompts = PromptList(
        tuple(
            StudyPrompt(p, s, (1,), f"plain/red/None/None|{i}")
            for i, (p, s) in enumerate(zip(data.prompts, data.split, strict=True))
        ),
        {},
    )
    return gather(data, planner), prompts, int(hard), int(easy)


def test_the_planted_failures_come_first(known):
    evidence, prompts, hard, easy = known
    found = worst_failures(evidence, prompts, 0.9, 0.1, 5)
    under = [f for f in found if f.kind == UNDER]
    over = [f for f in found if f.kind == OVER]
    assert (under[0].row, under[0].column, under[0].needed) == (hard, 1, 50)
    assert under[0].quality < 0 or under[0].quality < 0.9
    assert any(f.row == easy and f.column == 2 and f.needed == 3 for f in over)
    index = planned_index(evidence.upper[evidence.rows["test"]], evidence.threshold(0.1, 0.9))
    assert under[0].planned == evidence.counts[index[3]]
    assert len(under[0].other_seeds) == 3 and under[0].groups == 1
    assert all(f.needed > f.planned for f in under) and all(f.needed < f.planned for f in over)
    assert len({f.row for f in under}) == len(under)
    json.dumps([to_dict(f) for f in found], allow_nan=False)


def test_reasons_count_what_the_seed_did(known):
    evidence, prompts, *_ = known
    failures = worst_failures(evidence, prompts, 0.9, 0.1, 5)
    found = reasons(failures, UNDER)
    by_hand = sum(any(n <= f.planned for n in f.other_seeds) for f in failures if f.kind == UNDER)
    assert found["of_the_seed"] == by_hand and found["count"] == sum(f.kind == UNDER for f in failures)
    assert sum(found["by_metric"].values()) == found["count"]
    assert reasons([], UNDER)["count"] == 0


def test_the_pictures_are_drawn_with_and_without_kept_images(known, tmp_path: Path):
    from PIL import Image

    evidence, prompts, *_ = known
    failures = worst_failures(evidence, prompts, 0.9, 0.1, 2)
    dollars = replace(failures[0], prompt="a $\\frac{red$ star")  # no formula of matplotlib's
    named = PromptList((replace(prompts.prompts[0], text=dollars.prompt),), {})
    assert draw(evidence, [dollars], tmp_path, named, tmp_path / "dollars.png")
    (tmp_path / "images").mkdir()
    places = {p.text: i for i, p in enumerate(prompts.prompts)}
    first = failures[0]
    strip = torch.rand((len(evidence.dataset.grid), 3, 8, 8), generator=torch.Generator().manual_seed(0))
    save_strip(strip_path(tmp_path, places[first.prompt], first.seed), strip)
    assert draw(evidence, failures, tmp_path, prompts, tmp_path / "out" / "gallery.png")
    with Image.open(tmp_path / "out" / "gallery.png") as image:
        assert np.asarray(image).std() > 0 and image.size[1] > 300
    assert not draw(evidence, [], tmp_path, prompts, tmp_path / "nothing.png")
