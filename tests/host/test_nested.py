"""Nested schedules through the nodes: one beginning for every count, and the stock schedule as it was."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from budgetfusion_nodes.core.plan import Plan
from budgetfusion_nodes.core.schedule import STOCK, NestedSchedule
from budgetfusion_nodes.core.setting import Setting

NESTED = NestedSchedule(5, 1.0)
FILE = "nested planner.safetensors"


@pytest.fixture
def nested_planner(save_variant: Any, setting: Setting) -> str:
    """A second planner for the same model, calibrated with a nested schedule."""
    save_variant(FILE, name="nested planner", setting=replace(setting, schedule=NESTED.to_text()))
    return FILE


@pytest.fixture(autouse=True)
def no_drafts(pack: Any) -> Any:
    pack("host.prefix_cache").DRAFTS.clear()
    yield
    pack("host.prefix_cache").DRAFTS.clear()


def ksampler(make_node: Any, to: Any, steps: Any, **changes: Any) -> dict[str, Any]:
    given = {"model": to("1"), "seed": 5, "steps": steps, "cfg": 3.0, "sampler_name": "dpmpp_2m"}
    given |= {"scheduler": "karras", "positive": to("2"), "negative": to("3"), "latent_image": to("4"), "denoise": 1.0}
    return make_node("KSampler", **{**given, **changes})


def lora(model: Any) -> Any:
    weights = model.model.state_dict()
    name = next(key for key in weights if key.endswith("weight") and weights[key].ndim == 2)
    clone = model.clone()
    clone.add_patches({name: (torch.ones_like(weights[name]),)}, 0.05)
    return clone


def codes(said: Any) -> set[str]:
    return {warning.code for warning in said}


@pytest.mark.usefixtures("nested_planner")
def test_sigmas_sampler_custom_and_adaptive_ksampler_run_along_one_nested_schedule(
    bench: Any, make_node: Any, to: Any
) -> None:
    graph = {
        **bench.base(),
        "9": bench.planner(quality=0.8),
        "5": bench.adaptive(max_steps=50),
        "6": make_node("KSamplerSelect", sampler_name="dpmpp_2m"),
        "7": make_node(
            "SamplerCustom",
            model=to("1"),
            add_noise=True,
            noise_seed=5,
            cfg=3.0,
            positive=to("2"),
            negative=to("3"),
            sampler=to("6"),
            sigmas=to("9", 2),
            latent_image=to("4"),
        ),
        "8": make_node("PreviewAny", source=to("7")),
        "10": make_node("RandomNoise", noise_seed=5),
        "12": make_node("CFGGuider", model=to("1"), positive=to("2"), negative=to("3"), cfg=3.0),
        "13": make_node(
            "SamplerCustomAdvanced",
            noise=to("10"),
            guider=to("12"),
            sampler=to("6"),
            sigmas=to("9", 2),
            latent_image=to("4"),
        ),
        "14": make_node("PreviewAny", source=to("13")),
    }
    run = bench.run(graph, show="5")
    plan, steps, sigmas, _split = run.outputs["9"]
    assert plan.schedule == NESTED.to_text() and plan.prefix_steps == 5 and steps > 5
    assert len(sigmas) == steps + 1 and sigmas[5] == pytest.approx(1.0, rel=1e-5)
    assert not codes(plan.warnings)
    assert torch.equal(run.outputs["5"][0]["samples"], run.outputs["7"][0]["samples"])
    assert torch.equal(run.outputs["5"][0]["samples"], run.outputs["13"][0]["samples"])
    (receipt,) = run.ui["5"]["receipt"]
    assert (receipt["prefix_steps"], receipt["steps"], receipt["replayed"]) == (5, steps, 0)


@pytest.mark.usefixtures("nested_planner")
def test_a_raised_slider_costs_the_tail_alone(bench: Any, pack: Any) -> None:
    bench.run({**bench.base(), "5": bench.adaptive(quality=0.6, max_steps=50)}, show="5")
    run = bench.run({**bench.base(), "5": bench.adaptive(quality=0.85, max_steps=50)}, show="5")
    (receipt,) = run.ui["5"]["receipt"]
    assert receipt["replayed"] == 6 < receipt["nfe"] == receipt["steps"]
    finished = run.outputs["5"][0]["samples"]
    pack("host.prefix_cache").DRAFTS.clear()
    bench.session.clear_cache()
    scratch = bench.run({**bench.base(), "5": bench.adaptive(quality=0.85, max_steps=50)}, show="5")
    assert scratch.ui["5"]["receipt"][0]["replayed"] == 0
    assert torch.equal(finished, scratch.outputs["5"][0]["samples"])


@pytest.mark.usefixtures("nested_planner")
def test_stock_is_ksamplers_own_picture_and_takes_the_stock_planner(bench: Any, make_node: Any, to: Any) -> None:
    graph = {
        **bench.base(),
        "5": bench.adaptive(schedule=STOCK, max_steps=12),
        "6": ksampler(make_node, to, to("5", 1)),
        "8": make_node("PreviewAny", source=to("6")),
    }
    run = bench.run(graph, show="5")
    plan = Plan.from_dict(run.ui["5"]["budget_plan"][0])
    assert (plan.schedule, plan.prefix_steps, plan.planner) == (STOCK, 0, "random planner")
    assert torch.equal(run.outputs["5"][0]["samples"], run.outputs["6"][0]["samples"])


def test_a_nested_planner_with_the_stock_schedule_is_a_difference(bench: Any, nested_planner: str) -> None:
    plan = bench.plan(planner=nested_planner, schedule=STOCK)
    assert plan.schedule == STOCK and "differs" in codes(plan.warnings)


def test_a_count_that_goes_to_a_ksampler_is_one_of_its_own_schedule(
    bench: Any, nested_planner: str, make_node: Any, to: Any, pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nested counts along stock sigmas would be too few, and nothing would tell."""

    def planned(linked: bool = True, **changes: Any) -> Plan:
        graph = {**bench.base(), "5": bench.planner(quality=0.9, **changes)}
        if linked:
            graph["6"] = ksampler(make_node, to, to("5", 1), denoise=0.01)
            graph["8"] = make_node("PreviewAny", source=to("6"))
        monkeypatch.setattr(pack("nodes.budget_planner"), "running_prompt", lambda: graph)
        return Plan.from_dict(bench.run(graph).ui["5"]["budget_plan"][0])

    alone = planned(linked=False)
    assert alone.schedule == NESTED.to_text()
    stock = planned()  # although nothing about the planner itself changed since
    assert (stock.schedule, stock.planner, codes(stock.warnings)) == (STOCK, "random planner", set())
    asked = planned(schedule="nested")
    assert asked.schedule == NESTED.to_text() and codes(asked.warnings) == {"steps_elsewhere"}
    only = planned(planner=nested_planner)
    assert only.schedule == STOCK and codes(only.warnings) == {"steps_elsewhere", "differs"}


@pytest.mark.usefixtures("nested_planner")
@pytest.mark.parametrize(("schedule", "said"), [("auto", {"steps_elsewhere"}), (STOCK, set())])
def test_a_rendered_count_that_goes_to_another_ksampler_is_said(
    bench: Any, make_node: Any, to: Any, schedule: str, said: set[str]
) -> None:
    graph = {
        **bench.base(),
        "5": bench.adaptive(quality=0.8, max_steps=50, schedule=schedule),
        "6": ksampler(make_node, to, to("5", 1), denoise=0.01),
        "8": make_node("PreviewAny", source=to("6")),
    }
    assert codes(Plan.from_dict(bench.run(graph, show="5").ui["5"]["budget_plan"][0]).warnings) == said


@pytest.mark.usefixtures("nested_planner")
def test_a_graph_that_cannot_be_followed_stops_no_render(
    bench: Any, make_node: Any, to: Any, pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_given: Any) -> bool:
        raise RuntimeError("no graph")

    for name in ("adaptive_ksampler", "budget_planner"):
        monkeypatch.setattr(pack(f"nodes.{name}"), "spaced_elsewhere", broken)
    preview = {"8": make_node("PreviewAny", source=to("5", 1))}
    for planned in (bench.adaptive(quality=0.8, max_steps=9), bench.planner(max_steps=9)):
        run = bench.run({**bench.base(), "5": planned, **preview}, show="5")
        plan = Plan.from_dict(run.ui["5"]["budget_plan"][0])
        assert plan.steps == 9 and plan.fallback is not None and plan.schedule == STOCK


def test_what_the_host_runs_is_read_from_its_queue(session: Any, pack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    running_prompt, graph = pack("host.queue").running_prompt, {"1": {"class_type": "KSampler", "inputs": {}}}
    queue = sys.modules["execution"].PromptQueue(session.server)
    monkeypatch.setattr(sys.modules["server"].PromptServer, "instance", session.server, raising=False)
    monkeypatch.setattr(session.server, "prompt_queue", queue, raising=False)
    assert running_prompt() is None
    queue.put((0, "id", graph, {}, [], {}))
    queue.get(timeout=1)
    assert running_prompt() == graph


def test_nested_where_the_planner_has_none_says_so(bench: Any) -> None:
    plan = bench.plan(schedule="nested")
    assert plan.schedule == STOCK and "schedule_not_calibrated" in codes(plan.warnings)
    assert "schedule_not_calibrated" not in codes(bench.plan().warnings)


@pytest.mark.usefixtures("nested_planner")
def test_what_leaves_no_room_for_the_prefix_is_rendered_along_the_stock_schedule(bench: Any) -> None:
    plan = bench.plan(max_steps=5)
    assert plan.steps == 5 and plan.schedule == STOCK and "schedule_no_room" in codes(plan.warnings)


def test_a_commit_point_beyond_the_model_never_stops_a_render(bench: Any, save_variant: Any, setting: Setting) -> None:
    save_variant(FILE, name="n", setting=replace(setting, schedule=NestedSchedule(5, 900.0).to_text()))
    run = bench.run({**bench.base(), "5": bench.adaptive(max_steps=9)}, show="5")
    plan = Plan.from_dict(run.ui["5"]["budget_plan"][0])
    assert plan.schedule == STOCK and "schedule_out_of_range" in codes(plan.warnings)


@pytest.mark.usefixtures("nested_planner")
@pytest.mark.parametrize("change", ["denoise", "late", "mask", "batch", "other scheduler", "range", "LoRA"])
def test_everything_that_ksampler_does_goes_on_working(
    bench: Any, make_node: Any, to: Any, change: str, pack: Any, loaded: Any
) -> None:
    """Against the host's own SamplerCustom fed with the same sigmas, and noise where KSampler has it."""
    graph = bench.base(batch=2 if change == "batch" else 1)
    changes: dict[str, Any] = {}
    shared = 5
    if change == "denoise":
        changes["denoise"] = 0.6
        shared = 2  # sigma 1 lies at .54 of karras: 5 x (.54 - .4) / .54 steps, rounded up
    if change == "late":
        changes["denoise"], shared = 0.3, 0
    if change == "range":  # as a ControlNet's start and end: percentages that the host turns into sigmas
        half = [[tokens, {**more, "start_percent": 0.1, "end_percent": 0.6}] for tokens, more in loaded.encode("red")]
        graph["2"] = make_node("GivenCONDITIONING", key=bench.value([*half, *loaded.encode("a star")]))
    model = lora(loaded.model) if change == "LoRA" else loaded.model
    graph["1m"] = make_node("GivenMODEL", key=bench.value(model))
    changes["model"] = to("1m")
    if change == "other scheduler":
        changes["scheduler"] = "normal"
    if change == "mask":
        mask = torch.zeros(1, 64, 64)
        mask[:, 16:] = 1.0
        latent = {"samples": torch.rand(1, 3, 64, 64), "noise_mask": mask}
        graph["4"] = make_node("GivenLATENT", key=bench.value(latent))
    graph["5"] = bench.adaptive(max_steps=9, quality=0.95, **changes)
    run = bench.run(graph, show="5")
    plan = Plan.from_dict(run.ui["5"]["budget_plan"][0])
    assert plan.prefix_steps == shared and run.outputs["5"][1] == plan.steps == 9
    assert run.ui["5"]["receipt"][0]["prefix_steps"] == shared
    found = run.outputs["5"][0]["samples"]
    scheduler = changes.get("scheduler", "karras")
    schedule = NestedSchedule.from_text(plan.schedule)
    sigmas = pack("host.schedule").nested_sigmas(
        loaded.model, "dpmpp_2m", scheduler, schedule, 9, changes.get("denoise", 1.0)
    )
    assert len(sigmas) == 10
    sample, samplers = sys.modules["comfy.sample"], sys.modules["comfy.samplers"]
    latent = run.outputs["4"][0]
    ratio = latent.get("downscale_ratio_spacial")
    samples = sample.fix_empty_latent_channels(loaded.model, latent["samples"], ratio)
    with torch.inference_mode():
        expected = sample.sample_custom(
            model,
            sample.prepare_noise(samples, 5),
            3.0,
            samplers.sampler_object("dpmpp_2m"),
            sigmas,
            run.outputs["2"][0],
            run.outputs["3"][0],
            samples,
            noise_mask=latent.get("noise_mask"),
            seed=5,
        )
    assert torch.equal(found, expected)
    progress = [data for event, data in run.messages if event == "progress" and data["node"] == "5"]
    shown = [data["value"] for data in progress]  # the host leaves some out where they come fast
    assert shown == sorted(set(shown)) and shown[-1] == progress[-1]["max"] == 9


@pytest.mark.parametrize("sampler_name", ["dpmpp_2m", "dpm_2", "uni_pc"])
@pytest.mark.parametrize(
    "scheduler", ["karras", "normal", "simple", "beta", "ddim_uniform", "sgm_uniform", "kl_optimal"]
)
def test_every_scheduler_gives_nested_sigmas_of_exactly_the_count(
    pack: Any, loaded: Any, sampler_name: str, scheduler: str
) -> None:
    nested = pack("host.schedule").nested_sigmas
    schedule = pack("core.schedule").NestedSchedule(4, 1.0)
    runs = {n: nested(loaded.model, sampler_name, scheduler, schedule, n) for n in (5, 6, 9, 30)}
    for n, sigmas in runs.items():
        assert len(sigmas) == n + 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
        assert torch.equal(sigmas[:5], runs[30][:5])
        if scheduler == "ddim_uniform":
            continue  # its own first sigma is another one for each count
        stock = pack("host.sampling").get_sigmas(loaded.model, sampler_name, scheduler, n)
        assert sigmas[0] == pytest.approx(float(stock[0]), rel=1e-5)


def test_the_tails_end_is_read_off_the_scheduler(pack: Any, loaded: Any) -> None:
    ends = {name: pack("host.schedule").stock_tail_end(loaded.model, name) for name in ("karras", "normal", "simple")}
    assert ends == {"karras": 1.0, "normal": 1.0, "simple": 0.0}
