"""The example graphs: page files and API twins agree, and every twin runs in the genuine host."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from budgetfusion_nodes.host.boot import PACK_ROOT
from budgetfusion_nodes.host.workflows import NOTE, graphs, to_api

FOLDER = PACK_ROOT / "workflows"
NAMES = sorted(graph.name for graph in graphs())
MISSING = (
    "weights/checkpoints/tiny_scenes.safetensors is missing: run the tiny-scenes training, or get the complete pack."
)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def info_of(session: Any, names: set[str]) -> dict[str, Any]:
    return json.loads(json.dumps(session.object_info(*names)))  # as it arrives at the page


def test_the_files_are_the_graphs() -> None:
    assert sorted(p.stem for p in FOLDER.glob("*.json")) == NAMES
    assert sorted(p.stem for p in (FOLDER / "api").glob("*.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_page_file_becomes_its_twin(session: Any, name: str) -> None:
    page, twin = read(FOLDER / f"{name}.json"), read(FOLDER / "api" / f"{name}.json")
    info = info_of(session, {node["type"] for node in page["nodes"]} - {NOTE})
    converted = to_api(page, info)
    for node_id, node in twin.items():
        for key, value in node["inputs"].items():
            assert converted[node_id]["inputs"][key] == value, (node_id, key)
    untitled = [{k: {**node, "_meta": None} for k, node in graph.items()} for graph in (converted, twin)]
    assert untitled[0] == untitled[1]  # core nodes have other titles in other versions
    for node in page["nodes"]:
        if "title" in node and node["type"] != NOTE:
            assert twin[str(node["id"])]["_meta"]["title"] == node["title"]


@pytest.mark.parametrize("name", NAMES)
def test_links_fit_and_notes_name_no_machine(session: Any, name: str) -> None:
    page = read(FOLDER / f"{name}.json")
    nodes = {node["id"]: node for node in page["nodes"]}
    info = info_of(session, {node["type"] for node in page["nodes"]} - {NOTE})
    for number, source, slot, target, target_slot, kind in page["links"]:
        output, taken = nodes[source]["outputs"][slot], nodes[target]["inputs"][target_slot]
        assert number in output["links"]
        assert taken["link"] == number
        assert output["type"] == taken["type"] == kind
        assert info[nodes[source]["type"]]["output"][slot] == kind
    assert not re.search(r"(/home/|/work/|/tmp/|[A-Z]:\\)", json.dumps(page))


def test_graphs_do_not_overlap() -> None:
    for name in NAMES:
        boxes = [(*node["pos"], *node["size"]) for node in read(FOLDER / f"{name}.json")["nodes"]]
        for i, (x, y, w, h) in enumerate(boxes):
            for a, b, c, d in boxes[i + 1 :]:
                assert x + w <= a or a + c <= x or y + h <= b or b + d <= y, (name, (x, y, w, h), (a, b, c, d))


@pytest.mark.parametrize("name", NAMES)
def test_twin_runs(session: Any, name: str) -> None:
    """With the shipped checkpoint, planner and image encoder: an incomplete pack fails here."""
    assert (PACK_ROOT / "weights" / "checkpoints" / "tiny_scenes.safetensors").is_file(), MISSING
    session.clear_cache()
    twin = read(FOLDER / "api" / f"{name}.json")
    run = session.execute(twin)
    by_type = {node["class_type"]: node_id for node_id, node in twin.items()}
    for shown in ("BudgetFusion_BudgetPlanner", "BudgetFusion_AdaptiveKSampler"):
        if shown in by_type:
            (plan,) = run.ui[by_type[shown]]["budget_plan"]
            assert plan["fallback"] is None, plan["fallback"]
            assert 2 <= plan["steps"] <= plan["max_steps"] == 50
    if "BudgetFusion_StepSweep" in by_type:
        (measured,) = run.ui[by_type["BudgetFusion_PerceptualMetricProbe"]]["probe"]
        assert measured["steps"] == [2, 3, 4, 6, 8, 10, 13, 17, 22, 29, 38, 50]
        assert measured["quality"][-1] == pytest.approx(1.0, abs=1e-3)
    else:
        images = run.outputs[by_type["VAEDecode"]][0]
        assert images.shape == (1, 64, 64, 3)
        assert torch.isfinite(images).all()
        assert images.std() > 0.01, "not one flat colour"


def test_shipped_checkpoint_is_listed_by_the_stock_loader(session: Any) -> None:
    assert (PACK_ROOT / "weights" / "checkpoints" / "tiny_scenes.safetensors").is_file(), MISSING
    info = session.object_info("CheckpointLoaderSimple")["CheckpointLoaderSimple"]
    assert "tiny_scenes.safetensors" in json.dumps(info["input"]["required"]["ckpt_name"])
