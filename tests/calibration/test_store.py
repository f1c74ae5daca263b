"""The store: nothing twice, nothing lost, and a database that cannot be used is set aside and never deleted."""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from budgetfusion_nodes.calibration import schema, store_file
from budgetfusion_nodes.calibration.records import Encoded, Measurement, Subject
from budgetfusion_nodes.calibration.store import KeptPlanner, Store
from budgetfusion_nodes.calibration.store_file import StoreError
from budgetfusion_nodes.calibration.store_merge import merge_store
from budgetfusion_nodes.core.errors import InputError
from tests.calibration.stub import BACKENDS, SETTING

SUBJECT = Subject(SETTING, 20)


def encoded(seed: int = 0, length: int = 5, width: int = 8) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    return Encoded.of(torch.randn(length, width, generator=generator), torch.randn(4, generator=generator))


def measurement(steps: int, value: float = 0.25) -> Measurement:
    return Measurement(steps, {"l_snr": value, "d_sim": 0.1 + 0.2}, 9.5, steps, 0.5, 0.01)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "calibration.sqlite3"


def fill(store: Store, counts: tuple[int, ...] = (20, 2), prompt: int = 0) -> tuple[int, int, int]:
    setting, backends = store.setting_id(SUBJECT), store.backends_id(BACKENDS)
    row = store.prompt_id(encoded(prompt), "subject", "a secret prompt")
    kept = store.trajectory(setting, row, 7, backends)
    for steps in counts:
        store.record(kept.trajectory_id, backends, measurement(steps), b"latent" if steps == 20 else None)
    return setting, row, backends


def test_what_is_recorded_comes_back_to_the_bit(path: Path) -> None:
    with Store.at(path) as store:
        setting, prompt, backends = fill(store)
    with Store.at(path) as store:
        assert store.said is None
        kept = store.trajectory(setting, prompt, 7, backends)
        assert kept.measured == {20: measurement(20), 2: measurement(2)}
        assert kept.latent == b"latent"
        assert kept.set_aside is None
        assert store.measured(setting, backends, [prompt]) == {(prompt, 7): kept.measured}
        again = store.encoded([prompt])[prompt]
        assert torch.equal(again.tokens, encoded().tokens)
        store.finish(kept.trajectory_id)
        assert store.trajectory(setting, prompt, 7, backends).latent is None


def test_a_count_that_two_processes_measure_is_kept_once(path: Path) -> None:
    with Store.at(path) as one, Store.at(path) as other:
        setting, prompt, backends = fill(one)
        kept = other.trajectory(setting, prompt, 7, backends)
        other.record(kept.trajectory_id, backends, measurement(2, 99.0))
        assert one.trajectory(setting, prompt, 7, backends).measured[2] == measurement(2), "the first stays"
        assert other.setting_id(SUBJECT) == setting
        assert other.prompt_id(encoded(), "subject") == prompt


def test_many_writers_at_once(path: Path) -> None:
    Store.at(path).close()
    errors: list[BaseException] = []

    def write(prompt: int) -> None:
        try:
            with Store.at(path) as store:
                fill(store, tuple(range(2, 20)), prompt)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with Store.at(path) as store:
        (contents,) = store.contents()
        assert (contents.prompts, contents.measurements) == (6, 6 * 18)


def test_numbers_of_other_backends_do_not_mix(path: Path) -> None:
    with Store.at(path) as store:
        setting, prompt, _ = fill(store)
        other = store.backends_id({**BACKENDS, "d_sim": "d_sim:stub#other"})
        assert store.trajectory(setting, prompt, 7, other).measured == {}


def test_a_setting_is_told_by_all_that_moves_the_picture(path: Path) -> None:
    subjects = [
        SUBJECT,
        Subject(SETTING, 30),
        Subject(replace(SETTING, schedule="nested 5@1.0"), 20),
        Subject(SETTING, 20, facts={"negative": "abc"}),
    ]
    with Store.at(path) as store:
        assert len({store.setting_id(subject) for subject in subjects}) == len(subjects)
        schedules = [contents.schedule for contents in store.contents()]
        numbers = {"prefix_steps": 5, "sigma_commit": 1.0, "tail_end": 1.0, "tail_warp": []}
        assert {"kind": "nested", **numbers} in schedules


def test_set_aside_is_left_out_until_it_is_tried_again(path: Path) -> None:
    with Store.at(path) as store:
        setting, prompt, backends = fill(store)
        kept = store.trajectory(setting, prompt, 7, backends)
        store.set_aside(kept.trajectory_id, 6, "NaN")
        assert store.measured(setting, backends, [prompt]) == {}
        assert [(one.steps, one.reason) for one in store.all_set_aside(setting)] == [(6, "NaN")]
        assert store.try_again(setting) == 1
        assert store.measured(setting, backends, [prompt]) != {}


def test_tokens_beyond_half_precision_are_held(path: Path) -> None:
    for length in (4, 4000):  # float32 and, for a long one, bfloat16
        large = Encoded.of(torch.full((length, 300), 3e5), None)
        back = Encoded.from_bytes(large.to_bytes())
        assert torch.isfinite(back.tokens).all()
        assert float(back.tokens.float().max()) == pytest.approx(3e5, rel=0.01)
    with pytest.raises(InputError, match="not finite"):
        Encoded.of(torch.tensor([[float("inf")]]), None)


# ------------------------------------------------------------------------------------------------- bad databases


def others(path: Path) -> list[Path]:
    return sorted(p for p in path.parent.iterdir() if "set-aside" in p.name and p.suffix == ".sqlite3")


@pytest.fixture
def closed_when_moved(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names under which databases were set aside. Windows renames no file that is open, whoever opened it."""
    moved, rename = [], Path.rename

    def checked(self: Path, target: Path) -> Path:
        held = [one.path for one in psutil.Process().open_files() if Path(one.path).name.startswith(path.name)]
        assert not held
        moved.append(Path(target).name)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", checked)
    return moved


@pytest.mark.parametrize("content", [b"this is no database" * 500, b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_damaged_database_is_set_aside(path: Path, content: bytes, closed_when_moved: list[str]) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with Store.at(path) as store:
        assert store.said is not None
        assert store.said.code == "store_damaged"
        fill(store)
    (other,) = others(path)
    assert other.read_bytes() == content, "not a byte is lost"
    assert store.said.values["other"] == other.name
    assert other.name in closed_when_moved


def test_damage_in_the_middle_is_noticed(path: Path, closed_when_moved: list[str]) -> None:
    with Store.at(path) as store:
        for prompt in range(8):
            fill(store, tuple(range(2, 20)), prompt)
    content = bytearray(path.read_bytes())
    content[4096 : len(content) - 4096] = b"\x5a" * (len(content) - 8192)
    path.write_bytes(content)
    with Store.at(path) as store:
        assert store.said is not None
        assert store.contents() == ()
    assert others(path)[0].read_bytes() == content
    assert closed_when_moved


def test_a_newer_and_a_foreign_database_are_set_aside(path: Path, closed_when_moved: list[str]) -> None:
    path.parent.mkdir()
    for said, statements in (
        ("store_foreign", ["CREATE TABLE recipes (name TEXT)"]),
        ("store_newer", [f"PRAGMA application_id = {schema.APPLICATION_ID}", "PRAGMA user_version = 999"]),
    ):
        path.unlink(missing_ok=True)
        connection = sqlite3.connect(path)
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()
        with Store.at(path) as store:
            assert store.said is not None
            assert store.said.code == said
            assert store.contents() == ()
    assert len(others(path)) == 2
    assert len(closed_when_moved) >= 2


def test_a_read_only_database_is_set_aside(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root every file can be written, so SQLite is told to open the first one read-only."""
    with Store.at(path) as store:
        fill(store)
    before = path.read_bytes()
    original, opened = store_file.new_engine, []

    def read_only_once(file: Path):
        opened.append(file)
        if len(opened) > 1:
            return original(file)
        from sqlalchemy import create_engine

        return create_engine(f"sqlite:///file:{file}?mode=ro&uri=true")

    monkeypatch.setattr(store_file, "new_engine", read_only_once)
    with Store.at(path) as store:
        assert store.said is not None
        assert store.said.code == "store_read_only"
    assert others(path)[0].read_bytes() == before


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="file"):
        Store.at(tmp_path / "file" / "calibration.sqlite3")


def test_an_older_version_is_migrated_with_its_data(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.at(path) as store:
        setting, prompt, backends = fill(store)
    later = (*schema.MIGRATIONS, lambda connection: connection.exec_driver_sql("ALTER TABLE prompts ADD language TEXT"))
    monkeypatch.setattr(schema, "MIGRATIONS", later)
    with Store.at(path) as store:
        assert store.said is None
        assert set(store.trajectory(setting, prompt, 7, backends).measured) == {2, 20}
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(later),)
        assert "language" in [row[1] for row in connection.execute("PRAGMA table_info(prompts)")]


# ----------------------------------------------------------------------------------------------- export and import


def test_an_export_holds_no_text_and_comes_in_once(path: Path, tmp_path: Path) -> None:
    with Store.at(path) as store:
        setting, *_ = fill(store)
        store.record_planner(setting, KeptPlanner("p.safetensors", "ab", 9, {}, 1.0))
        store.export(tmp_path / "out.sqlite3")
        with pytest.raises(InputError, match="is there already"):
            store.export(tmp_path / "out.sqlite3")
    assert b"secret" in path.read_bytes() + b"".join(p.read_bytes() for p in path.parent.glob("*-wal"))
    assert b"secret" not in (tmp_path / "out.sqlite3").read_bytes()
    with Store.at(tmp_path / "other" / "calibration.sqlite3") as other:
        fill(other, (20, 5))
        assert merge_store(other, tmp_path / "out.sqlite3") == 1  # 20 was there, 2 is new
        assert merge_store(other, tmp_path / "out.sqlite3") == 0
        kept = other.trajectory(other.setting_id(SUBJECT), 1, 7, other.backends_id(BACKENDS))
        assert set(kept.measured) == {2, 5, 20}


def test_the_store_of_a_comfyui_that_runs_comes_in_whole(path: Path, tmp_path: Path) -> None:
    """Its newest rows are in the write-ahead log alone."""
    with Store.at(path) as running, Store.at(tmp_path / "own" / "calibration.sqlite3") as own:
        fill(running)
        assert path.with_name(path.name + "-wal").stat().st_size > 0
        assert merge_store(own, path) == 2


def test_an_export_that_cannot_be_written_is_said_and_leaves_nothing(path: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with Store.at(path) as store:
        fill(store)
        with pytest.raises(InputError, match="no folder"):
            store.export(tmp_path / "none" / "out.sqlite3")
        store.export(tmp_path / "out" / "with.sqlite3", with_text=True)
    assert b"secret" in (tmp_path / "out" / "with.sqlite3").read_bytes()
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["with.sqlite3"]


@pytest.mark.parametrize("trigger", [False, True])
def test_what_is_no_store_is_not_imported(path: Path, tmp_path: Path, trigger: bool) -> None:
    bad = tmp_path / "bad.sqlite3"
    if trigger:
        with Store.at(bad) as store:
            fill(store)
        connection = sqlite3.connect(bad)
        connection.execute("CREATE VIEW extra AS SELECT 1")
        connection.close()
    else:
        bad.write_bytes(b"PK\x03\x04 no database")
    with Store.at(path) as store, pytest.raises(InputError, match=r"bad\.sqlite3"):
        merge_store(store, bad)


def test_forgetting_a_setting_takes_its_prompts_along(path: Path) -> None:
    with Store.at(path) as store:
        setting, *_ = fill(store)
        assert store.forget(setting)
        assert not store.forget(setting)
        assert store.contents() == ()
        assert store.encoded([1]) == {}
