"""Learn in the genuine host: what it renders and measures beside a picture, and what it keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.fixtures.remembering import GRID, _small, _store, forget, planned, rows  # noqa: F401 - fixtures
from tests.fixtures.said import code

NESTED = "nested 2@1.0"


@pytest.fixture
def learn(bench: Any) -> Any:
    def run(planner: str, **changes: Any) -> str:
        node = bench.decoded("BudgetFusion_Learn", **{"planner": planner, **changes})
        return bench.run({**bench.base(), "7": node}).outputs["7"][0]

    return run


def test_learning_measures_the_same_picture_along_the_nested_schedule(
    bench: Any, store: Path, small: Any, learn: Any
) -> None:
    name = small(NESTED)
    draft = planned(bench, name, max_steps=4)
    assert draft.schedule == NESTED
    learn(name)
    plain = rows(store, "SELECT steps, evaluations FROM measurements")
    assert dict(plain)[4] == 0  # the artist's own picture
    assert rows(store, "SELECT source, length(predicted) FROM memories") == [("learn", (2 * len(GRID) + 1) * 4)]
    steps = [row[0] for row in rows(store, "SELECT steps FROM measurements ORDER BY steps")]
    assert steps[0] == GRID[0]
    assert steps[-1] == GRID[-1]
    after = planned(bench, name).remembered
    assert after is not None
    assert code(after.said) == "memory_exact"
    assert planned(bench, name, schedule="stock").remembered is None
    assert "limit" in learn(name, seed=6, per_hour=1)
    assert len(rows(store, "SELECT 1 FROM memories")) == 1


def test_a_draft_that_was_finished_is_measured_without_rendering_whatever_the_hour_allows(
    bench: Any, store: Path, small: Any, learn: Any, pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = small(NESTED)
    learn(name, seed=9)  # the hour's one picture
    draft = planned(bench, name, again=False, quality=0.5, max_steps=4)
    assert "limit" in learn(name, per_hour=1)
    assert len(rows(store, "SELECT 1 FROM memories")) == 1  # a draft alone tells nothing
    finished = planned(bench, name, again=False, quality=0.99, min_steps=9)
    assert (draft.steps, finished.steps) == (4, 9)
    rendered: list[int] = []
    monkeypatch.setattr(pack("calibration.host_renderer"), "render", lambda *_, **__: rendered.append(1))
    learn(name, per_hour=1)
    assert not rendered
    query = "SELECT steps, distances FROM measurements JOIN trajectories t ON t.id = trajectory_id WHERE seed = 5"
    found = {steps: json.loads(distances) for steps, distances in rows(store, query)}
    assert sorted(found) == [4, 9]
    assert all(value == 0.0 for value in found[9].values())
    assert all(value > 0.0 for value in found[4].values())
    monkeypatch.undo()
    learn(name)  # with time to spare: the same distances by rendering
    again = dict(rows(store, query))
    assert set(again) >= {3, 4, 9}
    assert json.loads(again[4]) == pytest.approx(found[4])
    monkeypatch.setattr(pack("calibration.host_renderer"), "render", lambda *_, **__: rendered.append(1))
    planned(bench, name, again=False, quality=0.8, max_steps=9, min_steps=6)
    learn(name)  # its curve is known
    assert not rendered
    monkeypatch.undo()
    forget(store, pack)
    assert not rows(store, query)
    learn(name)
    assert set(dict(rows(store, query))) >= {3, 4, 9}


def test_finished_pictures_are_few_and_the_last(pack: Any) -> None:
    drafts = pack("host.drafts").Drafts(limit=5 * 400, most=3)
    for name in "abcd":
        drafts.keep(name, 4, torch.zeros(1, 100))
    assert [len(drafts.of(name)) for name in "abcd"] == [0, 1, 1, 1]
    drafts.keep("e", 4, torch.zeros(1, 400))
    assert [len(drafts.of(name)) for name in "bcde"] == [0, 0, 1, 1]


def test_a_finished_picture_is_of_its_scheduler_and_of_no_function_around(loaded: Any, setting: Any, pack: Any) -> None:
    """A replay runs such functions again, so that the draft's key leaves them out; the picture is another one."""
    of = pack("host.drafts").trajectory_of
    own = of("key", loaded.model, setting)
    assert own is not None and of(None, loaded.model, setting) is None
    assert of("key", loaded.model, replace(setting, scheduler="normal")) != own
    rescaled = loaded.model.clone()
    rescaled.set_model_sampler_cfg_function(lambda given: given["cond"])
    assert of("key", rescaled, setting) is None


def test_learning_gives_way_within_one_step_and_keeps_what_was_measured(
    store: Path, small: Any, learn: Any, pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = small(NESTED)
    asked: list[int] = []

    def others_wait() -> bool:
        asked.append(1)
        return len(asked) > 16  # 1 + 9 for the target, 1 + 3 for the least count, then in the middle of the next

    monkeypatch.setattr(pack("host.queue"), "others_wait", others_wait)
    assert "queued" in learn(name)
    assert len(asked) == 17
    assert [row[0] for row in rows(store, "SELECT steps FROM measurements ORDER BY steps")] == [3, 9]
    monkeypatch.setattr(pack("host.queue"), "others_wait", lambda: False)
    measured: list[int] = []
    renderer = pack("calibration.host_renderer").HostRenderer
    measure = renderer.measure
    monkeypatch.setattr(renderer, "measure", lambda *given: measured.append(given[4]) or measure(*given))
    learn(name)
    assert 4 in measured
    assert 3 not in measured  # it goes on where it stopped
