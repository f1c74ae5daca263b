"""What a plan reads of memory: the fitted file, what came since, and nothing that was forgotten."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from budgetfusion_nodes.calibration import memory_file, memory_reader, store_memory
from budgetfusion_nodes.calibration.memory_file import forget_ready, key_of, read_ready
from budgetfusion_nodes.calibration.memory_reader import Wanted
from budgetfusion_nodes.calibration.records import Subject
from budgetfusion_nodes.calibration.store import Store
from budgetfusion_nodes.calibration.store_memory import remember
from budgetfusion_nodes.planning import memory as planning_memory
from budgetfusion_nodes.planning.memory import Cache
from budgetfusion_nodes.planning.origin import predicted_bytes
from budgetfusion_nodes.predictor.memory_space import signature
from budgetfusion_nodes.predictor.planner import Planner
from tests.calibration.stub import BACKENDS, SETTING
from tests.calibration.test_store_memory import curve, encoded, found
from tests.fixtures.planners import make_planner

PROMPTS = 14


@pytest.fixture(scope="module")
def planner() -> Planner:
    return replace(make_planner(8, 4), setting=SETTING, backends=BACKENDS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "calibration.sqlite3"


@pytest.fixture
def wanted(planner: Planner) -> Wanted:
    return Wanted(planner, SETTING, {"negative": "ab"})


def add(path: Path, planner: Planner, *seeds: int, prompt: int | None = None) -> None:
    """A render each; two of them show one prompt, unless it is given."""
    rng = np.random.default_rng(seeds)
    with Store.at(path) as store:
        for seed in seeds:
            what = encoded(seed // 2 if prompt is None else prompt)
            said = predicted_bytes(planner.predict(what.tokens, what.pooled))
            measured = curve(planner, float(np.exp(0.3 * rng.normal())))
            predictor = planner.fingerprint
            remember(
                store, found(planner, encoded=what, seed=seed, measured=measured, predictor=predictor, predicted=said)
            )


def seeds_in(cache: Cache, path: Path, wanted: Wanted) -> list[int]:
    loaded = cache.memory(path, wanted)
    memory = None if loaded is None else loaded.ready.memory
    return [] if memory is None else sorted(memory.curves.seeds.tolist())


def test_new_renders_are_known_at_once_and_fitted_for_the_plans_after(
    path: Path, planner: Planner, wanted: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache()
    assert cache.memory(path, wanted) is None  # no store, and none is made
    assert not path.exists()
    add(path, planner, *range(2 * PROMPTS))
    assert seeds_in(cache, path, wanted) == list(range(2 * PROMPTS))
    cache.wait()
    first = cache.memory(path, wanted)
    assert first is not None
    assert first.ready.memory is not None
    assert first.ready.memory.fitted == 2 * PROMPTS
    assert cache.memory(path, wanted) is first
    with Store.at(path) as store:
        elsewhere = Subject(replace(SETTING, cfg=9.0), planner.target_steps, {"negative": "ab"})
        remember(store, found(planner, subject=elsewhere))
    after = cache.memory(path, wanted)
    assert after is not None
    assert after.ready.memory is first.ready.memory  # and nothing is fitted anew
    assert not after.stale
    reads: list[int] = []
    real = memory_reader._levels

    def counted(connection: Any, planner: Any, renders: Any, backends: Any) -> Any:
        reads.append(len(renders))
        return real(connection, planner, renders, backends)

    monkeypatch.setattr(memory_reader, "_levels", counted)
    add(path, planner, 100)
    assert 100 in seeds_in(cache, path, wanted)
    cache.wait()
    assert reads == [1]  # thresholds are made anew from what is known already
    fitted = cache.memory(path, wanted)
    assert fitted is not None
    assert not fitted.stale
    assert seeds_in(Cache(), path, wanted) == [*range(2 * PROMPTS), 100]  # another process, from the file
    assert reads == [1]
    strict = tuple((0.0,) * len(row) for row in planner.risk_table.theta)
    judged_anew = replace(planner, risk_table=replace(planner.risk_table, theta=strict))  # the Blind Test does so
    other = cache.memory(path, replace(wanted, planner=judged_anew))
    assert other is not None
    assert other is not fitted  # whether memory saves steps was found against other thresholds
    assert cache.memory(path, wanted) is fitted
    cache.wait()


def test_a_later_process_begins_with_the_same_memory(path: Path, planner: Planner, wanted: Wanted) -> None:
    add(path, planner, *range(2 * PROMPTS))
    cache = Cache()
    cache.memory(path, wanted)
    cache.wait()
    loaded = cache.memory(path, wanted)
    kept = read_ready(path, key_of(wanted))
    assert loaded is not None
    assert kept is not None
    one, other = loaded.ready.memory, kept.memory
    assert one is not None
    assert other is not None
    assert (one.kernel, one.own, one.near, one.new, one.fitted) == (
        other.kernel,
        other.own,
        other.near,
        other.new,
        other.fitted,
    )
    prediction = planner.predict(encoded(3).tokens, encoded(3).pooled)
    place = signature(encoded(3).tokens, encoded(3).pooled)
    both = [m.recall(prediction, place, 0.1, encoded(3).digest(), 6) for m in (one, other)]
    assert both[0].exact
    assert both[1].exact
    assert np.array_equal(both[0].prediction.normalised, both[1].prediction.normalised)
    assert key_of(wanted) != key_of(replace(wanted, facts={"negative": "cd"}))
    assert key_of(wanted) == key_of(replace(wanted, setting=replace(SETTING, model_name="renamed")))
    lax = replace(planner, risk_table=replace(planner.risk_table, prompts=999))
    assert key_of(wanted) != key_of(replace(wanted, planner=lax))


def test_what_was_forgotten_or_evicted_is_in_no_plan_and_in_no_file(
    path: Path, planner: Planner, wanted: Wanted
) -> None:
    add(path, planner, *range(2 * PROMPTS))
    cache = Cache()
    seeds_in(cache, path, wanted)
    cache.wait()
    with Store.at(path) as store:
        remember(store, found(planner, encoded=encoded(50), seed=200), most=10)
    assert seeds_in(cache, path, wanted) == [*range(2 * PROMPTS - 9, 2 * PROMPTS), 200]
    cache.wait()
    with Store.at(path) as store:
        store_memory.forget_prompt(store, "11")
        forget_ready(path)
    assert not list(path.with_name(memory_file.FOLDER).glob("*"))
    assert seeds_in(cache, path, wanted) == [19, 22, 23, 24, 25, 26, 27, 200]
    cache.wait()
    kept = read_ready(path, key_of(wanted))
    assert kept is not None
    assert kept.memory is not None
    assert len(kept.memory.curves.keys) == len(kept.memory.space.places) == 5  # nothing of the others is left in it
    with Store.at(path) as store:
        store_memory.forget_older(store, time.time() + 1.0)
    assert seeds_in(cache, path, wanted) == []
    cache.wait()


def test_a_fit_that_runs_while_renders_are_forgotten_leaves_no_file_of_them(
    path: Path, planner: Planner, wanted: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(path, planner, *range(4))
    real = memory_file.write_ready

    def forgotten_meanwhile(*written: Any) -> None:
        with Store.at(path) as store:
            store_memory.forget_prompt(store, "1")
            forget_ready(path)
        real(*written)

    monkeypatch.setattr(memory_file, "write_ready", forgotten_meanwhile)
    cache = Cache()
    seeds_in(cache, path, wanted)
    cache.wait()
    assert read_ready(path, key_of(wanted)) is None
    monkeypatch.undo()
    assert seeds_in(cache, path, wanted) == [2, 3]
    cache.wait()


def test_of_very_many_new_renders_the_latest_are_read_and_the_rest_is_said(
    path: Path, planner: Planner, wanted: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning_memory, "AT_ONCE", 5)
    add(path, planner, *range(2 * PROMPTS))
    cache = Cache()
    loaded = cache.memory(path, wanted)
    assert loaded is not None
    assert loaded.unread == 2 * PROMPTS - 5
    assert loaded.ready.memory is not None
    assert sorted(loaded.ready.memory.curves.seeds.tolist()) == list(range(2 * PROMPTS - 5, 2 * PROMPTS))
    cache.wait()
    after = cache.memory(path, wanted)
    assert after is not None
    assert after.unread == 0
    assert seeds_in(cache, path, wanted) == list(range(2 * PROMPTS))


@pytest.mark.parametrize("spoil", ["zeros", "cut", "another make", "shapes"])
def test_a_file_that_is_no_use_is_made_anew(path: Path, planner: Planner, wanted: Wanted, spoil: str) -> None:
    add(path, planner, *range(4))
    cache = Cache()
    seeds_in(cache, path, wanted)
    cache.wait()
    (file,) = path.with_name(memory_file.FOLDER).iterdir()
    content = file.read_bytes()
    if spoil == "zeros":
        file.write_bytes(b"\0" * len(content))
    elif spoil == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif spoil == "another make":
        file.write_bytes(content.replace(memory_file.FORMAT.encode(), b"budgetfusion.memory 9"))
    else:
        file.write_bytes(content.replace(b'\\"grid\\": [', b'\\"grid\\": [1,', 1))
    assert read_ready(path, key_of(wanted)) is None
    again = Cache()
    assert seeds_in(again, path, wanted) == list(range(4))
    again.wait()
    assert read_ready(path, key_of(wanted)) is not None


def test_a_folder_that_cannot_be_written_to_costs_no_plan(path: Path, planner: Planner, wanted: Wanted) -> None:
    path.with_name(memory_file.FOLDER).write_text("a file where the folder should be", encoding="utf-8")
    add(path, planner, *range(4))
    cache = Cache()
    assert seeds_in(cache, path, wanted) == list(range(4))
    cache.wait()
    loaded = cache.memory(path, wanted)
    assert loaded is not None
    assert not loaded.stale
