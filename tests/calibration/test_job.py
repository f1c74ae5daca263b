"""The job on a renderer without a host: resumption to the bit, kills, failures, and what it guarantees."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from budgetfusion_nodes.calibration.executors import InlineExecutor
from budgetfusion_nodes.calibration.job import CalibrationError, Job, Outcome, Progress
from budgetfusion_nodes.calibration.records import Subject
from budgetfusion_nodes.calibration.spec import AMOUNTS, Spec
from budgetfusion_nodes.calibration.standing import make_standing
from budgetfusion_nodes.calibration.store import Store
from budgetfusion_nodes.predictor.fit import FitOptions
from budgetfusion_nodes.predictor.planner_file import load_planner, save_planner
from tests.calibration.stub import BACKENDS, SETTING, StubRenderer, stub_executor, stub_prompts

TARGET = 30
FAST = FitOptions(networks=1, epochs=15, patience=4)


def saver(folder: Path):
    def save(planner: Any) -> tuple[str, str]:
        save_planner(folder / "planner.safetensors", planner)
        return "planner.safetensors", "digest"

    return save


def make_job(store: Store, folder: Path, renderer: StubRenderer, thoroughness: str = "quick", **more: Any) -> Job:
    prompts = stub_prompts(more.pop("prompts", 60))
    return Job(
        store,
        stub_executor(renderer),
        prompts,
        Spec(TARGET, thoroughness),
        "stub",
        saver(folder),
        fit_options=FAST,
        **more,
    )


def run(folder: Path, renderer: StubRenderer | None = None, thoroughness: str = "quick", **more: Any) -> Outcome:
    with Store.at(folder / "store.sqlite3") as store:
        return make_job(store, folder, renderer or StubRenderer(TARGET), thoroughness, **more).run()


def planner_content(folder: Path) -> tuple[Any, dict[str, bytes]]:
    """Its description and tensors; the file itself may hold them in another order."""
    with safe_open(folder / "planner.safetensors", framework="numpy") as opened:
        return opened.metadata(), {key: opened.get_tensor(key).tobytes() for key in sorted(opened.keys())}


def same_data(one: Outcome, other: Outcome) -> None:
    for name in ("tokens", "pooled", "seeds", "shortfall", "l_snr"):
        np.testing.assert_array_equal(getattr(one.dataset, name), getattr(other.dataset, name))
    assert one.dataset.split == other.dataset.split


def test_a_quick_job_ends_with_a_planner_that_says_what_it_is(tmp_path: Path) -> None:
    seen: list[Progress] = []
    outcome = run(tmp_path, listen=seen.append)
    planner = load_planner(tmp_path / "planner.safetensors")
    assert planner.risk_table.prompts == AMOUNTS["quick"].prompts
    assert planner.provenance["calibration"]["predictor"] == "mean_curve"
    assert planner.backends["d_sim"] == "d_sim:stub#2"
    assert outcome.standing.kind == "mean_curve"
    assert seen[0].renders == 0
    assert seen[0].left == 28 * sum(Spec(TARGET).grid), "the cost is said before anything is rendered"
    assert seen[0].seconds_left is None
    assert seen[-1].left == 0
    assert "prompt number" not in (tmp_path / "planner.safetensors").read_bytes().decode("latin-1")
    first = next(p for p in seen if p.standing is not None)
    assert first.prompts == 9, "as soon as ten percent can be guaranteed"


def test_the_cost_of_a_nested_job_counts_each_prefix_once(tmp_path: Path) -> None:
    seen: list[Progress] = []

    def stop(progress: Progress) -> None:
        seen.append(progress)
        raise KeyboardInterrupt

    with Store.at(tmp_path / "store.sqlite3") as store:
        job = make_job(store, tmp_path, StubRenderer(TARGET), listen=stop)
        job.spec = replace(job.spec, prefix_steps=4)
        with pytest.raises(KeyboardInterrupt):
            job.run()
    (cost,) = [one for one in seen[0].messages() if one.code == "calibrate_cost"]
    counts = job.spec.grid
    assert cost.values["evaluations"] == 28 * (counts[0] + 4 + sum(n - 4 for n in counts[1:]))
    assert (cost.values["prompts"], cost.values["renders"]) == (28, 28 * len(counts))


def test_an_interrupted_job_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = run(tmp_path / "whole")
    folder = tmp_path / "parts"
    folder.mkdir()

    class Cancelled(Exception):
        pass

    renders = 0
    for limit in (3, 40, 7, 120, 1):
        renderer = StubRenderer(TARGET)

        def cancel(text: str, seed: int, steps: int, careful: bool, renderer=renderer, limit=limit) -> str:
            if len(renderer.asked) > limit:
                raise Cancelled
            return ""

        renderer.fails = cancel
        with pytest.raises(Cancelled):
            run(folder, renderer)
        renders += len(renderer.asked) - 1
    last = StubRenderer(TARGET)
    outcome = run(folder, last)
    same_data(outcome, whole)
    assert planner_content(folder) == planner_content(tmp_path / "whole")
    again = StubRenderer(TARGET)
    same_data(run(folder, again), whole)
    assert again.asked == [], "a finished job renders nothing"
    assert renders + len(last.asked) == whole.progress.renders, "nothing was rendered twice"


def _child(folder: Path) -> None:
    run(folder, StubRenderer(TARGET, seconds=0.002))


def test_the_first_word_of_a_job_that_goes_on_counts_what_is_kept(tmp_path: Path) -> None:
    def stop_after(prompts: int) -> Any:
        def listen(progress: Progress) -> None:
            if progress.prompts >= prompts:
                raise KeyboardInterrupt

        return listen

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, listen=stop_after(4))
    seen: list[Progress] = []
    run(tmp_path, listen=seen.append)
    assert seen[0].prompts == 4
    assert seen[0].renders == 0
    assert seen[0].left == sum(Spec(TARGET).grid) * (seen[0].wanted - 4)


def test_fifty_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = run(tmp_path / "whole")
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
    rng = random.Random(5)
    kills = 0
    while kills < 50:
        child = context.Process(target=_child, args=(tmp_path / "killed",))
        child.start()
        time.sleep(rng.uniform(0.01, 0.5))
        if child.is_alive():
            assert child.pid is not None
            os.kill(child.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
            kills += 1
        child.join()
        if child.exitcode == 0:  # it got through: begin again
            for file in (tmp_path / "killed").iterdir():
                file.unlink()
    same_data(run(tmp_path / "killed"), whole)
    assert planner_content(tmp_path / "killed") == planner_content(tmp_path / "whole")


def test_a_trajectory_that_was_cut_off_before_its_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(store: Store, trajectory_id: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "finish", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    outcome = run(tmp_path)
    with sqlite3.connect(tmp_path / "store.sqlite3") as connection:
        assert connection.execute("SELECT count(*) FROM trajectories WHERE latent IS NOT NULL").fetchone() == (0,)
        remembered = connection.execute("SELECT count(*) FROM memories").fetchone()
    connection.close()
    assert remembered == (outcome.progress.prompts,)


def test_two_jobs_at_once_give_one_result(tmp_path: Path) -> None:
    whole_folder, shared = tmp_path / "whole", tmp_path / "shared"
    whole_folder.mkdir()
    shared.mkdir()
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_child, args=(shared,)) for _ in range(2)]
    for child in children:
        child.start()
    whole = run(whole_folder)
    for child in children:
        child.join()
        assert child.exitcode == 0
    last = StubRenderer(TARGET)
    same_data(run(shared, last), whole)
    assert last.asked == []


def test_two_jobs_share_the_work(tmp_path: Path) -> None:
    """Each renders a part; none renders what the other does, and both end with the planner of the whole."""
    (tmp_path / "shared").mkdir()
    renderers = [StubRenderer(TARGET, seconds=0.003) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda renderer: run(tmp_path / "shared", renderer), renderers))
    asked = [one[:3] for renderer in renderers for one in renderer.asked]
    assert len(asked) == len(set(asked)), "a count is rendered once"
    assert all(renderer.asked for renderer in renderers)
    alone = StubRenderer(TARGET)
    (tmp_path / "alone").mkdir()
    whole = run(tmp_path / "alone", alone)
    assert sorted(asked) == sorted(one[:3] for one in alone.asked)
    for outcome in outcomes:
        same_data(outcome, whole)
    assert planner_content(tmp_path / "shared") == planner_content(tmp_path / "alone")


def test_events_of_many_works_may_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As from several machines, the job stops at the very prompt at which it stops alone."""
    monkeypatch.setattr(Job, "_is_settled", lambda job: job._complete >= 30)

    class Mixed(InlineExecutor):
        def run(self, works: Any) -> Any:
            works, running = iter(works), []
            while True:
                running += [super(Mixed, self).run([work]) for work in islice(works, 7 - len(running))]
                if not running:
                    return
                for one in list(running)[::-1]:  # the youngest first
                    event = next(one, None)
                    if event is None:
                        running.remove(one)
                    else:
                        yield event

    outcomes = []
    for name, kind in (("alone", InlineExecutor), ("mixed", Mixed)):
        (tmp_path / name).mkdir()
        executor = kind(StubRenderer(TARGET), Subject(SETTING, TARGET), BACKENDS)
        with Store.at(tmp_path / name / "store.sqlite3") as store:
            job = make_job(store, tmp_path / name, StubRenderer(TARGET), "standard")
            job.executor = executor
            outcomes.append(job.run())
    same_data(*outcomes)
    assert [outcome.progress.prompts for outcome in outcomes] == [30, 30]


def test_quick_is_the_beginning_of_standard(tmp_path: Path) -> None:
    run(tmp_path)
    renderer = StubRenderer(TARGET)
    outcome = run(tmp_path, renderer, "standard", prompts=300)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    alone = run(fresh, thoroughness="standard", prompts=300)
    assert outcome.progress.renders < alone.progress.renders or outcome.progress.prompts != alone.progress.prompts


def test_it_stops_by_itself_when_more_prompts_move_nothing(tmp_path: Path) -> None:
    outcome = run(tmp_path, thoroughness="standard", prompts=300)
    assert outcome.stopped_early
    assert 50 <= outcome.progress.prompts < AMOUNTS["standard"].prompts
    assert outcome.progress.left == 0
    again = StubRenderer(TARGET)
    assert run(tmp_path, again, "standard", prompts=300).progress.prompts == outcome.progress.prompts
    assert again.asked == []


def test_single_failures_are_set_aside_and_counted(tmp_path: Path) -> None:
    def fails(text: str, seed: int, steps: int, careful: bool) -> str:
        return "not a number" if text.endswith("7") else ""

    outcome = run(tmp_path, StubRenderer(TARGET, fails=fails))
    assert outcome.progress.set_aside == len(outcome.reasons) > 0
    assert set(outcome.reasons) == {"not a number"}
    assert len(outcome.dataset.prompts) + len(outcome.reasons) == AMOUNTS["quick"].prompts
    assert any(message.code == "calibrate_set_aside" for message in outcome.progress.messages())


def test_too_many_failures_stop_it_and_a_new_try_goes_on(tmp_path: Path) -> None:
    broken = StubRenderer(TARGET, fails=lambda *_: "out of memory")
    with pytest.raises(CalibrationError, match="out of memory"):
        run(tmp_path, broken)
    assert len(broken.asked) <= 10, "it stops soon"
    assert run(tmp_path).progress.set_aside == 0


def test_too_few_prompts_for_a_guarantee_are_said(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="9"):
        run(tmp_path, prompts=5)


def test_text_is_kept_only_when_asked_for(tmp_path: Path) -> None:
    for keep in (False, True):
        folder = tmp_path / str(keep)
        folder.mkdir()
        with Store.at(folder / "store.sqlite3") as store:
            job = make_job(store, folder, StubRenderer(TARGET))
            job.spec = Spec(TARGET, keep_text=keep)
            job.run()
            store.export(folder / "out.sqlite3", with_text=True)
        assert (b"prompt number" in (folder / "out.sqlite3").read_bytes()) == keep


def test_texts_that_the_encoder_takes_for_one_are_one_prompt(tmp_path: Path) -> None:
    class Deaf(StubRenderer):
        def encode(self, text: str) -> Any:
            return super().encode(text[: len("prompt number 1")])

    outcome = run(tmp_path, Deaf(TARGET), prompts=300)
    assert len(outcome.dataset.prompts) == outcome.progress.prompts == outcome.progress.wanted < 28


def test_an_unfinished_trajectory_and_another_jobs_seeds_are_left_out(tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    whole = run(alone)

    def cancel(text: str, seed: int, steps: int, careful: bool) -> str:
        if len(renderer.asked) > 200:
            raise KeyboardInterrupt
        return ""

    renderer = StubRenderer(TARGET, fails=cancel)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, renderer, "thorough")
    outcome = run(tmp_path)
    np.testing.assert_array_equal(outcome.dataset.seeds, whole.dataset.seeds)


def test_where_the_prompt_tells_the_need_the_network_is_chosen_with_both_figures(make_dataset: Any) -> None:
    from tests.fixtures.datasets import make_dataset

    data = make_dataset(train=90, calibration=60, test=0, noise=0.02)
    standing = make_standing(data, "made", None, True, FitOptions(networks=1))
    assert standing is not None
    assert standing.kind == "bilstm"
    assert standing.comparison is not None
    low, high = standing.comparison.saved[1:]
    assert 0.0 < low <= standing.comparison.saved[0] <= high
    shuffled = replace(data, tokens=np.roll(data.tokens, 31, axis=0), pooled=np.roll(data.pooled, 31, axis=0))
    blind = make_standing(shuffled, "blind", None, True, FAST)
    assert blind is not None
    assert blind.kind == "mean_curve"
