"""Bad planner files in the genuine host: each is named with its fault, and the render goes on with max_steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.fixtures.said import code, message_of


def rewrite(source: Path, target: Path, metadata: dict[str, str] | None = None, drop: str | None = None) -> None:
    with safe_open(source, "pt") as file:
        known = {**file.metadata(), **(metadata or {})}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (safe_open is no dict)
    if drop is not None:
        tensors[drop] = torch.zeros(3)
    save_file(tensors, target, known)


def truncated(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes()[: source.stat().st_size // 2])


def foreign(source: Path, target: Path) -> None:
    del source
    save_file({"lora_up.weight": torch.zeros(4, 4)}, target, {"modelspec.title": "a lora"})


def other_version(source: Path, target: Path) -> None:
    rewrite(source, target, {"version": "999"})


def wrong_shape(source: Path, target: Path) -> None:
    rewrite(source, target, drop="novelty.centre")


def wrong_description(source: Path, target: Path) -> None:
    with safe_open(source, "pt") as file:
        description = json.loads(file.metadata()["planner"])
    rewrite(source, target, {"planner": json.dumps({**description, "scale": [1.0, -1.0, 1.0]})})


FAULTS = [
    (truncated, "file_unreadable"),
    (foreign, "file_foreign"),
    (other_version, "file_version"),
    (wrong_shape, "file_field"),
    (wrong_description, "file_field"),
]


@pytest.fixture
def bad_file(planner_file: Path) -> Any:
    path = planner_file.with_name("bad.safetensors")
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.parametrize(("spoil", "reason"), FAULTS, ids=[spoil.__name__ for spoil, _ in FAULTS])
def test_named_bad_file_falls_back(bench: Any, planner_file: Path, bad_file: Path, spoil: Any, reason: str) -> None:
    spoil(planner_file, bad_file)
    run = bench.run({**bench.base(), "5": bench.adaptive(planner=bad_file.name, max_steps=3)}, show="5")
    (receipt,) = run.ui["5"]["receipt"]
    assert receipt["steps"] == 3
    assert receipt["fallback"]["values"]["file"] == "bad.safetensors"
    assert code(receipt["fallback"]["values"]["problem"]) == reason
    assert message_of(receipt["fallback"]).text() in run.ui["5"]["text"][0]


def test_auto_leaves_a_bad_file_out_and_says_so(bench: Any, planner_file: Path, bad_file: Path) -> None:
    foreign(planner_file, bad_file)
    plan = bench.plan()
    assert plan.fallback is None
    assert plan.planner == "random planner"
    assert [note.values["file"] for note in plan.warnings if note.code == "planner_file"] == ["bad.safetensors"]


def test_planner_that_is_not_there_does_not_refuse_the_graph(bench: Any) -> None:
    plan = bench.plan(planner="gone.safetensors", max_steps=17)
    assert plan.steps == 17
    assert code(plan.fallback) == "planner_absent"
    assert "random_planner.safetensors" in message_of(plan.fallback).text(), "it names what is there"


@pytest.mark.parametrize("name", ["../checkpoints/random.safetensors", "/etc/passwd"])
def test_planner_name_cannot_leave_the_folder(bench: Any, name: str) -> None:
    plan = bench.plan(planner=name)
    assert code(plan.fallback) == "planner_absent"


def test_planner_of_another_model(bench: Any, save_variant: Any, setting: Any) -> None:
    save_variant("other.safetensors", name="other", setting=replace(setting, model="0" * 32, model_name="other model"))
    plan = bench.plan(planner="other.safetensors", max_steps=11)
    assert plan.steps == 11
    assert plan.fallback is not None and plan.fallback.values["was"] == "other model"
    assert bench.plan(planner="auto").planner == "random planner"


def test_auto_takes_the_planner_nearest_to_the_setting(bench: Any, save_variant: Any, setting: Any) -> None:
    save_variant("cfg5.safetensors", name="cfg five", setting=replace(setting, cfg=5.0))
    save_variant("euler.safetensors", name="for euler", setting=replace(setting, sampler_name="euler"))
    assert bench.plan(cfg=5.0).planner == "cfg five"
    assert bench.plan(cfg=3.0).planner == "random planner"
    assert bench.plan(sampler_name="euler").planner == "for euler"


def test_no_planner_for_a_model(bench: Any, planner_file: Path, make_node: Any, to: Any) -> None:
    sound = {"samples": torch.zeros(1, 64, 256)}
    graph = {**bench.base(), "7": make_node("GivenLATENT", key=bench.value(sound))}
    hidden = planner_file.with_suffix(".hidden")
    planner_file.rename(hidden)
    try:
        plan = bench.plan(max_steps=21)
        unmeasurable = bench.plan(graph, latent_image=to("7"), max_steps=21)
    finally:
        hidden.rename(planner_file)
    assert (plan.steps, unmeasurable.steps) == (21, 21)
    assert code(plan.fallback) == "no_planner"
    assert code(unmeasurable.fallback) == "no_planner_pictures", "nobody is told to calibrate what Calibrate refuses"


def test_min_steps_above_max_steps(bench: Any) -> None:
    plan = bench.plan(min_steps=30, max_steps=20)
    assert plan.steps == 20
    assert code(plan.fallback) == "min_above_max"


def test_planner_is_listed_for_the_artist(bench: Any, session: Any) -> None:
    del bench
    info = session.object_info("BudgetFusion_BudgetPlanner")["BudgetFusion_BudgetPlanner"]
    options = info["input"]["optional"]["planner"][1]["options"]
    assert options[0] == "auto"
    assert "random_planner.safetensors" in options
