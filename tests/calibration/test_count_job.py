"""One count for all prompts by the job, on a renderer whose levels follow a known curve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from budgetfusion_nodes.calibration.count_job import CountOutcome, fall, run_count_job
from budgetfusion_nodes.calibration.job import CalibrationError, Job
from budgetfusion_nodes.calibration.records import Measurement
from budgetfusion_nodes.calibration.report import draw_levels, report_messages
from budgetfusion_nodes.calibration.spec import Spec
from budgetfusion_nodes.calibration.store import Store
from budgetfusion_nodes.predictor.planner_file import load_any_planner, save_planner
from tests.calibration.stub import StubRenderer, stub_executor, stub_prompts

TARGET = 20
GRID = Spec(TARGET).grid
Curve = Callable[[int], float]


class LevelRenderer(StubRenderer):
    """L-SNR = the prompt's own + curve(steps) + noise; distances never come near the target."""

    def __init__(self, curve: Curve, noise: float = 0.05, settles: bool = False) -> None:
        super().__init__(TARGET)
        self.curve, self.noise, self.settles = curve, noise, settles

    def _found(self, text: str, seed: int, steps: int) -> Measurement:
        found = super()._found(text, seed, steps)
        rng = np.random.default_rng([seed, steps])
        level = float(self.curve(steps) + self.noise * rng.normal())
        far: Mapping[str, float] = found.distances if self.settles else dict.fromkeys(found.distances, 1.0)
        return replace(found, l_snr=level, distances=far)


def run(folder: Path, renderer: LevelRenderer, prompts: int = 28) -> CountOutcome:
    def save(planner: Any) -> tuple[str, str]:
        save_planner(folder / "one.safetensors", planner)
        return "one.safetensors", "digest"

    with Store.at(folder / "store.sqlite3") as store:
        spec = Spec(TARGET, levels_only=True)
        return run_count_job(Job(store, stub_executor(renderer), stub_prompts(prompts), spec, "one", save))


def plateau(steps: int) -> float:
    return 8.0 - max(0.0, GRID[4] - steps)


def rising(steps: int) -> float:
    return 0.4 * steps


def falling(steps: int) -> float:
    return 8.0 - abs(GRID[2] - steps)


def test_a_plateau_becomes_a_file_with_its_first_count(tmp_path: Path) -> None:
    renderer = LevelRenderer(plateau)
    outcome = run(tmp_path, renderer)
    planner = load_any_planner(tmp_path / "one.safetensors")
    assert planner == outcome.planner
    assert (outcome.planner.count, outcome.planner.why, outcome.planner.prompts) == (GRID[4], "steady", 28)
    assert {steps for _, _, steps, _ in renderer.asked} == set(GRID)
    assert len(renderer.asked) == 28 * len(GRID), "every count of every prompt"
    for n, level in zip(GRID, outcome.planner.levels, strict=True):
        assert level.low < plateau(n) + 0.05
        assert level.high > plateau(n) - 0.05
    assert draw_levels(outcome.planner).shape == (1, 480, 960, 3)
    assert outcome.messages()[1].code == "count_steady"


def test_going_on_renders_nothing_again_and_gives_the_same(tmp_path: Path) -> None:
    first = run(tmp_path, LevelRenderer(plateau))
    again = LevelRenderer(plateau)
    assert run(tmp_path, again).planner == first.planner
    assert again.asked == []


def test_a_level_that_falls_gives_the_best_count_and_says_so(tmp_path: Path) -> None:
    outcome = run(tmp_path, LevelRenderer(falling))
    assert (outcome.planner.count, outcome.planner.why) == (GRID[2], "best")
    assert outcome.messages()[1].code == "count_best"


@pytest.mark.parametrize(("curve", "noise"), [(rising, 0.05), (lambda steps: 8.0, 1.0)], ids=["rising", "noise"])
def test_where_no_level_holds_nothing_is_saved(tmp_path: Path, curve: Curve, noise: float) -> None:
    with pytest.raises(CalibrationError) as caught:
        run(tmp_path, LevelRenderer(curve, noise))
    assert caught.value.message.code == "calibrate_no_level"
    assert not (tmp_path / "one.safetensors").exists()


def test_too_few_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError) as caught:
        run(tmp_path, LevelRenderer(plateau), prompts=5)
    assert caught.value.message.code == "calibrate_too_few"


@pytest.mark.parametrize(("curve", "said"), [(falling, True), (plateau, False), (rising, False)])
def test_with_a_sampler_that_settles_the_report_says_a_fall_and_keeps_the_target(
    tmp_path: Path, curve: Curve, said: bool
) -> None:
    renderer = LevelRenderer(curve, settles=True)
    with Store.at(tmp_path / "store.sqlite3") as store:
        job = Job(store, stub_executor(renderer), stub_prompts(12), Spec(TARGET), "curves", lambda planner: ("f", "d"))
        outcome = job.run()
    assert outcome.standing.planner.target_steps == TARGET
    found = [one for one in report_messages(outcome) if one.code == "calibrate_falls"]
    assert bool(found) == said
    assert (fall(outcome.dataset) is not None) == said
    if said:
        assert (found[0].values["best"], found[0].values["target"]) == (GRID[2], TARGET)
