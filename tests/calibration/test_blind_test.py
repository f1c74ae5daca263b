"""The Blind Test without a host: what is asked, that the order is hidden, what is kept and said."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from pathlib import Path

import pytest
import torch
from torch import Tensor

from budgetfusion_nodes.calibration import schema
from budgetfusion_nodes.calibration.blind_test import BETTER, NEARER, BlindTest, Condition, summarise
from budgetfusion_nodes.calibration.choices import ChoiceStore
from budgetfusion_nodes.calibration.store import Store
from budgetfusion_nodes.calibration.store_file import StoreError
from budgetfusion_nodes.calibration.store_merge import merge_store
from budgetfusion_nodes.cli import main
from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.messages import Message
from budgetfusion_nodes.core.psychometrics import Tally

AT = Condition("sdxl", BETTER, 0.9, {"steps": 9})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "calibration.sqlite3"


def batch(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 8, 8, 3, generator=torch.Generator().manual_seed(seed))


def codes(messages: tuple[Message, ...]) -> list[str]:
    return [one.code for one in messages]


def choose(test: BlindTest, count: int, share: float, condition: Condition = AT, seed: int = 0) -> None:
    """Judges `count` fresh pairs; the full-step picture in `share` of them."""
    for i, pair in enumerate(test.ask(batch(count, seed), batch(count, seed + 1), None, condition).pairs):
        full = "left" if pair.full_left else "right"
        other = "right" if pair.full_left else "left"
        assert test.answer(pair.token, full if i < share * count else other).state == "kept"


def test_a_choice_is_kept_as_the_picture_that_was_chosen(path: Path) -> None:
    test = BlindTest(path)
    choose(test, 20, 0.75)
    assert ChoiceStore(path).tallies("sdxl", BETTER) == {0.9: Tally(20, 15)}
    assert ChoiceStore(path).tallies("sdxl", NEARER) == ChoiceStore(path).tallies("other", BETTER) == {}


def test_the_order_is_drawn_evenly_and_nothing_that_is_sent_tells_it(path: Path) -> None:
    test = BlindTest(path)
    pairs = test.ask(batch(300), batch(300, 1), None, AT).pairs
    left = sum(pair.full_left for pair in pairs)
    assert 105 < left < 195  # five standard deviations
    swapped = BlindTest(path).ask(batch(300, 1), batch(300), None, AT).pairs
    assert [pair.key for pair in pairs] == [pair.key for pair in swapped], "the key is blind to the order"
    assert len({pair.token for pair in (*pairs, *swapped)}) == 600


def test_no_difference_seen_is_a_coins_choice(path: Path) -> None:
    test = BlindTest(path)
    asked = test.ask(batch(40), batch(40, 1), None, AT).pairs
    replies = [test.answer(pair.token, "same") for pair in asked]
    tally = ChoiceStore(path).tallies("sdxl", BETTER)[0.9]
    assert (tally.n, tally.coins) == (40, 40)
    assert 4 < tally.right < 36
    assert "blind_coins" in codes(replies[-1].messages)


def test_equal_pictures_are_not_asked(path: Path) -> None:
    planned, full = batch(3), batch(3, 1)
    planned[1] = 0.5
    full[1] = 0.5 + 1e-4  # less than an 8-bit step, so the page would show the same
    asked = BlindTest(path).ask(planned, full, None, AT)
    assert [pair.index for pair in asked.pairs] == [0, 2]
    assert dict(asked.messages[0].values) == {"n": 1, "of": 3}
    assert codes(asked.messages) == ["blind_equal"]


def test_a_pair_is_judged_once_however_often_it_is_queued_or_sent(path: Path) -> None:
    test = BlindTest(path)
    first, second = test.ask(batch(2), batch(2, 1), None, AT).pairs
    assert test.answer(first.token, "left").state == "kept"
    again = test.answer(first.token, "right")
    assert again.state == "once"
    assert again.messages[0].code == "blind_once"
    asked = BlindTest(path).ask(batch(2), batch(2, 1), None, AT)  # after a restart
    assert [pair.key for pair in asked.pairs] == [second.key]
    assert "blind_before" in codes(asked.messages)
    assert len(test.ask(batch(2), batch(2, 1), None, Condition("another label", BETTER, 0.9)).pairs) == 2
    assert len(test.ask(batch(2), batch(2, 1), batch(1, 9), Condition("sdxl", NEARER, 0.9)).pairs) == 2


def test_an_unknown_pair_is_said(path: Path) -> None:
    test = BlindTest(path)
    assert test.answer("0" * 32, "left").state == "unknown"
    (pair,) = test.ask(batch(1), batch(1, 1), None, AT).pairs
    assert BlindTest(path).answer(pair.token, "left").state == "unknown", "of another process"


@pytest.mark.parametrize(
    ("planned", "full", "reference", "code"),
    [
        (batch(2), batch(3), None, "blind_counts"),
        (batch(2), torch.rand(2, 8, 9, 3), None, "blind_sizes"),
        (batch(3), batch(3, 1), batch(2), "blind_reference"),
    ],
)
def test_what_does_not_fit_is_refused(
    path: Path, planned: Tensor, full: Tensor, reference: Tensor | None, code: str
) -> None:
    with pytest.raises(InputError) as refused:
        BlindTest(path).ask(planned, full, reference, AT)
    assert refused.value.message.code == code
    assert not path.exists()


def test_a_store_that_cannot_be_written_asks_nothing_and_loses_no_choice(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    asked = BlindTest(tmp_path / "file" / "calibration.sqlite3").ask(batch(2), batch(2, 1), None, AT)
    assert asked.pairs == ()
    assert codes(asked.messages) == ["blind_no_store"]
    test = BlindTest(path)
    (pair,) = test.ask(batch(1), batch(1, 1), None, AT).pairs
    with sqlite3.connect(path) as connection:  # read-only as SQLite says it, whoever the tests run as
        connection.execute("CREATE TRIGGER no BEFORE INSERT ON choices BEGIN SELECT RAISE(ABORT, 'readonly'); END")
    reply = test.answer(pair.token, "left")
    assert (reply.state, codes(reply.messages)) == ("failed", ["blind_not_kept"])
    assert "readonly" in reply.messages[0].text()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TRIGGER no")
    assert test.answer(pair.token, "left").state == "kept"
    monkeypatch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
    with pytest.raises(StoreError):  # a database without the table
        ChoiceStore(path.with_name("old.sqlite3")).tests()


def test_what_is_said_follows_the_choices(path: Path) -> None:
    test = BlindTest(path)
    choose(test, 8, 1.0)
    told = test.ask(batch(1, 5), batch(1, 6), None, AT).messages
    assert codes(told) == ["blind_tally", "blind_told", "blind_threshold_open"]
    assert dict(told[0].values) | {"k": 8, "n": 8, "share": 1.0, "high": 1.0} == dict(told[0].values)
    assert told == summarise({0.9: Tally(8, 8)}, 0.9)
    tallies = {0.6: Tally(30, 30), 0.8: Tally(30, 22), 0.95: Tally(30, 15, 4)}
    told = summarise(tallies, 0.95)
    assert codes(told) == ["blind_tally", "blind_untold", "blind_coins", "blind_threshold"]
    assert 0.7 < told[-1].values["quality"] < 0.9  # type: ignore[operator]
    assert codes(summarise({0.9: Tally(30, 3)}, 0.9))[:2] == ["blind_tally", "blind_reversed"]
    assert codes(summarise({q: Tally(40, 39) for q in tallies}, 0.7)) == ["blind_threshold_above"]
    assert codes(summarise({q: Tally(40, 20) for q in tallies}, 0.7)) == ["blind_threshold_below"]
    assert summarise({}, 0.9) == ()


# ----------------------------------------------------------------------------------------------- store and export


def test_a_store_of_the_first_version_gains_the_table_and_keeps_its_rows(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old.sqlite3"
    with monkeypatch.context() as first:
        first.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        with Store.at(path) as store:
            store.backends_id({"l_snr": "a"})
            store.export(old)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master WHERE name = 'choices'").fetchall() == []
    choose(BlindTest(path), 4, 0.5)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS),)
        assert connection.execute("SELECT count(*) FROM backends").fetchone() == (1,)
    with Store.at(tmp_path / "new.sqlite3") as store:
        assert merge_store(store, old) == 0, "a file of the first version comes in too"
        with Store.at(path) as own:
            own.export(tmp_path / "out.sqlite3")
        assert merge_store(store, tmp_path / "out.sqlite3") == merge_store(store, tmp_path / "out.sqlite3") == 0
    assert ChoiceStore(tmp_path / "new.sqlite3").tallies("sdxl", BETTER) == {0.9: Tally(4, 2)}


def test_csv_holds_every_choice_and_no_formula(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    test = BlindTest(path)
    choose(test, 4, 0.5, Condition('=HYPERLINK("x"), "y"', BETTER, 0.9, {"steps": 9}))
    choose(test, 3, 1.0, Condition("plain", NEARER, 0.8), seed=7)
    out = tmp_path / "out.csv"
    assert main(["blind", "export", str(out), "--store", str(path)]) == 0
    rows = list(csv.DictReader(io.StringIO(out.read_text(encoding="utf-8"))))
    assert [row["chosen"] for row in rows] == ["full"] * 2 + ["planned"] * 2 + ["full"] * 3
    assert {row["label"] for row in rows} == {'\'=HYPERLINK("x"), "y"', "plain"}
    assert json.loads(rows[0]["facts"]) == {"steps": 9}
    assert main(["blind", "export", str(out), "--store", str(path)]) == 1, "nothing is overwritten"
    assert main(["blind", "forget", "plain", "--store", str(path)]) == 0
    capsys.readouterr()
    assert main(["blind", "info", "--json", "--store", str(path)]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert told["values"]["0.9"]["right"] == 2
    assert main(["blind", "info", "--store", str(path)]) == 0
    assert "2 of 4 pairs" in capsys.readouterr().out
    assert main(["blind", "info", "--store", str(tmp_path / "none.sqlite3")]) == 1
