"""The example graphs: page files and API twins agree, and every twin runs in the genuine host.

Graphs for other checkpoints run with Tiny Scenes swapped in for the loaders: what is theirs alone is the loader, and
the host's own definitions check that.
"""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from research.in_process_host import PACK_ROOT, HostValidationError
from research.shipped_models import FLOW, MODELS
from research.templates.blueprint import BLUEPRINT, BOUNDARY_IN, BOUNDARY_OUT, blueprint_nodes, to_blueprint
from research.templates.examples import graphs
from research.templates.page import MATCHED, NOTE, to_api
from research.templates.parts import PROMPTS
from research.templates.workflows import BLUEPRINTS, EXTRAS, FOLDER
from tests.fixtures.said import codes

pytestmark = pytest.mark.long_file

NAMES = sorted(graph.name for graph in graphs())
OTHER_MODELS = {"swap_in_sd15_or_sdxl", "flux_through_sigmas"}
ELSEWHERE = {"calibrate_your_model"}
"""Runs in test_calibrate.py, with fewer prompts and steps."""
SWEEP = pytest.param("step_sweep_and_probe", marks=pytest.mark.one_host)
"""Two hundred steps; test_sweep_and_probe.py sweeps fewer in every host."""
MISSING = (
    "weights/checkpoints/tiny_scenes.safetensors is missing: run the tiny-scenes training, or get the complete pack."
)


@pytest.fixture(scope="module")
def host(session: Any) -> Any:
    """The host with those of its extra nodes that the graphs use."""
    nodes = sys.modules["nodes"]
    for name in EXTRAS:
        path = session.host_dir / "comfy_extras" / name
        assert session.wait(nodes.load_custom_node(str(path), module_parent="comfy_extras")), name
    return session


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def info_of(session: Any, names: set[str]) -> dict[str, Any]:
    return json.loads(json.dumps(session.object_info(*names)))  # as it arrives at the page


def defaults(info: dict[str, Any]) -> dict[str, Any]:
    """Of the inputs that may be left out."""
    optional = info["input"].get("optional", {})
    return {key: options["default"] for key, (_, options) in optional.items() if "default" in options}


def test_the_files_are_the_graphs() -> None:
    assert sorted(p.stem for p in FOLDER.glob("*.json")) == NAMES
    assert sorted(p.stem for p in (FOLDER / "api").glob("*.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_page_file_becomes_its_twin(host: Any, name: str) -> None:
    page, twin = read(FOLDER / f"{name}.json"), read(FOLDER / "api" / f"{name}.json")
    info = info_of(host, {node["type"] for node in page["nodes"]} - {NOTE})
    converted = to_api(page, info)
    for node_id, node in twin.items():
        for key, value in node["inputs"].items():
            assert converted[node_id]["inputs"][key] == value, (node_id, key)
    for node_id, node in converted.items():  # an API prompt need not name inputs that came later
        for key, value in defaults(info[node["class_type"]]).items():
            if key not in twin[node_id]["inputs"] and node["inputs"].get(key) == value:
                del node["inputs"][key]
    untitled = [{k: {**node, "_meta": None} for k, node in graph.items()} for graph in (converted, twin)]
    assert untitled[0] == untitled[1]  # core nodes have other titles in other versions
    for node in page["nodes"]:
        if "title" in node and node["type"] != NOTE:
            assert twin[str(node["id"])]["_meta"]["title"] == node["title"]


@pytest.mark.parametrize("name", NAMES)
def test_links_fit_and_notes_name_no_machine(host: Any, name: str) -> None:
    page = read(FOLDER / f"{name}.json")
    nodes = {node["id"]: node for node in page["nodes"]}
    info = info_of(host, {node["type"] for node in page["nodes"]} - {NOTE})
    for number, source, slot, target, target_slot, kind in page["links"]:
        output, taken = nodes[source]["outputs"][slot], nodes[target]["inputs"][target_slot]
        assert number in output["links"]
        assert taken["link"] == number
        assert output["type"] == taken["type"] == kind
        assert info[nodes[source]["type"]]["output"][slot] in (kind, MATCHED)
    assert not re.search(r"(/(home|work|tmp)/|[A-Z]:\\)", json.dumps(page))


def test_graphs_do_not_overlap() -> None:
    for name in NAMES:
        boxes = [(*node["pos"], *node["size"]) for node in read(FOLDER / f"{name}.json")["nodes"]]
        for i, (x, y, w, h) in enumerate(boxes):
            for a, b, c, d in boxes[i + 1 :]:
                # 30: the title above the next node
                apart = x + w <= a or a + c <= x or y + h + 30 <= b or b + d + 30 <= y
                assert apart, (name, (x, y, w, h), (a, b, c, d))


@pytest.mark.parametrize("name", [SWEEP, *sorted(set(NAMES) - OTHER_MODELS - ELSEWHERE - {"step_sweep_and_probe"})])
def test_twin_runs(host: Any, name: str) -> None:
    """With the shipped checkpoint, planner and image encoder: an incomplete pack fails here."""
    assert (PACK_ROOT / "weights" / "checkpoints" / "tiny_scenes.safetensors").is_file(), MISSING
    host.clear_cache()
    twin = read(FOLDER / "api" / f"{name}.json")
    for node in twin.values():
        if "batch_size" in node["inputs"]:
            node["inputs"]["batch_size"] = 1  # one picture of a batch will do
    run = host.execute(twin)
    for node_id, node in twin.items():
        if node["class_type"] in ("BudgetFusion_BudgetPlanner", "BudgetFusion_AdaptiveKSampler"):
            plans = run.ui[node_id]["budget_plan"]
            assert len(plans) == (len(PROMPTS) if name == "prompt_list" else 1)
            for plan in plans:
                assert plan["fallback"] is None, plan["fallback"]
                assert 2 <= plan["steps"] <= plan["max_steps"] == 50
        if node["class_type"] == "BudgetFusion_StepSweep":
            (measured,) = run.ui[next(k for k, n in twin.items() if "Probe" in n["class_type"])]["probe"]
            assert measured["steps"] == [int(count) for count in node["inputs"]["step_counts"].split()]
            assert measured["quality"][-1] == pytest.approx(1.0, abs=1e-3)
        if node["class_type"] == "BudgetFusion_BlindTest":
            (asked,) = run.ui[node_id]["blind_test"]
            assert len(asked["pairs"]) == 1
        if node["class_type"] == "VAEDecode":
            assert_pictures(run.outputs[node_id], node, name)


def assert_pictures(outputs: Any, node: Any, name: str) -> None:
    pictures = outputs[0] if isinstance(outputs[0], list) else [outputs[0]]  # a list where the graph maps one
    size = 96 if node["inputs"]["samples"][0] == "21" else 64
    assert pictures, name
    for picture in pictures:
        assert picture.shape == (1, size, size, 3)
        assert torch.isfinite(picture).all()
        assert picture.std() > 0.01, "not one flat colour"


def test_a_list_of_prompts_gets_a_count_and_a_picture_each(host: Any) -> None:
    host.clear_cache()
    twin = read(FOLDER / "api" / "prompt_list.json")
    run = host.execute(twin)
    planned, rendered = ([plan["steps"] for plan in run.ui[node]["budget_plan"]] for node in ("5", "6"))
    assert planned == rendered == [receipt["steps"] for receipt in run.ui["6"]["receipt"]]
    assert len(run.ui["9"]["images"]) == len(PROMPTS)
    listed = [twin[twin["2"]["inputs"][f"inputs.input{i}"][0]]["inputs"]["text"] for i in range(len(PROMPTS))]
    assert listed == list(PROMPTS)


def test_the_second_pass_says_that_its_plan_is_a_guide(host: Any) -> None:
    host.clear_cache()
    run = host.execute(read(FOLDER / "api" / "two_passes_with_denoise.json"))
    first, second = (run.ui[node]["budget_plan"][0]["warnings"] for node in ("6", "21"))
    assert "differs denoise" not in codes(first)
    assert "differs denoise" in codes(second)
    assert run.ui["21"]["receipt"][0]["steps"] == run.ui["21"]["budget_plan"][0]["steps"], "all of them are executed"


@pytest.mark.parametrize("name", sorted(OTHER_MODELS))
def test_the_loaders_of_other_models_are_those_of_the_host(host: Any, name: str) -> None:
    """Only the files are missing: the host's own validator has nothing else to say."""
    twin = read(FOLDER / "api" / f"{name}.json")
    from_disk = {"CheckpointLoaderSimple", "UNETLoader", "DualCLIPLoader", "VAELoader"}
    with pytest.raises(HostValidationError) as refused:  # every output hangs on a loader
        host.validate(twin)
    errors = refused.value.node_errors
    assert errors
    for node_id, found in errors.items():
        for error in found["errors"]:
            assert error["type"] == "value_not_in_list", (node_id, error)
            assert found["class_type"] in from_disk, (node_id, error)


@pytest.mark.parametrize("name", sorted(OTHER_MODELS))
def test_graphs_of_other_models_run_with_tiny_scenes(host: Any, name: str) -> None:
    host.clear_cache()
    run = host.execute(with_tiny_scenes(read(FOLDER / "api" / f"{name}.json")))
    (plan,) = run.ui["5"]["budget_plan"]
    assert plan["fallback"] is None
    assert "differs cfg" in codes(plan["warnings"])
    if name == "flux_through_sigmas":  # euler with another scheduler than the shipped planner's
        assert "differs scheduler" in codes(plan["warnings"])
        assert plan["prefix_steps"] < plan["steps"] < plan["max_steps"] == 28
        assert len(run.outputs["5"][2]) == plan["steps"] + 1
    (picture,) = run.outputs["8"]
    assert picture.shape == (1, 64, 64, 3) and torch.isfinite(picture).all()


def with_tiny_scenes(twin: dict[str, Any]) -> dict[str, Any]:
    """The graph with Tiny Scenes in place of its loaders and its size."""
    swapped = copy.deepcopy(twin)
    outputs = {"UNETLoader": 0, "DualCLIPLoader": 1, "VAELoader": 2}
    loaders = {key: outputs[node["class_type"]] for key, node in swapped.items() if node["class_type"] in outputs}
    for key in loaders:
        del swapped[key]
    swapped["1"] = {
        "class_type": "CheckpointLoaderSimple",
        "inputs": {"ckpt_name": "tiny_scenes.safetensors"},
    }
    swapped["4"] = {
        "class_type": "EmptyLatentImage",
        "inputs": {"width": 64, "height": 64, "batch_size": 1},
    }
    for node in swapped.values():
        for key, value in node["inputs"].items():
            if isinstance(value, list) and value[0] in loaders:
                node["inputs"][key] = ["1", loaders[value[0]]]
    return swapped


def test_the_blueprint_is_what_the_graph_code_makes(host: Any) -> None:
    kept = read(BLUEPRINTS / f"{BLUEPRINT}.json")
    (definition,) = kept["definitions"]["subgraphs"]
    info = info_of(host, {node["type"] for node in definition["nodes"]})
    assert kept == json.loads(json.dumps(to_blueprint(blueprint_nodes(), info)))


def test_the_blueprints_links_join_what_they_say(host: Any) -> None:
    kept = read(BLUEPRINTS / f"{BLUEPRINT}.json")
    (outer,) = kept["nodes"]
    (definition,) = kept["definitions"]["subgraphs"]
    nodes = {node["id"]: node for node in definition["nodes"]}
    assert outer["type"] == definition["id"]
    assert [slot["name"] for slot in outer["inputs"]] == [slot["name"] for slot in definition["inputs"]]
    joined = {(slot, end) for end in ("in", "out") for slot in range(len(definition[f"{end}puts"]))}
    for one in definition["links"]:
        if one["origin_id"] == BOUNDARY_IN:
            source = definition["inputs"][one["origin_slot"]]
            assert one["id"] in source["linkIds"]
            joined.discard((one["origin_slot"], "in"))
        else:
            source = nodes[one["origin_id"]]["outputs"][one["origin_slot"]]
            assert one["id"] in source["links"]
        if one["target_id"] == BOUNDARY_OUT:
            target = definition["outputs"][one["target_slot"]]
            assert one["id"] in target["linkIds"]
            joined.discard((one["target_slot"], "out"))
        else:
            target = nodes[one["target_id"]]["inputs"][one["target_slot"]]
            assert target["link"] == one["id"]
        assert source["type"] == target["type"] == one["type"]
    assert not joined, "every socket of the subgraph leads somewhere"


def test_shipped_files_are_listed_by_the_stock_loaders(session: Any) -> None:
    assert (PACK_ROOT / "weights" / "checkpoints" / "tiny_scenes.safetensors").is_file(), MISSING
    for model in MODELS.values():
        for loader, inputs in (*model.loaders.items(), ("CheckpointLoaderSimple", {"ckpt_name": model.checkpoint})):
            asked = session.object_info(loader)[loader]["input"]["required"]
            for name, value in inputs.items():
                assert name not in asked or value in json.dumps(asked[name]), (loader, name)


def test_shipped_flow_is_one_model_through_either_loader(session: Any, pack: Any) -> None:
    """The checkpoint and the split files: equal weights, equal text, and one identity, so one planner."""
    nodes, identity = sys.modules["nodes"], pack("host.identity")
    text = FLOW.loaders["CLIPLoader"]
    with torch.inference_mode():
        whole, clip, _ = nodes.CheckpointLoaderSimple().load_checkpoint(FLOW.checkpoint)[:3]
        (split,) = nodes.UNETLoader().load_unet(FLOW.loaders["UNETLoader"]["unet_name"], "default")
        (split_clip,) = nodes.CLIPLoader().load_clip(text["clip_name"], text["type"])
        one, two = (nodes.CLIPTextEncode().encode(c, "two large blue rings")[0] for c in (clip, split_clip))
    assert identity.model_fingerprint(whole)[0] == identity.model_fingerprint(split)[0]
    assert identity.model_precision(whole) == identity.model_precision(split) == "fp32"
    assert torch.equal(one[0][0], two[0][0])
    assert torch.equal(one[0][1]["pooled_output"], two[0][1]["pooled_output"])
    weights = whole.model.diffusion_model.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in split.model.diffusion_model.state_dict().items())
    # as a sweep on a GPU loads it, so that its planner is for this model
    args = sys.modules["comfy.cli_args"].args
    args.fp32_unet = True
    try:
        (full,) = nodes.UNETLoader().load_unet(FLOW.loaders["UNETLoader"]["unet_name"], "default")
    finally:
        args.fp32_unet = False
    assert full.model.diffusion_model.x_embedder.proj.weight.dtype == torch.float32
    assert identity.model_fingerprint(full)[0] == identity.model_fingerprint(split)[0]
