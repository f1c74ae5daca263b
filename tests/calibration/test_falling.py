"""A model that gets worse with more steps is planned at its best count, on a renderer whose levels are known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from budgetfusion_nodes.calibration.falling import run_to_best
from budgetfusion_nodes.calibration.job import Job, Outcome
from budgetfusion_nodes.calibration.records import Measurement
from budgetfusion_nodes.calibration.report import draw, report_messages
from budgetfusion_nodes.calibration.spec import Spec
from budgetfusion_nodes.calibration.store import Store
from budgetfusion_nodes.metrics.clip_score import NAME as CLIP_SCORE
from budgetfusion_nodes.predictor.planner_file import load_planner, save_planner
from tests.calibration.stub import StubRenderer, stub_executor, stub_prompts

TARGET = 30
GRID = Spec(TARGET).grid
BEST = GRID[4]
PROMPTS = 10
Curve = Callable[[int], float]


class ScoredRenderer(StubRenderer):
    """CLIP score = curve(steps) + noise of picture and count; L-SNR = decibel(steps). Distances are to whichever count
    is the reference, and stay large where the score still moves."""

    def __init__(self, curve: Curve | None, decibel: Curve = lambda steps: 9.0, target: int = TARGET) -> None:
        super().__init__(target)
        self.curve, self.decibel = curve, decibel
        self.targets: set[int] = set()

    def reference(self, text: str, seed: int, steps: int, kept: bytes | None, careful: bool) -> Any:
        self.target = steps
        self.targets.add(steps)
        return super().reference(text, seed, steps, kept, careful)

    def _found(self, text: str, seed: int, steps: int) -> Measurement:
        found = super()._found(text, seed, steps)
        score = {}
        if self.curve is not None:
            score = {CLIP_SCORE: self.curve(steps) + 0.001 * np.random.default_rng([seed, steps]).normal()}
        return replace(found, l_snr=self.decibel(steps), distances={**found.distances, **score})


def run(folder: Path, renderer: ScoredRenderer) -> Outcome:
    def save(planner: Any) -> tuple[str, str]:
        save_planner(folder / "one.safetensors", planner)
        return "one.safetensors", "digest"

    with Store.at(folder / "store.sqlite3") as store:
        return run_to_best(
            Job(store, stub_executor(renderer), stub_prompts(PROMPTS), Spec(renderer.target), "one", save)
        )


def codes(outcome: Outcome) -> list[str]:
    return [one.code for one in report_messages(outcome)]


def falling(steps: int) -> float:
    """Rises to .3 at BEST, and is .1 at the target."""
    return 0.3 - 0.25 * abs(np.log(steps / BEST)) / np.log(TARGET / BEST) * (0.8 if steps > BEST else 1.0)


def rising(steps: int) -> float:
    return 0.3 - 0.4 / steps


def plan(folder: Path, max_steps: int) -> Any:
    planner = load_planner(folder / "one.safetensors")
    encoded = StubRenderer(TARGET).encode("prompt number 3")
    return planner.plan(encoded.tokens, encoded.pooled, quality=0.99, max_steps=max_steps)


def test_the_target_moves_to_the_best_count_and_file_report_plan_and_chart_say_so(tmp_path: Path) -> None:
    renderer = ScoredRenderer(falling)
    outcome = run(tmp_path, renderer)
    assert outcome.fall is not None
    assert (outcome.fall.best, outcome.fall.last, outcome.fall.pictures) == (BEST, TARGET, PROMPTS)
    assert outcome.fall.drop == pytest.approx(0.2, abs=0.05)
    assert renderer.targets == {TARGET, BEST}, "distances of the second job are to the picture at the best count"
    planner = load_planner(tmp_path / "one.safetensors")
    assert planner.target_steps == BEST
    assert planner.provenance["calibration"]["fall"]["last"] == TARGET
    assert "calibrate_moved" in codes(outcome)
    assert "calibrate_falls" not in codes(outcome)
    assert plan(tmp_path, TARGET).steps <= BEST
    said = {one.code: dict(one.values) for one in plan(tmp_path, TARGET).warnings}
    assert said["target_moved"] == {"best": BEST, "last": TARGET, "prompts": PROMPTS}
    assert "max_beyond" not in said
    assert "target_moved" not in {one.code for one in plan(tmp_path, BEST).warnings}, "nothing is beyond"
    assert (draw(outcome.standing, outcome.fall) != draw(outcome.standing)).any()
    again = ScoredRenderer(falling)
    assert run(tmp_path, again).fall == outcome.fall
    assert again.asked == [], "queueing again renders nothing"


@pytest.mark.parametrize(
    ("curve", "decibel", "said"),
    [
        (rising, lambda steps: 12.0 - steps / 10, True),  # L-SNR alone falls: shown, and the target stays
        (None, lambda steps: 12.0 - steps / 10, True),  # no semantic metric at hand: the same
        (falling, lambda steps: 6.0 + steps / 10, False),  # fewer steps mean more, but are far noisier
    ],
    ids=["smooth when unfinished", "no score", "noisy before"],
)
def test_where_it_is_not_certain_the_target_stays(
    tmp_path: Path, curve: Curve | None, decibel: Curve, said: bool
) -> None:
    renderer = ScoredRenderer(curve, decibel)
    outcome = run(tmp_path, renderer)
    assert outcome.fall is None
    assert renderer.targets == {TARGET}
    assert outcome.standing.planner.target_steps == TARGET
    assert ("calibrate_falls" in codes(outcome)) == said


def test_a_model_that_is_best_at_one_step_has_nothing_to_plan_below_it(tmp_path: Path) -> None:
    outcome = run(tmp_path, ScoredRenderer(lambda steps: 0.3 - 0.05 * steps, target=4))
    assert (outcome.fall, outcome.standing.planner.target_steps) == (None, 4)
