"""One count for all prompts in the genuine host: planned, obeyed, refused, calibrated."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from budgetfusion_nodes.predictor.count_planner import CountPlanner, Level
from budgetfusion_nodes.predictor.planner_file import load_any_planner, save_planner
from research.in_process_host import HostRunError
from tests.fixtures.said import code, codes

NOISY = "euler_ancestral"


@pytest.fixture
def counted(session: Any, setting: Any, planner: Any) -> Iterator[CountPlanner]:
    """A planner of 5 steps for euler_ancestral, beside the one of curves for dpmpp_2m."""
    grid = (2, 3, 5, 8)
    made = CountPlanner(
        name="five",
        setting=replace(setting, sampler_name=NOISY),
        count=5,
        grid=grid,
        levels=tuple(Level(float(n), n - 0.5, n + 0.5) for n in grid),
        metrics=("l_snr",),
        backends={"l_snr": "l_snr"},
        prompts=28,
        why="steady",
    )
    path = session.base_dir / "models" / "budgetfusion" / "five.safetensors"
    save_planner(path, made)
    yield made
    path.unlink(missing_ok=True)


def stock_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The step counts that the host's own common_ksampler is called with."""
    nodes, seen = sys.modules["nodes"], []
    original = nodes.common_ksampler

    def common_ksampler(model: Any, seed: int, steps: int, *args: Any, **kwargs: Any) -> Any:
        seen.append(steps)
        return original(model, seed, steps, *args, **kwargs)

    monkeypatch.setattr(nodes, "common_ksampler", common_ksampler)
    return seen


@pytest.mark.parametrize("quality", [0.5, 0.99])
def test_the_count_is_rendered_and_said(
    bench: Any, counted: CountPlanner, monkeypatch: pytest.MonkeyPatch, quality: float
) -> None:
    seen = stock_steps(monkeypatch)
    run = bench.run({**bench.base(), "5": bench.adaptive(sampler_name=NOISY, quality=quality)}, show="5")
    (receipt,), (plan,) = run.ui["5"]["receipt"], run.ui["5"]["budget_plan"]
    assert seen == [5]
    assert (run.outputs["5"][1], receipt["steps"], receipt["fallback"]) == (5, 5, None)
    assert "count_steady" in codes(plan["warnings"])
    assert plan["quality_predicted"] is plan["decision"] is None
    assert torch.isfinite(run.outputs["5"][0]["samples"]).all()


@pytest.mark.parametrize(("limits", "steps"), [((2, 3), 3), ((8, 12), 8)])
def test_the_limits_hold(bench: Any, counted: CountPlanner, limits: tuple[int, int], steps: int) -> None:
    plan = bench.plan(sampler_name=NOISY, min_steps=limits[0], max_steps=limits[1])
    assert (plan.steps, plan.fallback) == (steps, None)


def test_a_connected_plan_is_obeyed(bench: Any, counted: CountPlanner, to: Any) -> None:
    graph = {**bench.base(), "6": bench.planner(sampler_name=NOISY)}
    run = bench.run({**graph, "5": bench.adaptive(sampler_name=NOISY, plan=to("6"))}, show="5")
    assert run.outputs["5"][1] == 5
    assert run.ui["5"]["receipt"][0]["fallback"] is None


@pytest.mark.parametrize(
    "changes",
    [{"sampler_name": "er_sde"}, {"sampler_name": "dpmpp_2s_ancestral"}, {"sampler_name": "lcm"}],
    ids=lambda changes: changes["sampler_name"],
)
def test_other_samplers_that_do_not_settle_stay_refused(bench: Any, counted: CountPlanner, changes: Any) -> None:
    plan = bench.plan(max_steps=15, **changes)
    assert (plan.steps, code(plan.fallback.to_dict())) == (15, "sampler_noisy")


def test_a_planner_of_curves_never_serves_a_sampler_that_does_not_settle(
    bench: Any, save_variant: Any, setting: Any
) -> None:
    save_variant("wrong.safetensors", name="wrong", setting=replace(setting, sampler_name=NOISY))
    assert bench.plan(sampler_name=NOISY).fallback.code == "sampler_noisy"


def test_the_planner_of_curves_still_serves_its_own_sampler(bench: Any, counted: CountPlanner) -> None:
    plan = bench.plan()
    assert plan.decision is not None
    assert plan.planner != counted.name


def calibrating(bench: Any, make_node: Any, to: Any) -> dict[str, Any]:
    """Calibrate on the random checkpoint with a sampler that does not settle, 8 prompts."""
    prompts = "\n".join(f"{n} {colour} stars" for n in ("two", "six") for colour in ("red", "blue", "green", "white"))
    inputs = {"model": to("1"), "clip": to("1", 1), "vae": to("1", 2), "negative": to("3"), "latent_image": to("4")}
    widgets = {"sampler_name": NOISY, "scheduler": "karras", "cfg": 3.0, "max_steps": 4, "thoroughness": "quick"}
    text = {"prompts": "text, one a line", "prompt_text": prompts, "name": "counted", "width": 64, "height": 64}
    return {**bench.base(), "7": make_node("BudgetFusion_Calibrate", **inputs, **widgets, **text)}


@pytest.fixture
def own_store(pack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack("calibration.host_job"), "store_path", lambda: tmp_path / "calibration.sqlite3")


def test_calibrate_saves_a_count_that_is_planned_next(
    bench: Any, pack: Any, own_store: None, make_node: Any, to: Any, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a margin that takes all levels for one, which random weights would not be in few renders."""
    monkeypatch.setattr(pack("core.no_reference"), "MARGIN_SHARE", 1e6)
    path = session.base_dir / "models" / "budgetfusion" / "counted.safetensors"
    try:
        run = bench.run(calibrating(bench, make_node, to))
        made = load_any_planner(path)
        assert isinstance(made, CountPlanner)
        assert (made.count, made.grid, made.prompts, made.why) == (1, (1, 2, 3, 4), 8, "steady")
        assert run.outputs["7"][0] == "counted.safetensors"
        assert run.outputs["7"][2].shape == (1, 480, 960, 3)
        assert [one["code"] for one in run.ui["7"]["calibration"][0]["messages"]][:2] == [
            "calibrate_done",
            "count_steady",
        ]
        plan = bench.plan(sampler_name=NOISY, max_steps=4, min_steps=1)
        assert (plan.steps, plan.fallback, plan.planner) == (1, None, "counted")
        assert codes(plan.to_dict()["warnings"]) == ["count_steady"], "it is the very setting"
    finally:
        path.unlink(missing_ok=True)


def test_calibrate_refuses_where_no_level_holds(
    bench: Any, pack: Any, own_store: None, make_node: Any, to: Any, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack("core.no_reference"), "MARGIN_SHARE", 0.0)
    monkeypatch.setattr(pack("core.no_reference"), "ERROR_RATE", 1e-12)
    with pytest.raises(HostRunError, match=NOISY):
        bench.run(calibrating(bench, make_node, to))
    assert not (session.base_dir / "models" / "budgetfusion" / "counted.safetensors").exists()
