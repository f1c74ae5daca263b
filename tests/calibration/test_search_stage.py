"""The search stage on pictures that follow a known law: resumed, refused, without a commit point."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from budgetfusion_nodes.calibration.records import Subject
from budgetfusion_nodes.calibration.search_stage import (
    PAIRS,
    ScheduleSearch,
    SearchProgress,
    measures,
    pairs,
    said,
    settled,
    share_interval,
)
from budgetfusion_nodes.calibration.search_store import Found, Look, SearchStore
from budgetfusion_nodes.calibration.store import Store
from budgetfusion_nodes.core.schedule import NestedSchedule
from budgetfusion_nodes.metrics.clip_score import NAME as CLIP_SCORE
from tests.calibration.stub import BACKENDS, SETTING, StubLooker, StubRenderer, stub_prompts

TARGET, PROMPTS, SECOND_PREFIX = 30, 9, 4


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.at(tmp_path / "store.sqlite3") as opened:
        yield opened


def search(store: Store, looker: StubLooker, prompts: int = PROMPTS, listen: Any = lambda progress: None) -> Found:
    kept = SearchStore(store, store.setting_id(Subject(SETTING, TARGET)), store.backends_id(BACKENDS))
    renderer = StubRenderer(TARGET)
    rows = [(store.prompt_id(renderer.encode(p.text), p.category), p) for p in stub_prompts(prompts)]
    return ScheduleSearch(kept, looker, rows, 2, TARGET, listen).run()


def test_the_commit_point_and_the_second_good_prefix_are_found_and_kept(store: Store) -> None:
    told: list[SearchProgress] = []
    found = search(store, StubLooker(1.2, 5), listen=told.append)
    nested = NestedSchedule.from_text(found.schedule)
    assert nested is not None and nested.prefix_steps == 6
    settled = [sigma for sigma, share, *_ in found.tables["commit"] if share <= 0.02]
    assert nested.sigma_commit == pytest.approx(max(settled), rel=0.01) and max(settled) <= 1.2
    tried = [row["accepted"] for row in found.tables["prefixes"]]
    assert tried == [False, False, True, True], "a worse target is refused"
    codes = [one.code for one in said(found)]
    assert codes[0] == "calibrate_search_found" and codes[-2:] == ["calibrate_search_enough", "calibrate_search_taken"]
    assert codes.count("calibrate_search_refused") == 2 and codes.count("calibrate_search_limits") == 1
    kept = SearchStore(store, store.setting_id(Subject(SETTING, TARGET)), store.backends_id(BACKENDS))
    assert kept.found() == found
    assert told[0].done == 0 and told[0].messages()[1].code == "calibrate_search_cost"
    assert told[0].left >= told[-1].evaluations, "the cost is said before, and is an upper bound"
    timed = [progress for progress in told if progress.seconds_left is not None]
    assert timed[0].done == 2 and timed[0].messages()[1].code == "calibrate_minutes"
    assert all(one.seconds_left == pytest.approx(2.0 * one.left) for one in timed), "two seconds a step"
    rows = [(i + 1, prompt) for i, prompt in enumerate(stub_prompts(PROMPTS))]
    shown = pairs(kept, found, rows)
    assert len(shown) == min(PAIRS, PROMPTS) and all(one == other for one, other in shown), "the same seed side by side"


def test_a_search_that_was_cut_off_goes_on_and_ends_the_same(store: Store, tmp_path: Path) -> None:
    whole = StubLooker(1.2, 5)
    with Store.at(tmp_path / "whole.sqlite3") as other:
        expected = search(other, whole)
    rendered = []
    for stop_after in (1, 7, 90, 40):
        looker = StubLooker(1.2, 5, stop_after)
        with pytest.raises(KeyboardInterrupt):
            search(store, looker)
        rendered += looker.rendered
    last = StubLooker(1.2, 5)
    assert search(store, last) == expected
    assert sorted(rendered + last.rendered) == sorted(whole.rendered), "nothing twice, nothing left out"


def test_a_prefix_whose_pictures_fit_their_prompt_less_well_is_refused(store: Store) -> None:
    found = search(store, StubLooker(1.2, 5, scores=0.4))
    tried = found.tables["prefixes"]
    assert [row["accepted"] for row in tried] == [False, False, True, True]
    value, low, high = tried[0]["worsening"]["CLIP score"]
    assert low < value < high and value == pytest.approx(0.02, abs=0.002)
    assert found.tables["limits"]["CLIP score"] == pytest.approx(0.004, rel=0.1), "one percent of the dense runs' mean"


def test_scores_of_encoders_without_a_common_space_judge_nothing() -> None:
    scores = np.random.default_rng(2).normal(0.0, 0.1, (2, PROMPTS * 2)) + np.array([[0.0], [0.4]])
    without, common = ([Look({CLIP_SCORE: float(one)}, 0.0, {}, b"") for one in row] for row in scores)
    assert "CLIP score" not in measures(without, PROMPTS, scored=True)
    assert "CLIP score" in measures(common, PROMPTS, scored=True)


def test_a_search_that_began_before_there_were_scores_goes_on_without(store: Store) -> None:
    with pytest.raises(KeyboardInterrupt):
        search(store, StubLooker(1.2, 5, stop_after=40))
    found = search(store, StubLooker(1.2, 5, scores=0.4))
    assert "CLIP score" not in found.tables["limits"]


def test_without_a_commit_point_the_stock_schedule_is_kept(store: Store) -> None:
    looker = StubLooker(0.001, 5)
    found = search(store, looker)
    assert found.schedule == "stock"
    assert said(found)[0].code == "calibrate_search_no_commit"
    assert "prefixes" not in found.tables, "no prefix is rendered in vain"


def test_where_every_prefix_is_worse_the_stock_schedule_is_kept(store: Store) -> None:
    found = search(store, StubLooker(1.2, 99))
    assert found.schedule == "stock"
    assert said(found)[0].code == "calibrate_search_no_prefix"
    assert not any(row["accepted"] for row in found.tables["prefixes"])


def test_more_prompts_may_show_what_fewer_did_not(store: Store) -> None:
    """A nested schedule stands; none is looked for again with more prompts, and the later finding is kept."""
    few = search_few(store)
    assert few.schedule == "stock"
    assert settled(few, 1) and not settled(few, 2) and not settled(None, 1)
    assert settled(Found("nested 5@1.0", {"asked": 8}), 32)
    kept = SearchStore(store, store.setting_id(Subject(SETTING, TARGET + 1)), store.backends_id(BACKENDS))
    kept.keep(later := Found("nested 5@1.0", {"asked": 8}))
    assert kept.found() == later


def test_a_prompt_that_fails_is_left_out_and_too_few_are_said(store: Store) -> None:
    looker = StubLooker(1.2, 5)
    looker.fails = ("prompt number 3",)
    found = search(store, looker)
    assert found.tables["prompts"] == PROMPTS - 1
    assert [one.values for one in said(found) if one.code == "calibrate_left_out"] == [
        {"count": 1, "reason": "no numbers"}
    ]
    few = search_few(store)
    assert few.schedule == "stock" and said(few)[0].code == "calibrate_search_prompts"


@pytest.mark.parametrize("stop_after", [10**9, 205])
def test_a_prompt_that_first_fails_along_a_prefix_is_left_out_of_all_of_them(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, stop_after: int
) -> None:
    """Prefixes are judged by the prompts that every one of them has; so a search without the prompt says the same."""
    with Store.at(tmp_path / "without.sqlite3") as other:
        without = StubLooker(1.2, 5)
        without.fails = ("prompt number 3",)
        expected = search(other, without)
    looker = StubLooker(1.2, 5, stop_after)
    looker.fails, looker.fails_along = ("prompt number 3",), SECOND_PREFIX
    again = StubLooker(1.2, 5)
    again.fails, again.fails_along = looker.fails, looker.fails_along
    if stop_after < 10**9:
        with pytest.raises(KeyboardInterrupt):
            search(store, looker)
        assert "prompt 4 " in caplog.text, "cut off after it had failed"
        found = search(store, again)
    else:
        found = search(store, looker)
    assert found.schedule == expected.schedule != "stock"
    for part in ("prefixes", "limits", "prompts", "left_out"):
        assert found.tables[part] == expected.tables[part]
    assert [one.values["count"] for one in said(found) if one.code == "calibrate_left_out"] == [1]
    assert "prompt 4 " in caplog.text, "by its number in the store"
    rendered = looker.rendered + again.rendered
    assert len(rendered) == len(set(rendered)), "nothing twice"


def test_too_few_prompts_that_are_left_along_a_prefix_are_said(store: Store) -> None:
    looker = StubLooker(1.2, 5)
    looker.fails, looker.fails_along = ("prompt number 3", "prompt number 5"), SECOND_PREFIX
    found = search(store, looker)
    assert found.schedule == "stock"
    assert [one.code for one in said(found)] == ["calibrate_search_prompts", "calibrate_left_out"]
    assert found.tables["prompts"] == PROMPTS - 2
    assert search(store, StubLooker(1.2, 5)).schedule != "stock"  # what failed for a while decides nothing for good


def test_only_what_was_looked_for_is_kept(store: Store) -> None:
    kept = SearchStore(store, store.setting_id(Subject(SETTING, TARGET)), store.backends_id(BACKENDS))
    looker = StubLooker(1.2, 5)
    looker.fails = tuple(prompt.text for prompt in stub_prompts(PROMPTS))
    assert search(store, looker).schedule == "stock"
    assert kept.found() is None, "no picture was seen"
    looker, never = StubLooker(1.2, 99), StubLooker(1.2, 99)
    looker.fails = ("prompt number 3",)
    assert "prefixes" in search(store, looker).tables
    assert kept.found() is None, "one prompt more may show a prefix"
    found = search(store, never)
    assert {text for text, *_ in never.rendered} == {"prompt number 3"}, "what was seen is kept"
    assert kept.found() == found and found.schedule == "stock" and settled(found, PROMPTS)


def search_few(store: Store) -> Found:
    kept = SearchStore(store, store.setting_id(Subject(SETTING, TARGET + 1)), store.backends_id(BACKENDS))
    (prompt,) = stub_prompts(1)
    row = store.prompt_id(StubRenderer(TARGET).encode(prompt.text), prompt.category)
    return ScheduleSearch(kept, StubLooker(1.2, 5), [(row, prompt)], 2, TARGET).run()


def test_the_interval_of_a_share_is_that_of_clopper_and_pearson() -> None:
    """Known ends: none of n gives 1 - .025^(1/n), the rule of three at 97.5 %."""
    assert share_interval(0.0, 32) == pytest.approx((0.0, 1 - 0.025 ** (1 / 32)))
    low, high = share_interval(0.5, 10)
    assert (low, high) == pytest.approx((0.187, 0.813), abs=5e-4)  # table of Clopper & Pearson
