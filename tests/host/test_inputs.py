"""Graphs and prompts of the first release go on working, and planner files are inputs of the nodes that read them."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.said import code

FIRST = json.loads((Path(__file__).parents[1] / "cases" / "first_inputs.json").read_text(encoding="utf-8"))
LINK_TYPES = {"MODEL", "CONDITIONING", "LATENT", "IMAGE", "VAE", "CLIP", "CLIP_VISION", "BUDGET_PLAN"}


@pytest.fixture
def infos(session: Any) -> dict[str, Any]:
    names = [name for name in session.node_classes if name.startswith("BudgetFusion_")]
    return {name: session.object_info(name)[name] for name in names}


@pytest.mark.parametrize("name", FIRST)
def test_no_later_input_is_required(infos: dict[str, Any], name: str) -> None:
    required = infos[name]["input"].get("required", {})
    assert list(required) == FIRST[name]


def test_every_optional_widget_has_a_default(infos: dict[str, Any]) -> None:
    for name, info in infos.items():
        for key, (kind, *options) in info["input"].get("optional", {}).items():
            assert kind in LINK_TYPES or "default" in (options or [{}])[0], f"{name}.{key}"


def test_whatever_may_be_left_out_has_a_default_in_the_code(session: Any, infos: dict[str, Any]) -> None:
    for name, info in infos.items():
        node_class = session.node_classes[name]
        required = set(FIRST.get(name, info["input"].get("required", {})))
        for method in ("execute", "validate_inputs", "fingerprint_inputs"):
            parameters = inspect.signature(getattr(node_class, method)).parameters.values()
            plain = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
            lacking = {p.name for p in plain if p.default is p.empty} - {"cls"}
            assert lacking <= (required if method == "execute" else set()), f"{name}.{method}"


def test_an_api_prompt_with_the_first_inputs_alone_gets_the_defaults(bench: Any, to: Any) -> None:
    adaptive, planner = bench.adaptive(), bench.planner()
    for node in (adaptive, planner):
        node["inputs"] = {key: value for key, value in node["inputs"].items() if key in FIRST[node["class_type"]]}
    run = bench.run({**bench.base(), "5": adaptive, "6": planner}, show="5")
    sampled, planned = run.ui["5"]["budget_plan"][0], run.ui["6"]["budget_plan"][0]
    assert sampled["fallback"] is planned["fallback"] is None
    assert (sampled["min_steps"], sampled["risk"]) == (planned["min_steps"], planned["risk"]) == (2, 0.1)
    assert (planned["quality"], planned["planner"]) == (0.9, "random planner")


# ------------------------------------------------------------------------------------- planner files and the cache


@pytest.fixture
def queue(bench: Any) -> Callable[..., tuple[list[str], Any]]:
    """Queues the same graph; (the nodes that were executed anew, of 5 (Adaptive KSampler) and 6 (Budget Planner), what
    they showed)."""

    def run(**changes: Any) -> tuple[list[str], Any]:
        graph = {**bench.base(), "5": bench.adaptive(max_steps=4, **changes), "6": bench.planner(**changes)}
        done = bench.run(graph, show="5")
        return sorted({"5", "6"} - set(done.cached)), done

    return run


def test_what_did_not_change_is_not_executed_again(queue: Any) -> None:
    assert queue()[0] == ["5", "6"]
    assert queue()[0] == []


def test_saving_refitting_and_deleting_a_planner_is_noticed(queue: Any, save_variant: Any) -> None:
    def planner() -> str:
        outputs = queue()[1].outputs
        name = outputs["6"][0].planner
        assert f"Planner: {name}\n" in outputs["5"][2]
        return name

    assert planner() == "random planner"
    saved = save_variant("a_first.safetensors", name="first")
    assert planner() == "first"
    save_variant("a_first.safetensors", name="second")
    assert planner() == "second"
    assert queue()[0] == []
    now = saved.stat()
    os.utime(saved, ns=(now.st_atime_ns, now.st_mtime_ns + 10**9))
    assert queue()[0] == ["5", "6"], "written again with as many bytes"
    saved.unlink()
    assert planner() == "random planner"


def test_from_no_planner_to_a_plan_without_touching_a_widget(queue: Any, planner_file: Path) -> None:
    hidden = planner_file.with_suffix(".hidden")
    planner_file.rename(hidden)
    try:
        _, done = queue()
        assert code(done.ui["5"]["receipt"][0]["fallback"]) == "no_planner"
    finally:
        hidden.rename(planner_file)
    executed, done = queue()
    assert executed == ["5", "6"]
    assert done.ui["5"]["receipt"][0]["fallback"] is None


def test_a_named_planner_depends_on_its_own_file_alone(queue: Any, planner_file: Path, save_variant: Any) -> None:
    queue(planner=planner_file.name)
    save_variant("another.safetensors", name="another")
    assert queue(planner=planner_file.name)[0] == []
    now = planner_file.stat()
    os.utime(planner_file, ns=(now.st_atime_ns, now.st_mtime_ns + 10**9))
    assert queue(planner=planner_file.name)[0] == ["5", "6"]


def test_a_connected_plan_decides_when_its_sampler_runs_again(bench: Any, to: Any, save_variant: Any) -> None:
    graph = {**bench.base(), "6": bench.planner(), "5": bench.adaptive(plan=to("6"))}
    bench.run(graph, show="5")
    assert {"5", "6"} <= set(bench.run(graph, show="5").cached)
    save_variant("another.safetensors", name="another")
    assert not {"5", "6"} & set(bench.run(graph, show="5").cached)
