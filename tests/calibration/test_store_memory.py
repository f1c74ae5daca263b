"""Remembered renders in the store: what matches, what never does, what is forgotten, and databases that are no use."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from budgetfusion_nodes.calibration import schema, store_memory
from budgetfusion_nodes.calibration.memory_reader import (
    Changes,
    OlderStoreError,
    Seen,
    Wanted,
    matching_settings,
    of_settings,
    on_grid,
    read_curves,
    reading,
)
from budgetfusion_nodes.calibration.records import Encoded, Measurement, Subject
from budgetfusion_nodes.calibration.store import Store
from budgetfusion_nodes.calibration.store_memory import Remembered, remember
from budgetfusion_nodes.calibration.store_merge import merge_store
from budgetfusion_nodes.predictor.planner import Planner
from tests.calibration.stub import BACKENDS, SETTING
from tests.fixtures.planners import make_planner

WIDTH, POOLED = 8, 4


@pytest.fixture(scope="module")
def planner() -> Planner:
    return replace(make_planner(WIDTH, POOLED), setting=SETTING, backends=BACKENDS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "calibration.sqlite3"


def encoded(seed: int = 0) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    return Encoded.of(torch.randn(5, WIDTH, generator=generator), torch.randn(POOLED, generator=generator))


def curve(planner: Planner, factor: float = 1.0) -> list[Measurement]:
    steps = planner.grid
    levels = [factor * (1.0 / n - 1.0 / steps[-1]) for n in steps]
    scales = dict(zip(planner.metrics, planner.scale, strict=True))
    return [
        Measurement(n, {m: level * s for m, s in scales.items()}, 9.0, n, 0.1, 0.1)
        for n, level in zip(steps, levels, strict=True)
    ]


def found(planner: Planner, **changes: Any) -> Remembered:
    usual: dict[str, Any] = {
        "subject": Subject(SETTING, planner.target_steps, {"negative": "ab"}),
        "encoded": encoded(),
        "seed": 7,
        "backends": BACKENDS,
        "measured": curve(planner),
        "source": "learn",
    }
    return Remembered(**{**usual, **changes})


def looked_up(path: Path, planner: Planner, setting: Any = SETTING, facts: Any = None) -> Any:
    wanted = Wanted(planner, setting, {"negative": "ab"} if facts is None else facts)
    with reading(path) as connection:
        found = read_curves(connection, wanted, matching_settings(connection, wanted))
    return None if found is None else found[0]


def test_what_is_remembered_is_looked_up_on_the_planners_scale(path: Path, planner: Planner) -> None:
    with Store.at(path) as store:
        remember(store, found(planner))
        remember(store, found(planner, seed=2**64 - 1, measured=curve(planner, 2.0)))
    curves = looked_up(path, planner)
    grid = np.array(planner.grid, float)
    assert curves.level[0] == pytest.approx(1.0 / grid - 1.0 / grid[-1])
    assert curves.level[1] == pytest.approx(2.0 * curves.level[0])
    assert curves.prompts.tolist() == [0, 0]
    assert curves.seeds.tolist() == [7, -1]
    assert np.isnan(curves.median).all()  # no predictor said anything, and no conditioning was kept
    assert curves.keys.tolist() == [encoded().digest().encode()]


@pytest.mark.parametrize(
    "other",
    [
        {"cfg": 3.0},
        {"schedule": "nested 2@1.0"},
        {"precision": "bf16"},
        {"model": "other"},
        {"width": 128},
        {"sampler_name": "heun"},
        {"guidance": 2.0},
        {"extras": ("area",)},
        {"changes": ("lora",)},
    ],
)
def test_no_other_setting_leaks_in(path: Path, planner: Planner, other: dict[str, Any]) -> None:
    with Store.at(path) as store:
        remember(store, found(planner))
    assert looked_up(path, planner, replace(SETTING, model_name="renamed")) is not None
    assert looked_up(path, planner, replace(SETTING, **other)) is None


def test_no_other_target_negative_or_backend_leaks_in(path: Path, planner: Planner) -> None:
    with Store.at(path) as store:
        remember(store, found(planner, subject=Subject(SETTING, 9, {"negative": "ab"})))
        remember(store, found(planner, backends={**BACKENDS, "d_sim": "another"}))
    assert looked_up(path, planner) is None
    with Store.at(path) as store:
        remember(store, found(planner))
    assert looked_up(path, planner, facts={"negative": "cd"}) is None
    assert looked_up(path, planner, facts={"negative": "ab", "latent": "12"}) is None
    assert len(looked_up(path, planner, facts={})) == 1  # a node that does not know the negative prompt


def test_predictions_count_for_their_own_predictor_alone(path: Path, planner: Planner) -> None:
    said = np.arange(2 * len(planner.grid) + 1, dtype=np.float32)
    with Store.at(path) as store:
        remember(store, found(planner, predictor=planner.fingerprint, predicted=said.tobytes()))
        remember(store, found(planner, seed=8, predictor="another", predicted=said.tobytes()))
        before = said[:-1].tobytes()  # as versions wrote it that did not keep the score
        remember(store, found(planner, seed=9, predictor=planner.fingerprint, predicted=before))
    curves = looked_up(path, planner)
    assert curves.median[0] == pytest.approx(said[: len(planner.grid)])
    assert curves.high[0] == pytest.approx(said[len(planner.grid) : -1])
    assert curves.distance[0] == said[-1]
    assert np.isnan(curves.median[1]).all()
    assert curves.high[2] == pytest.approx(curves.high[0])
    assert np.isnan(curves.distance[1:]).all()


def test_a_finished_calibration_is_remembered_and_predicted_from_its_conditioning(path: Path, planner: Planner) -> None:
    with Store.at(path) as store:
        setting, backends = store.setting_id(Subject(SETTING, planner.target_steps)), store.backends_id(BACKENDS)
        prompt = store.prompt_id(encoded(), "subject")
        kept = store.trajectory(setting, prompt, 7, backends)
        for one in curve(planner):
            store.record(kept.trajectory_id, backends, one)
    assert looked_up(path, planner, facts={}) is None  # it is not finished
    with Store.at(path) as store:
        store.finish(kept.trajectory_id)
    curves = looked_up(path, planner, facts={})
    predicted = planner.predict(encoded().tokens, encoded().pooled).normalised.max(axis=1)
    assert curves.median[0] == pytest.approx(predicted[:, 1], rel=1e-5)
    assert curves.high[0] == pytest.approx(predicted[:, 2], rel=1e-5)
    assert curves.distance[0] == pytest.approx(planner.predict(encoded().tokens, encoded().pooled).distance, rel=1e-5)


def test_a_prompt_that_was_only_remembered_can_be_calibrated_later(path: Path, planner: Planner) -> None:
    with Store.at(path) as store:
        remember(store, found(planner))
        row = store.prompt_id(encoded(), "subject")
        assert torch.equal(store.encoded([row])[row].tokens, encoded().tokens)


def test_lines_between_measured_counts_stand_only_where_they_say_something() -> None:
    grid = (2, 4, 6, 8, 12, 20, 50)
    steps, level = np.array([4.0, 6.0, 9.0, 50.0]), np.array([1.0, 0.5, 0.3, 0.0])
    known = on_grid(grid, steps, level)
    assert np.isnan(known).tolist() == [True, False, False, False, True, True, False]
    settled = on_grid(grid, steps, np.array([1.0, 0.5, 0.05, 0.0]))
    assert np.isnan(settled).tolist() == [True, False, False, False, False, False, False]


def test_what_came_and_went_is_told_without_reading_the_rest(path: Path, planner: Planner) -> None:
    statements: list[str] = []

    def now(known: Seen) -> Changes:
        statements.clear()
        with reading(path) as connection:
            connection.set_trace_callback(statements.append)
            return known.now(connection)

    def read_whole() -> bool:
        return any(text.startswith("SELECT trajectory_id, at") and "at >" not in text for text in statements)

    with Store.at(path) as store:
        for seed in range(4):
            remember(store, found(planner, seed=seed))
        first = now(Seen.nothing()).seen
        assert now(first).seen is first
        other = found(planner, subject=Subject(replace(SETTING, cfg=9.0), planner.target_steps))
        remember(store, other)
        remember(store, found(planner, seed=8), most=4)  # the two oldest go
        second = now(first)
        assert not read_whole()
        assert second.seen.rows.tolist() == [*first.rows[2:].tolist(), 5, 6]
        assert second.came.tolist() == [5, 6]
        assert second.went.tolist() == first.rows[:2].tolist()
        with reading(path) as connection:
            own = matching_settings(connection, Wanted(planner, SETTING, {"negative": "ab"}))
            assert of_settings(connection, second.came, own).tolist() == [6]
        remember(store, found(planner, seed=3, measured=curve(planner, 2.0)))
        third = now(second.seen)
        assert not read_whole()
        assert third.came.tolist() == [first.rows[3]]  # measured again
        assert not len(third.went)
        with store.transaction() as connection:
            connection.exec_driver_sql(f"DELETE FROM trajectories WHERE id = {third.seen.rows[1]}")
            # a clock that was set back, and an import, write what is older than what is known
            connection.exec_driver_sql(
                "INSERT INTO trajectories (id, setting_id, prompt_id, seed) VALUES (90, 1, 1, 9)"
            )
            connection.exec_driver_sql("INSERT INTO memories (trajectory_id, at, source) VALUES (90, 5.0, 'learn')")
        fourth = now(third.seen)
        assert read_whole()
        assert fourth.came.tolist() == [90]
        assert fourth.went.tolist() == [third.seen.rows[1]]
        assert sorted(fourth.seen.rows) == sorted([90, *third.seen.rows[[0, 2, 3]]])
        store.set_aside(90, 5, "a test")
        assert now(fourth.seen).went.tolist() == [90]
        store_memory.forget_older(store, time.time() + 1.0)
        fifth = now(fourth.seen)
        assert len(fifth.seen.rows) == len(fifth.came) == 0
        assert sorted(fifth.went) == sorted(fourth.seen.rows)


def test_what_came_is_found_by_an_index(path: Path) -> None:
    Store.at(path).close()
    with reading(path) as connection:
        for query in ("SELECT trajectory_id, at FROM memories WHERE at > 1", "SELECT sum(trajectory_id) FROM memories"):
            plan = connection.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()
            assert "COVERING INDEX memories_at" in plan[0][3]


def test_as_many_renders_as_are_kept_take_less_than_100_megabytes(path: Path, planner: Planner) -> None:
    sizes = []
    with Store.at(path) as store:
        for seed in range(30):
            wide = Encoded.of(torch.randn(77, 4096, generator=torch.Generator().manual_seed(seed)), torch.randn(768))
            said = np.zeros(2 * len(planner.grid) + 1, np.float32).tobytes()
            remember(store, found(planner, encoded=wide, seed=seed, predictor=planner.fingerprint, predicted=said))
            if seed in (9, 29):
                with store.transaction() as connection:
                    pages, size = (
                        connection.exec_driver_sql(f"PRAGMA page_{what}").scalar_one() for what in ("count", "size")
                    )
                    sizes.append(pages * size)
    assert (sizes[1] - sizes[0]) / 20 * store_memory.MOST < 100e6


def test_the_oldest_are_evicted_and_calibrations_never(path: Path, planner: Planner) -> None:
    with Store.at(path) as store:
        setting, backends = store.setting_id(Subject(SETTING, planner.target_steps)), store.backends_id(BACKENDS)
        kept = store.trajectory(setting, store.prompt_id(encoded(99), "subject"), 1, backends)
        store.record(kept.trajectory_id, backends, curve(planner)[-1])
        store.finish(kept.trajectory_id)
        for seed in range(5):
            remember(store, found(planner, encoded=encoded(seed), seed=seed), most=3)
        assert sorted(row.prompt_id for row in store_memory.prompt_rows(store)) == [1, 4, 5, 6]
        with store.transaction() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM signatures").scalar_one() == 4


def test_what_is_forgotten_by_age_model_and_prompt_is_gone_with_its_measurements(path: Path, planner: Planner) -> None:
    other = Subject(replace(SETTING, model="0123456789", model_name="flux"), planner.target_steps)
    with Store.at(path) as store:
        remember(store, found(planner))
        remember(store, found(planner, encoded=encoded(1)))
        remember(store, found(planner, subject=other))
        assert store_memory.forget_prompt(store, "2") == 1
        assert store_memory.forget_prompt(store, "no such text") == 0
        assert store_memory.forget_model(store, "012345") == 1
        assert store_memory.forget_model(store, "012") == 0
        assert len(store.contents()) == 1
        assert store_memory.forget_older(store, time.time() - 60.0) == 0
        assert store_memory.forget_older(store, time.time() + 60.0) == 1
        with store.transaction() as connection:
            for table in ("measurements", "memories", "prompts", "signatures"):
                assert connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one() == 0


def test_export_and_import_carry_memories_once(path: Path, planner: Planner, tmp_path: Path) -> None:
    with Store.at(path) as store:
        remember(store, found(planner, predictor="p", predicted=b"1234"))
        store.export(tmp_path / "out.sqlite3")
    with Store.at(tmp_path / "second.sqlite3") as second:
        assert merge_store(second, tmp_path / "out.sqlite3") == len(planner.grid)
        assert merge_store(second, tmp_path / "out.sqlite3") == 0
    assert len(looked_up(tmp_path / "second.sqlite3", planner)) == 1


def test_a_store_of_the_first_version_is_migrated_with_its_curves(path: Path, planner: Planner) -> None:
    with Store.at(path) as store:
        setting, backends = store.setting_id(Subject(SETTING, planner.target_steps)), store.backends_id(BACKENDS)
        kept = store.trajectory(setting, store.prompt_id(encoded(), "subject"), 7, backends)
        for one in curve(planner):
            store.record(kept.trajectory_id, backends, one)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE memories")
        connection.execute("DROP TABLE signatures")
        connection.execute("PRAGMA user_version = 1")
    with pytest.raises(OlderStoreError), reading(path):
        pass
    with Store.at(path) as store:
        assert store.said is None
    assert len(looked_up(path, planner, facts={})) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"no database" * 100),
        lambda path: path.write_bytes(path.read_bytes()[:4096] + b"\0" * 20_000),
        lambda path: sqlite3.connect(path).execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}").close(),
        lambda path: sqlite3.connect(path).execute("PRAGMA application_id = 5").close(),
    ],
)
def test_a_database_that_is_no_use_is_an_error_of_sqlite_and_is_left_alone(
    path: Path, planner: Planner, spoil: Any
) -> None:
    with Store.at(path) as store:
        remember(store, found(planner))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode = DELETE")
    spoil(path)
    before = path.read_bytes()
    with pytest.raises(sqlite3.Error):
        looked_up(path, planner)
    assert path.read_bytes() == before


def test_the_command_line_forgets_by_age_model_and_prompt(
    path: Path, planner: Planner, capsys: pytest.CaptureFixture[str]
) -> None:
    from budgetfusion_nodes.cli import main

    with Store.at(path) as store:
        for seed in range(3):
            remember(store, found(planner, encoded=encoded(seed)))
    place = ["--store", str(path)]
    assert main(["store", "prompts", *place]) == 0
    assert "1: 1 renders" in capsys.readouterr().out
    assert main(["store", "forget", "--prompt", "1", *place]) == 0
    assert main(["store", "forget", "--prompt", "1", *place]) == 1
    assert main(["store", "forget", "--older-than", "1", *place]) == 0
    assert main(["store", "forget", "--model", SETTING.model_name, *place]) == 0
    capsys.readouterr()
    assert main(["store", "prompts", "--json", *place]) == 0
    assert '"prompts": []' in capsys.readouterr().out
