"""Memory in the genuine host: what is measured changes the next plan, and nothing about it stops a render."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from budgetfusion_nodes.core.curves import METRICS
from budgetfusion_nodes.core.plan import Plan
from tests.fixtures.remembering import GRID, _small, _store, forget, planned, rows  # noqa: F401 - fixtures
from tests.fixtures.said import code
from tests.host.conftest import PROMPTS


@pytest.fixture
def swept(bench: Any, make_node: Any, to: Any) -> Any:
    """Runs a Step Sweep into the Probe; gives what the Probe showed."""

    def run(seed: int = 5, more: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        inputs = {"seed": seed, "step_counts": " ".join(map(str, GRID)), **changes}
        sweep = bench.decoded("BudgetFusion_StepSweep", **inputs)
        probe = make_node(
            "BudgetFusion_PerceptualMetricProbe", images=to("7"), step_counts=to("7", 1), d_sim_backend="haarpsi"
        )
        (shown,) = bench.run({**bench.base(), **(more or {}), "7": sweep, "8": probe}).ui["8"]["probe"]
        return shown

    return run


def test_what_the_probe_measured_decides_the_next_plan_of_this_very_render(
    bench: Any, store: Path, small: Any, swept: Any
) -> None:
    name = small()
    before = planned(bench, name)
    assert before.fallback is None
    assert before.remembered is None
    assert not store.exists()  # looking up makes nothing
    shown = swept()
    assert "remembered" in [code(note) for note in shown["notes"]]
    after = planned(bench, name)
    assert after.remembered is not None
    assert code(after.remembered.said) == "memory_exact"
    assert after.remembered.without == before.steps
    scale = dict(zip(METRICS, (6.0, 0.5, 0.3), strict=True))
    quality = [max(0.0, 1 - max(shown[m][i] / scale[m] for m in METRICS)) for i in range(len(GRID))]
    assert dict(after.remembered.points) == pytest.approx(dict(zip(GRID, quality, strict=True)), abs=1e-6)
    enough = [n for i, n in enumerate(GRID) if min(quality[i:]) >= 0.9]
    assert enough[0] - 2 <= after.steps <= enough[0]  # between measured counts the curve is interpolated


def test_no_other_seed_setting_or_model_knows_it_and_the_switch_turns_it_off(
    bench: Any, store: Path, small: Any, swept: Any
) -> None:
    del store
    name = small()
    swept()
    other_seed = planned(bench, name, seed=6).remembered
    assert other_seed is not None
    assert other_seed.said is None  # its points are shown; one prompt is too few to guarantee by
    assert other_seed.own == 0
    others: list[dict[str, Any]] = [{"memory": False}, {"cfg": 4.0}, {"scheduler": "normal"}]
    for changes in others:
        assert planned(bench, name, **changes).remembered is None
    lora = bench.base()
    lora["2"]["inputs"]["text"] = "a plain red background"
    run = bench.run({**lora, "5": bench.adaptive(planner=name, max_steps=9)}, "5")
    assert run.ui["5"]["budget_plan"][0]["remembered"] is None  # another prompt


def referring(value: float) -> dict[str, Any]:
    return {"reference_latents": [torch.full((1, 4, 8, 8), value)]}


def controlled(value: float, strength: float = 1.0, before: Any = None) -> Any:
    control = sys.modules["comfy.controlnet"].ControlBase()
    control.set_cond_hint(torch.full((1, 3, 64, 64), value), strength, (0.0, 1.0))
    return control.set_previous_controlnet(before)


def seen(value: float) -> Any:
    output = sys.modules["comfy.clip_vision"].Output()
    output["image_embeds"] = torch.full((1, 8), value)
    return output


@pytest.mark.parametrize("node", ["sampler", "planner"])
def test_a_prompt_with_another_reference_picture_is_another_render(
    bench: Any, loaded: Any, store: Path, small: Any, swept: Any, make_node: Any, to: Any, node: str
) -> None:
    """The Setting says alone that there is one."""
    del store
    name = small()
    first, same, other = (
        [[tokens, {**extras, **referring(value)}] for tokens, extras in loaded.encode(PROMPTS[1])]
        for value in (0.5, 0.5, 0.6)
    )
    given = {
        key: make_node("GivenCONDITIONING", key=bench.value(value))
        for key, value in (("11", first), ("12", same), ("13", other))
    }

    def remembered(key: str) -> bool:
        bench.session.clear_cache()
        graph = {**bench.base(), key: given[key]}
        if node == "planner":
            plan = bench.plan(graph, positive=to(key), planner=name, max_steps=9)
        else:
            adaptive = bench.adaptive(planner=name, max_steps=9, positive=to(key))
            (shown,) = bench.run({**graph, "5": adaptive}, "5").ui["5"]["budget_plan"]
            plan = Plan.from_dict(shown)
        assert plan.fallback is None
        return plan.remembered is not None

    swept(positive=to("11"), more={"11": given["11"]})
    assert remembered("12")
    assert not remembered("13")


@pytest.mark.parametrize(
    "made",
    [
        lambda value: {"guidance": value},
        lambda value: {"area": (4, 4, 0, int(value)), "strength": 1.0},
        lambda value: {"mask": torch.ones(1, 8, 8), "mask_strength": value},
        referring,
        lambda value: {"control": controlled(value)},
        lambda value: {"control": controlled(1.0, value)},
        lambda value: {"control": controlled(1.0, before=controlled(value))},
        lambda value: {"clip_vision_output": seen(value)},
        lambda value: {"unclip_conditioning": [{"clip_vision_output": seen(value), "strength": 1.0}]},
    ],
)
def test_what_a_prompt_carries_is_told_by_its_content(loaded: Any, pack: Any, made: Any) -> None:
    def facts(prompt: str, extras: dict[str, Any]) -> Any:
        return pack("planning.memory").prompt_facts([[t, {**e, **extras}] for t, e in loaded.encode(prompt)])

    assert facts(PROMPTS[0], made(2.0)) == facts(PROMPTS[1], made(2.0))  # the text is no part of it
    told = [facts(PROMPTS[0], extras)["extras"] for extras in ({}, made(2.0), made(3.0))]
    assert told[0] == ""
    assert len(set(told)) == 3


def test_pictures_that_another_node_changed_are_not_remembered(
    bench: Any, store: Path, make_node: Any, to: Any, swept: Any
) -> None:
    del swept
    sweep = make_node(
        "BudgetFusion_StepSweep",
        model=to("1"),
        positive=to("2"),
        negative=to("3"),
        latent_image=to("4"),
        vae=to("1", 2),
        seed=5,
        cfg=3.0,
        sampler_name="dpmpp_2m",
        scheduler="karras",
        step_counts="2 3",
    )
    inverted = make_node("ImageInvert", image=to("7"))
    probe = make_node("BudgetFusion_PerceptualMetricProbe", images=to("9"), step_counts="2 3", d_sim_backend="haarpsi")
    run = bench.run({**bench.base(), "7": sweep, "9": inverted, "8": probe})
    assert [code(note) for note in run.ui["8"]["probe"][0]["notes"]] == []
    assert not store.exists()


@pytest.mark.parametrize("other", ["steps", "seed", "inverted", "vae"])
def test_the_blind_tests_pair_is_remembered_where_both_are_one_trajectory(
    bench: Any, store: Path, small: Any, make_node: Any, to: Any, pack: Any, other: str
) -> None:
    name = small()

    def run(full_seed: int, steps: int = 9, between: bool = False, vae: str = "1") -> Any:
        bench.session.clear_cache()
        ksampler = make_node(
            "KSampler",
            model=to("1"),
            positive=to("2"),
            negative=to("3"),
            latent_image=to("4"),
            seed=full_seed,
            steps=steps,
            cfg=3.0,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            denoise=1.0,
        )
        graph = {
            **bench.base(),
            "12:5": bench.adaptive(planner=name, max_steps=4, quality=0.9, seed=5),  # in a subgraph
            "6": ksampler,
            "12:7": make_node("VAEDecode", samples=to("12:5"), vae=to("1", 2)),
            "11": make_node("VAELoader", vae_name="pixel_space"),
            "8": make_node("VAEDecode", samples=to("6"), vae=to(vae, 0 if vae == "11" else 2)),
            "9": make_node("ImageInvert", image=to("8")),
            "10": make_node("BudgetFusion_BlindTest", planned=to("12:7"), full=to("9" if between else "8")),
        }
        (shown,) = bench.run(graph).ui["10"]["blind_test"]
        return [one["code"] for one in shown["messages"]]

    wrong = {"steps": (5, 8), "seed": (6, 9), "inverted": (5, 9, True), "vae": (5, 9, False, "11")}[other]
    assert "remembered" not in run(*wrong)
    assert not store.exists() or not rows(store, "SELECT 1 FROM memories")
    assert "remembered" in run(5)
    assert rows(store, "SELECT source FROM memories") == [("blind test",)]
    assert [row[0] for row in rows(store, "SELECT steps FROM measurements ORDER BY steps")] == [4, 9]
    assert "remembered" not in run(5)  # once is enough
    forget(store, pack)
    assert "remembered" in run(5)


@pytest.mark.parametrize("spoil", ["zeros", "foreign", "locked"])
def test_a_store_that_is_no_use_is_said_and_costs_no_render(
    bench: Any, store: Path, small: Any, swept: Any, spoil: str
) -> None:
    name = small()
    swept()
    holder = sqlite3.connect(store)
    try:
        holder.execute("PRAGMA journal_mode = DELETE")
        if spoil == "locked":
            holder.execute("BEGIN EXCLUSIVE")
        else:
            holder.close()
            store.write_bytes(b"\0" * 8192 if spoil == "zeros" else b"not a database at all")
        plan = planned(bench, name)
    finally:
        holder.close()
    assert plan.fallback is None
    assert plan.remembered is None
    assert "memory_unavailable" in [code(note) for note in plan.warnings]


def test_a_sweep_that_cannot_be_kept_is_shown_all_the_same(
    store: Path, swept: Any, pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack("calibration.store_memory"), "remember", full)
    shown = swept()
    assert "not_remembered" in [code(note) for note in shown["notes"]]
    assert len(shown["d_sim"]) == len(GRID)
    del store
