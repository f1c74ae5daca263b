"""The example graphs: one description each, written as a page file and as its API twin.

    python -m budgetfusion_nodes.host.workflows <ComfyUI folder>

writes `workflows/*.json` (the host lists them as templates) and `workflows/api/*.json`. `to_api` is the page's own
conversion, repeated: the tests convert each page file with it and compare with the twin.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .boot import PACK_ROOT, start_host

FOLDER = PACK_ROOT / "workflows"
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOTE = "MarkdownNote"
"""A node of the page alone: never sent to the host."""

PROMPT = "three small red circles and two large outlined blue squares on a fine green and white checked background"
NEGATIVE = ""
SETTING = {"cfg": 3.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
SEED = 7
LINE = 26  # pixels of a widget or slot row, as the page draws it


@dataclass(frozen=True)
class Node:
    """One node of a graph. `inputs`: values, or ("id", output index) for a link."""

    id: int
    type: str
    inputs: dict[str, Any]
    at: tuple[int, int]
    title: str = ""
    width: int = 300


@dataclass(frozen=True)
class Graph:
    name: str
    note: str
    nodes: tuple[Node, ...] = field(default=())


def link(node: int, output: int = 0) -> list[Any]:
    """A link as the API format writes it."""
    return [str(node), output]


def graphs() -> tuple[Graph, ...]:
    """Every example graph."""
    return (
        _planner_into_adaptive(),
        _adaptive_alone(),
        _sweep_into_probe(),
        _sigmas_into_custom(),
        _steps_into_ksampler(),
    )


def to_api_twin(graph: Graph) -> dict[str, Any]:
    """The graph in API format."""
    return {
        str(node.id): {
            "inputs": node.inputs,
            "class_type": node.type,
            "_meta": {"title": node.title or node.type},
        }
        for node in graph.nodes
    }


def to_page(graph: Graph, info: Mapping[str, Any]) -> dict[str, Any]:
    """The graph in the page's format (version 0.4). info: what /object_info answers for its node types."""
    links: list[list[Any]] = []
    nodes = [_page_node(node, index, info[node.type], links) for index, node in enumerate(graph.nodes)]
    by_id = {node["id"]: node for node in nodes}
    for number, source, slot, _target, _target_slot, kind in links:
        output = by_id[source]["outputs"][slot]
        output["links"] = [*(output["links"] or []), number]
        assert output["type"] == kind or kind == "*", (graph.name, source, slot)
    note_id = max(by_id) + 1
    nodes.append(_note(note_id, len(nodes), graph))
    return {
        "last_node_id": note_id,
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def to_api(page: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """Page format -> API format, as the page's graphToPrompt does it (no subgraphs, reroutes or muted nodes)."""
    sources = {number: link(source, slot) for number, source, slot, *_ in page["links"]}
    prompt: dict[str, Any] = {}
    for node in page["nodes"]:
        if node["type"] == NOTE:
            continue
        linked = {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot.get("link") is not None}
        inputs: dict[str, Any] = {}
        values = iter(node.get("widgets_values", ()))
        for name, kind, options in _inputs(info[node["type"]]):
            if _is_widget(kind, options):
                inputs[name] = next(values)
                if options.get("control_after_generate"):
                    next(values)
            if name in linked:
                inputs[name] = linked[name]
        title = node.get("title") or info[node["type"]]["display_name"] or node["type"]
        prompt[str(node["id"])] = {"inputs": inputs, "class_type": node["type"], "_meta": {"title": title}}
    return prompt


def write(host_dir: str) -> list[Path]:
    """Writes all page files and twins with the node definitions of the ComfyUI at `host_dir`; returns the paths."""
    with tempfile.TemporaryDirectory() as base:
        session = start_host(host_dir, base, [PACK_ROOT])
        written: list[Path] = []
        for graph in graphs():
            info = session.object_info(*{node.type for node in graph.nodes})
            titled = _titled(graph, info)
            for path, content in (
                (FOLDER / f"{graph.name}.json", to_page(titled, info)),
                (FOLDER / "api" / f"{graph.name}.json", to_api_twin(titled)),
            ):
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
                written.append(path)
    return written


# ------------------------------------------------------------------------------------------------------ the graphs


def _model_and_prompts() -> tuple[Node, ...]:
    return (
        Node(1, "CheckpointLoaderSimple", {"ckpt_name": "tiny_scenes.safetensors"}, (0, 0)),
        Node(2, "CLIPTextEncode", {"text": PROMPT, "clip": link(1, 1)}, (340, 0), "Prompt", 380),
        Node(3, "CLIPTextEncode", {"text": NEGATIVE, "clip": link(1, 1)}, (340, 220), "Negative prompt", 380),
        Node(4, "EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}, (0, 160)),
    )


def _planner(at: tuple[int, int]) -> Node:
    inputs = {
        "model": link(1),
        "positive": link(2),
        **SETTING,
        "quality": 0.9,
        "min_steps": 2,
        "max_steps": 50,
        "risk": 0.1,
        "planner": "auto",
        "latent_image": link(4),
    }
    return Node(5, "BudgetFusion_BudgetPlanner", inputs, at, width=400)


def _adaptive(at: tuple[int, int], **more: Any) -> Node:
    inputs = {
        "model": link(1),
        "seed": SEED,
        "quality": 0.9,
        "max_steps": 50,
        **SETTING,
        "positive": link(2),
        "negative": link(3),
        "latent_image": link(4),
        "denoise": 1.0,
        "min_steps": 2,
        "risk": 0.1,
        "planner": "auto",
        **more,
    }
    return Node(6, "BudgetFusion_AdaptiveKSampler", inputs, at, width=400)


def _decode_and_save(sampler: int, at: tuple[int, int]) -> tuple[Node, ...]:
    x, y = at
    return (
        Node(8, "VAEDecode", {"samples": link(sampler), "vae": link(1, 2)}, (x, y), width=200),
        Node(9, "SaveImage", {"filename_prefix": "BudgetFusion", "images": link(8)}, (x, y + 160), width=320),
    )


def _planner_into_adaptive() -> Graph:
    return Graph(
        "planner_into_adaptive_ksampler",
        "**Budget Planner** decides the number of steps from the prompt and shows why. **Adaptive KSampler** obeys the "
        "plan and says what it saved. Move the quality slider of the planner and queue again.",
        (
            *_model_and_prompts(),
            _planner((760, 0)),
            _adaptive((1200, 0), plan=link(5)),
            *_decode_and_save(6, (1640, 0)),
        ),
    )


def _adaptive_alone() -> Graph:
    return Graph(
        "adaptive_ksampler",
        "**Adaptive KSampler** is a KSampler whose steps became quality and max_steps. Put it in the place of a "
        "KSampler: it plans by itself.",
        (*_model_and_prompts(), _adaptive((760, 0)), *_decode_and_save(6, (1200, 0))),
    )


def _sweep_into_probe() -> Graph:
    sweep = {
        "model": link(1),
        "positive": link(2),
        "negative": link(3),
        "latent_image": link(4),
        "vae": link(1, 2),
        "seed": SEED,
        **SETTING,
        "step_counts": "2 3 4 6 8 10 13 17 22 29 38 50",
    }
    probe = {
        "images": link(7, 0),
        "step_counts": link(7, 1),
        "d_sim_backend": "auto",
        "plan": link(5),
    }
    return Graph(
        "step_sweep_and_probe",
        "**Step Sweep** renders one prompt and seed with each step count. **Perceptual Metric Probe** measures how far "
        "each image is from the last one, and compares the measured quality with the plan's prediction.",
        (
            *_model_and_prompts(),
            _planner((760, 0)),
            Node(7, "BudgetFusion_StepSweep", sweep, (1200, 0), width=400),
            Node(10, "BudgetFusion_PerceptualMetricProbe", probe, (1640, 0), width=520),
            Node(11, "PreviewImage", {"images": link(7, 0)}, (1200, 380), width=400),
        ),
    )


def _sigmas_into_custom() -> Graph:
    return Graph(
        "planner_sigmas_sampler_custom_advanced",
        "The planner's **sigmas** drive any custom sampler. Keep the sampler of KSamplerSelect and the cfg of "
        "CFGGuider equal to those of the planner.",
        (
            *_model_and_prompts(),
            _planner((760, 0)),
            Node(12, "RandomNoise", {"noise_seed": SEED}, (1200, 0)),
            Node(13, "KSamplerSelect", {"sampler_name": SETTING["sampler_name"]}, (1200, 130)),
            Node(
                14,
                "CFGGuider",
                {"cfg": SETTING["cfg"], "model": link(1), "positive": link(2), "negative": link(3)},
                (1200, 240),
            ),
            Node(
                6,
                "SamplerCustomAdvanced",
                {
                    "noise": link(12),
                    "guider": link(14),
                    "sampler": link(13),
                    "sigmas": link(5, 2),
                    "latent_image": link(4),
                },
                (1540, 0),
            ),
            *_decode_and_save(6, (1880, 0)),
        ),
    )


def _steps_into_ksampler() -> Graph:
    sampler = {
        "model": link(1),
        "seed": SEED,
        "steps": link(5, 1),
        **SETTING,
        "positive": link(2),
        "negative": link(3),
        "latent_image": link(4),
        "denoise": 1.0,
    }
    return Graph(
        "planner_steps_into_ksampler",
        "The planner's **steps** drive the stock KSampler. Keep its sampler, scheduler and cfg equal to those "
        "of the planner.",
        (
            *_model_and_prompts(),
            _planner((760, 0)),
            Node(6, "KSampler", sampler, (1200, 0), width=320),
            *_decode_and_save(6, (1560, 0)),
        ),
    )


# ------------------------------------------------------------------------------------------------- the page format


def _inputs(info: Mapping[str, Any]) -> list[tuple[str, Any, Mapping[str, Any]]]:
    """(name, type, options) in the order in which the page makes widgets and slots."""
    found: list[tuple[str, Any, Mapping[str, Any]]] = []
    for section in ("required", "optional"):
        for name, spec in info["input"].get(section, {}).items():
            found.append((name, spec[0], spec[1] if len(spec) > 1 else {}))
    return found


def _is_widget(kind: Any, options: Mapping[str, Any]) -> bool:
    return (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput")


def _type_name(kind: Any) -> str:
    return "COMBO" if isinstance(kind, list) else kind


def _titled(graph: Graph, info: Mapping[str, Any]) -> Graph:
    """Titles as the page shows them, where the graph names none."""
    nodes = tuple(
        Node(n.id, n.type, n.inputs, n.at, n.title or info[n.type]["display_name"] or n.type, n.width)
        for n in graph.nodes
    )
    return Graph(graph.name, graph.note, nodes)


def _page_node(node: Node, order: int, info: Mapping[str, Any], links: list[list[Any]]) -> dict[str, Any]:
    declared = _inputs(info)
    unknown = set(node.inputs) - {name for name, _, _ in declared}
    if unknown:
        raise ValueError(f"{node.type} has no inputs {sorted(unknown)}")
    # the page lists plain sockets first, then the sockets of widgets
    ordered = sorted(declared, key=lambda entry: _is_widget(entry[1], entry[2]))
    slots = [_slot(node, index, *entry, links) for index, entry in enumerate(ordered)]
    outputs = [
        {"name": name, "type": _type_name(kind), "links": None}
        for name, kind in zip(info["output_name"], info["output"], strict=True)
    ]
    values = _widget_values(node, declared)
    rows = max(sum("widget" not in slot for slot in slots), len(outputs)) + len(values)
    made: dict[str, Any] = {
        "id": node.id,
        "type": node.type,
        "pos": list(node.at),
        "size": [node.width, 50 + LINE * rows],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": slots,
        "outputs": outputs,
        "properties": {"Node name for S&R": node.type},
    }
    if node.title not in (info["display_name"], node.type):
        made["title"] = node.title
    if values:
        made["widgets_values"] = values
    return made


def _slot(
    node: Node, index: int, name: str, kind: Any, options: Mapping[str, Any], links: list[list[Any]]
) -> dict[str, Any]:
    slot: dict[str, Any] = {"name": name, "type": _type_name(kind), "link": None}
    if _is_widget(kind, options):
        slot["widget"] = {"name": name}
    value = node.inputs.get(name)
    if isinstance(value, list):
        slot["link"] = len(links) + 1
        links.append([slot["link"], int(value[0]), value[1], node.id, index, slot["type"]])
    return slot


def _widget_values(node: Node, declared: Sequence[tuple[str, Any, Mapping[str, Any]]]) -> list[Any]:
    values: list[Any] = []
    for name, kind, options in declared:
        if not _is_widget(kind, options):
            continue
        value = node.inputs.get(name, options.get("default"))
        values.append(options.get("default") if isinstance(value, list) else value)  # a linked widget keeps its own
        if options.get("control_after_generate"):
            values.append("fixed")
    return values


def _note(number: int, order: int, graph: Graph) -> dict[str, Any]:
    return {
        "id": number,
        "type": NOTE,
        "pos": [0, 320],
        "size": [300, 180],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "What this does",
        "properties": {},
        "widgets_values": [graph.note],
    }


if __name__ == "__main__":
    for file in write(sys.argv[1]):
        sys.stdout.write(f"{file}\n")
