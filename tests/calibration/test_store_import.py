"""What another store's file may bring in: whole rows, or nothing and a reason."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from budgetfusion_nodes.calibration.store import Store
from budgetfusion_nodes.calibration.store_memory import Remembered, remember
from budgetfusion_nodes.calibration.store_merge import merge_store
from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.sources import SWEPT
from tests.calibration.stub import BACKENDS
from tests.calibration.test_store import SUBJECT, encoded, fill, measurement

ROWS_THAT_BREAK = (
    "UPDATE settings SET setting = '[]'",
    "UPDATE settings SET setting = json_set(setting, '$.cfg', 'high')",
    "UPDATE settings SET setting = json_set(setting, '$.schedule', 'nested')",
    "UPDATE settings SET facts = '" + "[" * 5000 + "'",
    "UPDATE settings SET facts = '{\"vae\": 3}'",
    "UPDATE settings SET target = 2.5",
    "UPDATE settings SET target = 1000000000000",
    "UPDATE settings SET created = 'yesterday'",
    "UPDATE settings SET digest = x'00ff'",
    "UPDATE prompts SET features = x'00'",
    "UPDATE prompts SET features = 'text'",
    "UPDATE prompts SET text = CAST(x'ff' AS TEXT)",
    "UPDATE backends SET names = '[1]'",
    "UPDATE backends SET names = 'no JSON'",
    "UPDATE measurements SET distances = '{\"l_snr\": NaN}'",
    'UPDATE measurements SET distances = \'{"l_snr": "much"}\'',
    "UPDATE measurements SET l_snr = 9e999",
    "UPDATE measurements SET steps = -1 WHERE steps = 2",
    "UPDATE measurements SET render_seconds = x'00'",
    "UPDATE trajectories SET seed = 'seven'",
    "UPDATE memories SET source = 'elsewhere'",
    "UPDATE memories SET at = 9e999",
    "UPDATE memories SET predicted = x'0000c07f'",
    "UPDATE memories SET predicted = x'00'",
    "UPDATE signatures SET vector = x'007e'",
    "UPDATE signatures SET vector = zeroblob(100000)",
    "INSERT INTO found_schedules VALUES (1, 1, 1, 'elsewhere', '{\"asked\": 1}', 1.0)",
    "INSERT INTO found_schedules VALUES (1, 1, 1, 'stock', '{}', 1.0)",
    "INSERT INTO choices VALUES (1, 'k', 'l', 'better', 0.9, 7, 0, 0, '{}', 1.0)",
    "ALTER TABLE measurements DROP COLUMN l_snr",
    "DROP TABLE memories",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "calibration.sqlite3"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a row in every table that an import reads, but for those that the cases above fill."""
    path = tmp_path_factory.mktemp("whole") / "whole.sqlite3"
    with Store.at(path) as store:
        remember(store, Remembered(SUBJECT, encoded(), 7, BACKENDS, [measurement(20)], SWEPT, "p", b"\0" * 12))
        fill(store)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    return path


def test_a_whole_store_is_imported(path: Path, whole: Path) -> None:
    with Store.at(path) as store:
        assert merge_store(store, whole) == 2


@pytest.mark.parametrize("spoil", ROWS_THAT_BREAK)
def test_a_row_that_no_store_writes_is_refused_and_nothing_comes_in(path: Path, whole: Path, spoil: str) -> None:
    bad = path.parent.parent / "bad.sqlite3"
    bad.write_bytes(whole.read_bytes())
    with contextlib.closing(sqlite3.connect(bad)) as connection, connection:
        assert connection.execute(spoil).rowcount != 0
    with Store.at(path) as store:
        fill(store, prompt=1)
        before = store.contents()
        with pytest.raises(InputError, match=r"bad\.sqlite3 was not imported, and nothing of it came in: \w"):
            merge_store(store, bad)
        assert store.contents() == before
