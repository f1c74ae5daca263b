"""Graphs that keep their own count, and renders of a part of a schedule, in the genuine host."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from budgetfusion_nodes.core.partial import executed_count
from budgetfusion_nodes.core.plan import DEFAULT_MAX_STEPS
from budgetfusion_nodes.host.few_steps import few_steps_of


@pytest.fixture
def lora(session: Any, loaded: Any) -> Any:
    """(file name) -> a LoRA on one weight of the random checkpoint, where the host finds it."""

    def make(name: str) -> str:
        folder = session.base_dir / "models" / "loras"
        folder.mkdir(parents=True, exist_ok=True)
        weight = "diffusion_model.input_blocks.0.0.weight"
        shape = loaded.model.model.state_dict()[weight].shape
        up, down = torch.zeros(shape[0], 1), torch.zeros(1, shape[1:].numel())
        key = weight.removesuffix(".weight")
        save_file({f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down}, folder / name)
        sys.modules["folder_paths"].filename_list_cache.clear()
        return name

    return make


def shown_plan(run: Any, node: str) -> dict[str, Any]:
    return run.ui[node]["budget_plan"][0]


def test_a_lora_is_known_by_the_graph_and_keeps_the_count(
    bench: Any, planner: Any, lora: Any, make_node: Any, to: Any
) -> None:
    del planner
    for name, code in (("some_style.safetensors", None), ("some-Lightning-4steps.safetensors", "distilled_count")):
        graph = {
            **bench.base(),
            "10": make_node("LoraLoaderModelOnly", model=to("1"), lora_name=lora(name), strength_model=1.0),
            "5": bench.adaptive(model=to("10"), max_steps=40, quality=0.5),
        }
        plan = shown_plan(bench.run(graph, show="5"), "5")
        assert (plan["fallback"] or {}).get("code") == code
        assert (plan["steps"] == 40) == (code is not None)
    assert plan["fallback"]["values"] == {"file": name, "word": "lightning", "max": 40, "steps": 4}


def test_an_artist_who_names_the_planner_has_the_last_word(
    bench: Any, planner: Any, planner_file: Path, lora: Any, make_node: Any, to: Any
) -> None:
    del planner
    graph = {
        **bench.base(),
        "10": make_node(
            "LoraLoaderModelOnly", model=to("1"), lora_name=lora("my_turbo.safetensors"), strength_model=1.0
        ),
        "5": bench.adaptive(model=to("10"), max_steps=50, planner=planner_file.name),
    }
    assert shown_plan(bench.run(graph, show="5"), "5")["fallback"] is None


def test_cfg_1_with_few_steps_keeps_the_count_where_no_planner_was_made_like_that(bench: Any, planner: Any) -> None:
    del planner
    plan = shown_plan(bench.run({**bench.base(), "5": bench.adaptive(cfg=1.0, max_steps=8)}, show="5"), "5")
    assert (plan["fallback"]["code"], plan["steps"]) == ("distilled_looks", 8)
    plan = shown_plan(bench.run({**bench.base(), "5": bench.adaptive(cfg=1.0, max_steps=30)}, show="5"), "5")
    assert plan["fallback"] is None


@pytest.mark.parametrize(("title", "word"), [("Some SDXL Turbo", "turbo"), ("Some SDXL", None)])
def test_a_file_says_of_itself_what_it_is(tmp_path: Path, title: str, word: str | None) -> None:
    path = tmp_path / "renamed.safetensors"
    save_file({"w": torch.zeros(2)}, path, {"modelspec.title": title, "modelspec.description": "x" * 1000})
    found = few_steps_of(type("Model", (), {"cached_patcher_init": (None, (str(path),))})())
    assert (found.word if found else None) == word


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x04\0\0\0\0\0\0\0nojs"])
def test_a_file_that_cannot_be_read_tells_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert few_steps_of(type("Model", (), {"cached_patcher_init": (None, (str(path),))})()) is None
    assert few_steps_of(object()) is None


def test_a_fallback_costs_what_the_stock_node_did(bench: Any, session: Any) -> None:
    stock = session.object_info("KSampler")["KSampler"]["input"]["required"]["steps"][1]["default"]
    ours = session.object_info("BudgetFusion_AdaptiveKSampler")["BudgetFusion_AdaptiveKSampler"]["input"]["required"]
    assert ours["max_steps"][1]["default"] == stock == DEFAULT_MAX_STEPS
    run = bench.run({**bench.base(), "5": bench.adaptive(sampler_name="euler_ancestral", max_steps=20)}, show="5")
    receipt = run.ui["5"]["receipt"][0]
    assert (receipt["steps"], receipt["max_steps"], receipt["seconds_saved_vs_max"]) == (20, 20, 0.0)


@pytest.mark.parametrize("denoise", [0.3, 0.6])
def test_below_denoise_1_the_plan_is_what_runs(bench: Any, planner: Any, denoise: float) -> None:
    del planner
    full = shown_plan(bench.run({**bench.base(), "5": bench.adaptive(max_steps=50)}, show="5"), "5")
    run = bench.run({**bench.base(), "5": bench.adaptive(max_steps=50, denoise=denoise)}, show="5")
    plan, receipt = shown_plan(run, "5"), run.ui["5"]["receipt"][0]
    assert plan["steps"] == receipt["steps"] == executed_count(full["steps"], denoise) < full["steps"]
    begins = next(said for said in plan["warnings"] if said["code"] == "begins")
    ksampler = sys.modules["comfy.samplers"].KSampler
    model = bench.run(bench.base(), show="1").outputs["1"][0]
    stock = ksampler(model, plan["steps"], torch.device("cpu"), "dpmpp_2m", "karras", denoise, model.model_options)
    assert begins["values"]["sigma"] == pytest.approx(float(stock.sigmas[0]))
    assert json.dumps(plan["decision"])


def test_a_connected_plan_is_scaled_to_what_runs(bench: Any, planner: Any, to: Any) -> None:
    del planner
    graph = {**bench.base(), "4p": bench.planner(), "5": bench.adaptive(plan=to("4p"), denoise=0.5)}
    run = bench.run(graph, show="5")
    assert run.ui["5"]["receipt"][0]["steps"] == executed_count(shown_plan(run, "4p")["steps"], 0.5)


@pytest.fixture
def part(make_node: Any, to: Any) -> Any:
    """A KSamplerAdvanced that takes its step count from planner p."""

    def make(latent: list[Any], **changes: Any) -> dict[str, Any]:
        inputs = {
            "model": to("1"), "add_noise": "enable", "noise_seed": 3, "steps": to("p", 1), "cfg": 3.0,
            "sampler_name": "euler", "scheduler": "karras", "positive": to("2"), "negative": to("3"),
            "latent_image": latent, "start_at_step": 0, "end_at_step": 10000, "return_with_leftover_noise": "disable",
        }  # fmt: skip
        return make_node("KSamplerAdvanced", **{**inputs, **changes})

    return make


def test_two_samplers_change_over_at_the_noise_level_of_the_graph(
    bench: Any, planner: Any, make_node: Any, to: Any, part: Any
) -> None:
    """As with two expert models: the planned steps in two KSamplerAdvanced equal one run of them."""
    del planner
    graph = {
        **bench.base(),
        "p": bench.planner(max_steps=20, split_at=10, quality=0.5),
        "a": part(to("4"), end_at_step=to("p", 3), return_with_leftover_noise="enable"),
        "b": part(to("a"), start_at_step=to("p", 3), add_noise="disable"),
        "c": part(to("4")),
        "show b": make_node("PreviewAny", source=to("b")),
        "show c": make_node("PreviewAny", source=to("c")),
    }
    run = bench.run(graph)
    _plan, steps, sigmas, split = run.outputs["p"]
    assert 0 < split < steps < 20
    samplers = sys.modules["comfy.samplers"]
    model = run.outputs["1"][0]
    own = samplers.calculate_sigmas(model.get_model_object("model_sampling"), "karras", 20)[10]
    away = (sigmas[1:-1].log() - own.log()).abs()
    assert int(away.argmin()) + 1 == split
    assert torch.allclose(run.outputs["b"][0]["samples"], run.outputs["c"][0]["samples"], atol=1e-5)
    assert f"Split at step {split} of {steps}" in run.ui["p"]["text"][0]


@pytest.mark.parametrize(("first", "second"), [(5, 12), (9, 10)], ids=["apart", "one planned step for both"])
def test_three_samplers_change_over_twice_with_a_planner_for_each_split(
    bench: Any, planner: Any, make_node: Any, to: Any, part: Any, first: int, second: int
) -> None:
    """What "Plan the steps" makes of a part in the middle; splits that fall together leave it without a step."""
    del planner
    leftover = {"return_with_leftover_noise": "enable"}
    graph = {
        **bench.base(),
        "p": bench.planner(max_steps=20, split_at=first, quality=0.5),
        "q": bench.planner(max_steps=20, split_at=second, quality=0.5),
        "a": part(to("4"), end_at_step=to("p", 3), **leftover),
        "b": part(to("a"), start_at_step=to("p", 3), end_at_step=to("q", 3), add_noise="disable", **leftover),
        "c": part(to("b"), start_at_step=to("q", 3), add_noise="disable"),
        "d": part(to("4")),
        "show c": make_node("PreviewAny", source=to("c")),
        "show d": make_node("PreviewAny", source=to("d")),
    }
    run = bench.run(graph)
    assert run.outputs["p"][1] == run.outputs["q"][1]
    assert 0 < run.outputs["p"][3] <= run.outputs["q"][3]
    assert torch.allclose(run.outputs["c"][0]["samples"], run.outputs["d"][0]["samples"], atol=1e-5)


def test_a_graph_of_before_the_split_goes_on(bench: Any, planner: Any) -> None:
    del planner
    outputs = bench.run({**bench.base(), "p": bench.planner()}).outputs["p"]
    assert len(outputs) == 4
    assert outputs[3] == 0


@pytest.mark.parametrize(("scheduler", "code"), [("karras", "other_sampler"), ("ddim_uniform", "sampler_path")])
def test_an_sde_sampler_is_planned_only_where_its_noise_is_one_path(
    bench: Any, planner: Any, scheduler: str, code: str
) -> None:
    """With karras nothing but a planner of its own is missing."""
    del planner
    adaptive = bench.adaptive(sampler_name="dpmpp_2m_sde", scheduler=scheduler, max_steps=6)
    plan = shown_plan(bench.run({**bench.base(), "5": adaptive}, show="5"), "5")
    assert (plan["fallback"]["code"], plan["steps"]) == (code, 6)
