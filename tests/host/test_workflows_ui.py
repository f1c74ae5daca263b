"""What the page is sent beside the pictures: plans for charts, receipts for the running total."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from budgetfusion_nodes.host.energy import watt_hours
from research.in_process_host import PACK_ROOT


def test_the_probe_sends_the_plan_that_it_was_given(bench: Any, make_node: Any, to: Any) -> None:
    sweep = make_node(
        "BudgetFusion_StepSweep",
        model=to("1"),
        positive=to("2"),
        negative=to("3"),
        latent_image=to("4"),
        vae=to("1", 2),
        seed=3,
        cfg=3.0,
        sampler_name="dpmpp_2m",
        scheduler="karras",
        step_counts="2 4",
    )
    probe = {"images": to("6"), "step_counts": to("6", 1), "d_sim_backend": "haarpsi"}
    graph = {**bench.base(), "5": bench.planner(), "6": sweep}
    with_plan = make_node("BudgetFusion_PerceptualMetricProbe", **probe, plan=to("5"))
    without = make_node("BudgetFusion_PerceptualMetricProbe", **probe)
    run = bench.run({**graph, "7": with_plan, "8": without})
    assert run.ui["7"]["budget_plan"] == run.ui["5"]["budget_plan"]
    assert "budget_plan" not in run.ui["8"]
    json.dumps(run.ui["7"], allow_nan=False)


def test_a_receipt_counts_the_pictures_of_a_batch(bench: Any) -> None:
    run = bench.run({**bench.base(batch=3), "5": bench.adaptive()}, show="5")
    (receipt,) = run.ui["5"]["receipt"]
    assert receipt["images"] == 3
    assert receipt["watt_hours"] is None, "a processor has no counter of its own"


def test_energy_is_the_counters_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """3.6 million millijoules are a watt-hour; a device without a counter has none."""
    from budgetfusion_nodes.host import energy

    class Library:
        millijoules = 0

        def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, found: Any) -> int:
            assert handle == "the device"
            found._obj.value = self.millijoules
            return 0

    library = Library()
    monkeypatch.setattr(energy, "_counter", lambda index: (library, "the device") if index == 1 else None)
    assert watt_hours(torch.device("cpu")) is None
    assert watt_hours(torch.device("cuda", 0)) is None
    before = watt_hours(torch.device("cuda", 1))
    library.millijoules = 7_200_000
    after = watt_hours(torch.device("cuda", 1))
    assert before is not None and after is not None
    assert after - before == pytest.approx(2.0)


def test_every_node_has_a_help_page() -> None:
    web = Path(PACK_ROOT) / "budgetfusion_nodes" / "web"
    assert (web / "budgetfusion.js").is_file()
    assert {path.stem.removeprefix("BudgetFusion_") for path in (web / "docs").glob("*.md")} == set(NODES)


NODES = ("AdaptiveKSampler", "BlindTest", "BudgetPlanner", "Calibrate", "Learn", "PerceptualMetricProbe", "StepSweep")


@pytest.mark.parametrize("node", [f"BudgetFusion_{name}" for name in NODES])
def test_every_input_and_output_has_a_tooltip_and_its_place_in_the_locales(session: Any, node: str) -> None:
    """English repeats the schema word for word; a test of the page's own holds the other languages to English."""
    kept = json.loads((Path(PACK_ROOT) / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))[node]
    info = session.object_info(node)[node]
    declared = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    assert kept["display_name"] == info["display_name"]
    assert kept["description"] == info["description"]
    assert {name: spec[1]["tooltip"] for name, spec in declared.items()} == {
        name: entry["tooltip"] for name, entry in kept["inputs"].items()
    }
    assert all(entry["name"] == name for name, entry in kept["inputs"].items())
    assert [(entry["name"], entry["tooltip"]) for entry in kept["outputs"].values()] == list(
        zip(info["output_name"], info["output_tooltips"], strict=True)
    )
    assert list(kept["outputs"]) == [str(i) for i in range(len(info["output"]))]
