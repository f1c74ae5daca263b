"""The example graphs: one description each, written as a page file and as its API twin.

    python -m research.templates.workflows <ComfyUI folder>

writes `workflows/*.json` (the host lists them as templates), `workflows/api/*.json`, and the blueprint in
`subgraphs/`. `to_api` is the page's own conversion, repeated: the tests convert each page file with it and compare with
the twin. Nodes stand in columns, as tall as the page draws them after a run.
"""

from __future__ import annotations

import json
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from research.in_process_host import PACK_ROOT, start_host
from research.shipped_models import EPS, FLOW

FOLDER = PACK_ROOT / "workflows"
BLUEPRINTS = PACK_ROOT / "subgraphs"
BLUEPRINT = "BudgetFusion Planned Render"
"""Its name in the page's node library."""
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOTE = "MarkdownNote"
"""A node of the page alone: never sent to the host."""
AUTOGROW = "COMFY_AUTOGROW_V3"
"""An input of the host that grows a slot for each link, and one more."""
MATCHED = "COMFY_MATCHTYPE_V3"
"""A type that follows what is connected."""
EXTRAS = (
    "nodes_custom_sampler.py",
    "nodes_flux.py",
    "nodes_mask.py",
    "nodes_model_advanced.py",
    "nodes_preview_any.py",
    "nodes_primitive.py",
    "nodes_sd3.py",
    "nodes_toolkit.py",
)
"""Files of the host's comfy_extras that define nodes of the graphs."""

PROMPT = "three small red circles and two large outlined blue squares on a fine green and white checked background"
HELLO_PROMPT = (
    "a large striped purple heart on the left and three small yellow circles on the right on a plain black background"
)
PROMPTS = (
    "a plain red background",
    "two large blue circles on a green background",
    "six small white crosses on a wall of pink bricks",
)
"""From easy to hard."""
NEGATIVE = ""
SETTING = EPS.setting
SEED, HELLO_SEED, TWO_PASS_SEED = 7, 1, 2
"""Graphs with equal samplers have seeds of their own: what the host has in its cache it does not show again."""
LINE = 26  # pixels of a widget or slot row, as the page draws it
TITLE = 30
GAP_X, GAP_Y = 60, 40
ROOM = {
    "BudgetFusion_BudgetPlanner": 350,
    "BudgetFusion_AdaptiveKSampler": 500,
    "BudgetFusion_PerceptualMetricProbe": 680,
    "BudgetFusion_Calibrate": 480,
    "BudgetFusion_BlindTest": 480,
    "CLIPTextEncode": 110,
    "SaveImage": 300,
    "PreviewImage": 300,
}
"""Pixels below the rows: the panel with its receipt, the text box, the picture."""


@dataclass(frozen=True)
class Node:
    """One node of a graph. `inputs`: values, or ["id", output index] for a link; `column`: where it stands, from the
    left; nodes of one column stand below each other in the order of the graph."""

    id: int
    type: str
    inputs: dict[str, Any]
    column: int
    title: str = ""
    width: int = 300
    after: str = "fixed"
    """What the page does to a seed after each queue."""


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
        _hello(),
        _hello_flow(),
        _planner_into_adaptive(),
        _adaptive_alone(),
        _sweep_into_probe(),
        _sigmas_into_custom(),
        _steps_into_ksampler(),
        _two_passes(),
        _prompt_list(),
        _swap_in_checkpoint(),
        _flux_through_sigmas(),
        _calibrate_your_model(),
        _blind_test(),
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
    kinds = _output_kinds(graph.nodes, info)
    nodes = [_page_node(node, index, info[node.type], links, kinds) for index, node in enumerate(graph.nodes)]
    _place(nodes, [node.column for node in graph.nodes])
    by_id = {node["id"]: node for node in nodes}
    for number, source, slot, *_ in links:
        output = by_id[source]["outputs"][slot]
        output["links"] = [*(output["links"] or []), number]
    note_id = max(by_id) + 1
    left = [node for node, given in zip(nodes, graph.nodes, strict=True) if given.column == 0]
    nodes.append(_note(note_id, len(nodes), graph, max(n["pos"][1] + n["size"][1] for n in left) + TITLE + GAP_Y))
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


def _place(nodes: Sequence[dict[str, Any]], columns: Sequence[int]) -> None:
    """Columns from left to right, nodes of a column from top to bottom."""
    x = 0
    for column in range(max(columns) + 1):
        members = [node for node, own in zip(nodes, columns, strict=True) if own == column]
        y = 0
        for node in members:
            node["pos"] = [x, y]
            y += node["size"][1] + TITLE + GAP_Y
        x += max(node["size"][0] for node in members) + GAP_X


def _output_kinds(nodes: Sequence[Node], info: Mapping[str, Any]) -> dict[int, list[str]]:
    """Node id -> the types of its outputs; one that follows its inputs has the type of the first link."""
    kinds: dict[int, list[str]] = {}
    for node in nodes:  # sources stand before their targets
        links = [value for value in node.inputs.values() if isinstance(value, list)]
        own = [_type_name(kind) for kind in info[node.type]["output"]]
        kinds[node.id] = [kinds[int(links[0][0])][links[0][1]] if kind == MATCHED and links else kind for kind in own]
    return kinds


def to_api(page: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """Page format -> API format, as the page's graphToPrompt does it (no subgraphs, reroutes or muted nodes)."""
    sources = {number: link(source, slot) for number, source, slot, *_ in page["links"]}
    prompt: dict[str, Any] = {}
    for node in page["nodes"]:
        if node["type"] == NOTE:
            continue
        linked = {slot["name"]: sources[slot["link"]] for slot in node["inputs"] if slot.get("link") is not None}
        declared = {name for name, _, _ in _inputs(info[node["type"]])}
        inputs: dict[str, Any] = {name: value for name, value in linked.items() if name not in declared}  # grown slots
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
    """Writes page files, twins and the blueprint with the node definitions of the ComfyUI at `host_dir`; returns the
    paths."""
    with tempfile.TemporaryDirectory() as base:
        session = start_host(host_dir, base, [PACK_ROOT], extras=EXTRAS)
        written: list[Path] = []
        for graph in graphs():
            info = session.object_info(*{node.type for node in graph.nodes})
            titled = _titled(graph, info)
            written += [
                _write(FOLDER / f"{graph.name}.json", to_page(titled, info)),
                _write(FOLDER / "api" / f"{graph.name}.json", to_api_twin(titled)),
            ]
        nodes = blueprint_nodes()
        info = session.object_info(*{node.type for node in nodes})
        written.append(_write(BLUEPRINTS / f"{BLUEPRINT}.json", to_blueprint(nodes, info)))
    return written


def _write(path: Path, content: Mapping[str, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------------ the graphs


def _loader(name: str = "tiny_scenes.safetensors") -> Node:
    return Node(1, "CheckpointLoaderSimple", {"ckpt_name": name}, 0)


def _text(number: int, text: str, title: str, clip: list[Any] | None = None) -> Node:
    return Node(number, "CLIPTextEncode", {"text": text, "clip": clip or link(1, 1)}, 1, title, 380)


def _empty(size: int, pictures: int = 1) -> Node:
    return Node(4, "EmptyLatentImage", {"width": size, "height": size, "batch_size": pictures}, 0)


def _model_and_prompts(prompt: str = PROMPT) -> tuple[Node, ...]:
    return (_loader(), _empty(64), _text(2, prompt, "Prompt"), _text(3, NEGATIVE, "Negative prompt"))


def _planner(column: int, **more: Any) -> Node:
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
        "schedule": "auto",
        "split_at": 0,
        **more,
    }
    return Node(5, "BudgetFusion_BudgetPlanner", inputs, column, width=400)


def _adaptive(column: int, number: int = 6, title: str = "", **more: Any) -> Node:
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
        "schedule": "auto",
        **more,
    }
    return Node(number, "BudgetFusion_AdaptiveKSampler", inputs, column, title, 400)


def _ksampler(column: int, number: int, steps: Any, title: str = "", seed: Any = SEED, **more: Any) -> Node:
    inputs = {
        "model": link(1),
        "seed": seed,
        "steps": steps,
        **SETTING,
        "positive": link(2),
        "negative": link(3),
        "latent_image": link(4),
        "denoise": 1.0,
        **more,
    }
    return Node(number, "KSampler", inputs, column, title, 320)


def _decode_and_save(
    sampler: int, column: int, ids: tuple[int, int] = (8, 9), title: str = "", vae: list[Any] | None = None
) -> tuple[Node, ...]:
    decode, save = ids
    return (
        Node(decode, "VAEDecode", {"samples": link(sampler), "vae": vae or link(1, 2)}, column, width=200),
        Node(save, "SaveImage", {"filename_prefix": "BudgetFusion", "images": link(decode)}, column, title, 320),
    )


def _hello() -> Graph:
    return Graph(
        "hello_tiny_scenes",
        "Press **Run**. Everything this graph needs comes with BudgetFusion: Tiny Scenes is a small model that paints "
        "64 x 64 pictures.\n\n**Adaptive KSampler** reads the prompt and decides how many steps this picture needs. "
        "The KSampler beside it takes all 50, from the same seed. Compare the two pictures and the receipt, then drag "
        "**quality** and write other prompts.",
        (
            *_model_and_prompts(HELLO_PROMPT),
            _adaptive(2, seed=HELLO_SEED),
            _ksampler(3, 7, 50, "KSampler, all 50 steps", HELLO_SEED),
            *_decode_and_save(6, 4, title="As planned"),
            *_decode_and_save(7, 5, (10, 11), "All 50 steps"),
        ),
    )


def _hello_flow() -> Graph:
    loaders = [
        Node(i, kind, dict(given), 0) for i, (kind, given) in zip((1, 15, 16), FLOW.loaders.items(), strict=True)
    ]
    return Graph(
        "hello_tiny_scenes_flow",
        "Press **Run**. Tiny Scenes Flow is a small model of the kind of Stable Diffusion 3 and Flux (a flow-matching "
        "transformer) and comes with BudgetFusion. As there, diffusion model, text encoder and VAE have a loader each, "
        f"and the sampler is {FLOW.sampler_name} with the scheduler {FLOW.scheduler}.\n\n**Adaptive KSampler** decides "
        "how many steps this picture needs. The KSampler beside it takes all 50, from the same seed.",
        (
            *loaders,
            _empty(64),
            _text(2, HELLO_PROMPT, "Prompt", link(15)),
            _text(3, NEGATIVE, "Negative prompt", link(15)),
            _adaptive(2, seed=HELLO_SEED, **FLOW.setting),
            _ksampler(3, 7, 50, "KSampler, all 50 steps", HELLO_SEED, **FLOW.setting),
            *_decode_and_save(6, 4, title="As planned", vae=link(16)),
            *_decode_and_save(7, 5, (10, 11), "All 50 steps", link(16)),
        ),
    )


def _planner_into_adaptive() -> Graph:
    return Graph(
        "planner_into_adaptive_ksampler",
        "**Budget Planner** decides the number of steps from the prompt and shows why. **Adaptive KSampler** obeys the "
        "plan and says what it saved. Move the quality slider of the planner and queue again.",
        (*_model_and_prompts(), _planner(2), _adaptive(3, plan=link(5)), *_decode_and_save(6, 4)),
    )


def _adaptive_alone() -> Graph:
    return Graph(
        "adaptive_ksampler",
        "**Adaptive KSampler** is a KSampler whose steps became quality and max_steps. Put it in the place of a "
        "KSampler: it plans by itself.",
        (*_model_and_prompts(), _adaptive(2), *_decode_and_save(6, 3)),
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
            _planner(2),
            Node(7, "BudgetFusion_StepSweep", sweep, 3, width=400),
            Node(10, "BudgetFusion_PerceptualMetricProbe", probe, 4, width=520),
            Node(11, "PreviewImage", {"images": link(7, 0)}, 3, width=400),
        ),
    )


def _custom_sampler() -> Node:
    """SamplerCustomAdvanced under the planner's sigmas."""
    inputs = {
        "noise": link(12),
        "guider": link(14),
        "sampler": link(13),
        "sigmas": link(5, 2),
        "latent_image": link(4),
    }
    return Node(6, "SamplerCustomAdvanced", inputs, 4)


def _sigmas_into_custom() -> Graph:
    guider = {"cfg": SETTING["cfg"], "model": link(1), "positive": link(2), "negative": link(3)}
    return Graph(
        "planner_sigmas_sampler_custom_advanced",
        "The planner's **sigmas** drive any custom sampler. Keep the sampler of KSamplerSelect and the cfg of "
        "CFGGuider equal to those of the planner.",
        (
            *_model_and_prompts(),
            _planner(2),
            Node(12, "RandomNoise", {"noise_seed": SEED}, 3),
            Node(13, "KSamplerSelect", {"sampler_name": SETTING["sampler_name"]}, 3),
            Node(14, "CFGGuider", guider, 3),
            _custom_sampler(),
            *_decode_and_save(6, 5),
        ),
    )


def _steps_into_ksampler() -> Graph:
    return Graph(
        "planner_steps_into_ksampler",
        "The planner's **steps** drive the stock KSampler. Keep its sampler, scheduler and cfg equal to those "
        "of the planner.",
        (*_model_and_prompts(), _planner(2), _ksampler(3, 6, link(5, 1)), *_decode_and_save(6, 4)),
    )


def _two_passes() -> Graph:
    larger = {"samples": link(6), "upscale_method": "bilinear", "scale_by": 1.5}
    return Graph(
        "two_passes_with_denoise",
        "The first pass plans and renders at 64 x 64. The second enlarges the result and makes it half anew "
        "(**denoise** 0.5), with a plan of its own.\n\nAs in KSampler, all planned steps are executed below denoise 1 "
        "too. The plan was calibrated at denoise 1 and 64 x 64, so in the second pass it is only a guide, and the node "
        "says so.",
        (
            *_model_and_prompts(),
            _adaptive(2, title="First pass", seed=TWO_PASS_SEED),
            Node(20, "LatentUpscaleBy", larger, 3),
            _adaptive(4, 21, "Second pass", latent_image=link(20), denoise=0.5, quality=0.8),
            *_decode_and_save(6, 3, title="First pass"),
            *_decode_and_save(21, 5, (22, 23), "Second pass"),
        ),
    )


def _prompt_list() -> Graph:
    texts = [_text(30 + i, text, f"Prompt {i + 1}") for i, text in enumerate(PROMPTS)]
    listed = {f"inputs.input{i}": link(node.id) for i, node in enumerate(texts)}
    return Graph(
        "prompt_list",
        "Three prompts from easy to hard, in one list: each gets a step count of its own.\n\n**Budget Planner** shows "
        "the forecast for the whole list and a chart for each prompt; page through them with the arrows. **Adaptive "
        "KSampler** renders each with its own plan. Add prompts by linking more of them to the list.",
        (
            _loader(),
            _empty(64),
            *texts,
            _text(3, NEGATIVE, "Negative prompt"),
            Node(2, "CreateList", listed, 2, "List of prompts", 220),
            _planner(3),
            _adaptive(4, plan=link(5)),
            *_decode_and_save(6, 5),
        ),
    )


def _swap_in_checkpoint() -> Graph:
    own = {"cfg": 7.0, "max_steps": 20}
    return Graph(
        "swap_in_sd15_or_sdxl",
        "Your own checkpoint: choose it in **Load Checkpoint**. For SD 1.5 leave 512 x 512, for SDXL set 1024 x 1024."
        "\n\nAs long as no planner was calibrated for it, the nodes say **No plan** and render all of max_steps, as "
        "KSampler would. Calibrate one with `python -m research study` (see the README), put the file into "
        "`models/budgetfusion`, and the same graph plans.",
        (
            _loader("v1-5-pruned-emaonly-fp16.safetensors"),
            _empty(512),
            _text(2, "a lighthouse on a cliff at dusk, oil painting", "Prompt"),
            _text(3, "blurry, low quality", "Negative prompt"),
            _planner(2, **own),
            _adaptive(3, plan=link(5), **own),
            *_decode_and_save(6, 4),
        ),
    )


def _flux_through_sigmas() -> Graph:
    clip = {"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp8_e4m3fn.safetensors", "type": "flux"}
    clip["device"] = "default"
    own = {"cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "max_steps": 28}
    return Graph(
        "flux_through_sigmas",
        "Flux without a KSampler: the planner's **sigmas** go into SamplerCustomAdvanced. Choose your files in the "
        "three loaders. For SD3 use its checkpoint loader and CFGGuider in place of BasicGuider.\n\nKeep "
        "KSamplerSelect equal to the planner's sampler_name. As long as no planner was calibrated for your model, the "
        "planner says **No plan** and gives the sigmas of max_steps.",
        (
            Node(1, "UNETLoader", {"unet_name": "flux1-dev.safetensors", "weight_dtype": "default"}, 0),
            Node(15, "DualCLIPLoader", clip, 0),
            Node(16, "VAELoader", {"vae_name": "ae.safetensors"}, 0),
            Node(4, "EmptySD3LatentImage", {"width": 1024, "height": 1024, "batch_size": 1}, 0),
            _text(3, "a lighthouse on a cliff at dusk, oil painting", "Prompt", link(15)),
            Node(2, "FluxGuidance", {"conditioning": link(3), "guidance": 3.5}, 1, width=380),
            _planner(2, **own),
            Node(12, "RandomNoise", {"noise_seed": SEED}, 3),
            Node(13, "KSamplerSelect", {"sampler_name": own["sampler_name"]}, 3),
            Node(14, "BasicGuider", {"model": link(1), "conditioning": link(2)}, 3),
            _custom_sampler(),
            *_decode_and_save(6, 5, vae=link(16)),
        ),
    )


def _calibrate_your_model() -> Graph:
    most = 20
    inputs = {
        "model": link(1),
        "clip": link(1, 1),
        "vae": link(1, 2),
        "negative": link(3),
        "latent_image": link(4),
        **SETTING,
        "max_steps": most,
        "thoroughness": "quick",
        "prompts": "built-in",
        "prompt_text": "",
        "name": "",
        "width": 64,
        "height": 64,
        "keep_text": False,
    }
    return Graph(
        "calibrate_your_model",
        "**Calibrate** makes a planner for the model in this graph. Choose yours in **Load Checkpoint**, set the size "
        "of the empty latent, and set sampler, scheduler, cfg and max_steps as you render with them, on both nodes."
        "\n\nPress **Run**: 28 prompts are rendered, which takes about as long as 100 pictures. Cancel whenever you "
        "like; what was measured is kept, and the next run goes on.\n\nThen press **Run** again: **Adaptive KSampler** "
        "finds the new planner by itself. As it stands, this graph calibrates Tiny Scenes, which takes a few minutes "
        "on a processor.",
        (
            *_model_and_prompts(),
            Node(5, "BudgetFusion_Calibrate", inputs, 2, width=400),
            _adaptive(3, max_steps=most),
            *_decode_and_save(6, 4),
        ),
    )


def _blind_test() -> Graph:
    inputs = {"planned": link(8), "full": link(10), "plan": link(5), "quality": 0.9, "label": ""}
    return Graph(
        "blind_test",
        "Can you see which picture took all 50 steps? Press **Run**: **Blind Test** shows pairs of the same seed, "
        "unlabelled. Press **1** or **2** for the better picture, or the space bar where you see no difference.\n\n"
        "Queue as often as you like; the seed changes by itself. Then move **quality** on Budget Planner and go on: "
        "after twenty choices at two or more values the node says at which quality your eyes stop telling.",
        (
            _loader(),
            _empty(64, pictures=4),
            Node(30, "PrimitiveInt", {"value": HELLO_SEED}, 0, "Seed", after="randomize"),
            _text(2, PROMPT, "Prompt"),
            _text(3, NEGATIVE, "Negative prompt"),
            _planner(2),
            _adaptive(3, plan=link(5), seed=link(30)),
            _ksampler(4, 7, 50, "KSampler, all 50 steps", link(30)),
            Node(8, "VAEDecode", {"samples": link(6), "vae": link(1, 2)}, 4, width=200),
            Node(10, "VAEDecode", {"samples": link(7), "vae": link(1, 2)}, 4, width=200),
            Node(12, "BudgetFusion_BlindTest", inputs, 5, width=640),
        ),
    )


# --------------------------------------------------------------------------------------------------- the blueprint

BOUNDARY_IN, BOUNDARY_OUT = -10, -20
"""The page's ids of a subgraph's own input and output node."""
BLUEPRINT_ID = "8f6a1d6e-4f0b-4c52-9a55-6d0f2b1c7e01"
BLUEPRINT_INPUTS = ("model", "positive", "negative", "latent_image", "vae", "quality", "max_steps", "seed")
"""What the subgraph's node shows: sockets, then the widgets that an artist turns."""


def blueprint_nodes() -> tuple[Node, ...]:
    """Planner, sampler and decoder. A link from BOUNDARY_IN counts the inputs in the order of BLUEPRINT_INPUTS."""

    def given(name: str) -> list[Any]:
        return link(BOUNDARY_IN, BLUEPRINT_INPUTS.index(name))

    shared: dict[str, Any] = {
        name: given(name) for name in ("model", "positive", "latent_image", "quality", "max_steps")
    }
    return (
        _planner(0, **shared),
        _adaptive(1, 6, plan=link(5), negative=given("negative"), seed=given("seed"), **shared),
        Node(8, "VAEDecode", {"samples": link(6), "vae": given("vae")}, 2, width=200),
    )


def to_blueprint(nodes: Sequence[Node], info: Mapping[str, Any]) -> dict[str, Any]:
    """The subgraph in the page's format: one node, and its definition."""
    adaptive = {name: (kind, options) for name, kind, options in _inputs(info[nodes[1].type])}
    kinds = ["VAE" if name == "vae" else _type_name(adaptive[name][0]) for name in BLUEPRINT_INPUTS]
    results = (("IMAGE", "IMAGE", 8, 0), ("steps", "INT", 6, 1), ("receipt", "STRING", 6, 2))
    known = {BOUNDARY_IN: kinds, **_output_kinds(nodes, info)}
    links: list[list[Any]] = []
    inside = [_page_node(node, index, info[node.type], links, known) for index, node in enumerate(nodes)]
    _place(inside, [node.column for node in nodes])
    by_id = {node["id"]: node for node in inside}
    for slot, (_, kind, source, output) in enumerate(results):
        links.append([len(links) + 1, source, output, BOUNDARY_OUT, slot, kind])
    for number, source, output, *_ in links:
        if source in by_id:
            made = by_id[source]["outputs"][output]
            made["links"] = [*(made["links"] or []), number]
    right = max(node["pos"][0] + node["size"][0] for node in inside)
    widgets = [name for name in BLUEPRINT_INPUTS if name in adaptive and _is_widget(*adaptive[name])]
    values = [nodes[1].inputs[name] for name in widgets]
    values = [
        adaptive[name][1].get("default") if isinstance(v, list) else v for name, v in zip(widgets, values, strict=True)
    ]
    outer = {
        "id": 1,
        "type": BLUEPRINT_ID,
        "pos": [0, 0],
        "size": [340, 50 + LINE * len(BLUEPRINT_INPUTS)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [
            {"name": name, "type": kind, "link": None, **({"widget": {"name": name}} if name in widgets else {})}
            for name, kind in zip(BLUEPRINT_INPUTS, kinds, strict=True)
        ],
        "outputs": [{"name": name, "type": kind, "links": None} for name, kind, *_ in results],
        "title": BLUEPRINT,
        "properties": {"proxyWidgets": [["-1", name] for name in widgets]},
        "widgets_values": values,
    }
    definition = {
        "id": BLUEPRINT_ID,
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": max(by_id), "lastLinkId": len(links), "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": BLUEPRINT,
        "inputNode": {"id": BOUNDARY_IN, "bounding": [-220, 0, 140, 40 + 20 * len(kinds)]},
        "outputNode": {"id": BOUNDARY_OUT, "bounding": [right + 80, 0, 120, 40 + 20 * len(results)]},
        "inputs": [
            _boundary(
                name,
                kind,
                slot,
                "in",
                [n for n, source, output, *_ in links if (source, output) == (BOUNDARY_IN, slot)],
            )
            for slot, (name, kind) in enumerate(zip(BLUEPRINT_INPUTS, kinds, strict=True))
        ],
        "outputs": [
            _boundary(
                name,
                kind,
                slot,
                "out",
                [n for n, *_, target, at, _kind in links if (target, at) == (BOUNDARY_OUT, slot)],
            )
            for slot, (name, kind, *_) in enumerate(results)
        ],
        "widgets": [],
        "nodes": inside,
        "groups": [],
        "links": [
            dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), one, strict=True))
            for one in links
        ],
        "extra": {"workflowRendererVersion": "LG"},
        "category": "BudgetFusion",
        "description": "Plans the number of steps from the prompt, renders with it, and decodes the picture.",
    }
    return {
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [outer],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [definition]},
        "extra": {},
    }


def _boundary(name: str, kind: str, slot: int, side: str, links: list[int]) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid5(uuid.UUID(BLUEPRINT_ID), f"{side} {name}")),
        "name": name,
        "type": kind,
        "linkIds": links,
        "pos": [-100, 20 + 20 * slot],
    }


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
    nodes = tuple(replace(n, title=n.title or info[n.type]["display_name"] or n.type) for n in graph.nodes)
    return Graph(graph.name, graph.note, nodes)


def _page_node(
    node: Node, order: int, info: Mapping[str, Any], links: list[list[Any]], kinds: Mapping[int, Sequence[str]]
) -> dict[str, Any]:
    declared = [shown for entry in _inputs(info) for shown in _grown(node, *entry)]
    unknown = set(node.inputs) - {name for name, _, _ in declared}
    if unknown:
        raise ValueError(f"{node.type} has no inputs {sorted(unknown)}")
    # the page lists plain sockets first, then the sockets of widgets
    ordered = sorted(declared, key=lambda entry: _is_widget(entry[1], entry[2]))
    slots = [_slot(node, index, *entry, links, kinds) for index, entry in enumerate(ordered)]
    outputs = [
        {"name": name, "type": kind, "links": None}
        for name, kind in zip(info["output_name"], kinds[node.id], strict=True)
    ]
    values = _widget_values(node, declared)
    rows = max(sum("widget" not in slot for slot in slots), len(outputs)) + len(values)
    made: dict[str, Any] = {
        "id": node.id,
        "type": node.type,
        "pos": [0, 0],
        "size": [node.width, 20 + LINE * rows + ROOM.get(node.type, 0)],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": slots,
        "outputs": outputs,
        "properties": {"Node name for S&R": node.type},
    }
    if node.title not in ("", info["display_name"], node.type):
        made["title"] = node.title
    if values:
        made["widgets_values"] = values
    return made


def _grown(node: Node, name: str, kind: Any, options: Mapping[str, Any]) -> list[tuple[str, Any, Mapping[str, Any]]]:
    """An input as the page shows it: one that grows has a slot for each link of the node, and a free one."""
    if kind != AUTOGROW:
        return [(name, kind, options)]
    prefix = f"{name}.{options['template']['prefix']}"
    taken = sum(key.startswith(prefix) for key in node.inputs)
    return [(f"{prefix}{i}", MATCHED, {"label": f"{options['template']['prefix']}{i}"}) for i in range(taken + 1)]


def _slot(
    node: Node,
    index: int,
    name: str,
    kind: Any,
    options: Mapping[str, Any],
    links: list[list[Any]],
    kinds: Mapping[int, Sequence[str]],
) -> dict[str, Any]:
    slot: dict[str, Any] = {"name": name, "type": _type_name(kind), "link": None}
    if "label" in options:
        slot["label"] = options["label"]
    if _is_widget(kind, options):
        slot["widget"] = {"name": name}
    value = node.inputs.get(name)
    if isinstance(value, list):
        source, output = int(value[0]), value[1]
        if kind == MATCHED:
            slot["type"] = kinds[source][output]
        if slot["type"] != kinds[source][output]:
            raise ValueError(f"{node.type}.{name} takes {slot['type']}, not {kinds[source][output]}")
        slot["link"] = len(links) + 1
        links.append([slot["link"], source, output, node.id, index, slot["type"]])
    return slot


def _widget_values(node: Node, declared: Sequence[tuple[str, Any, Mapping[str, Any]]]) -> list[Any]:
    values: list[Any] = []
    for name, kind, options in declared:
        if not _is_widget(kind, options):
            continue
        value = node.inputs.get(name, options.get("default"))
        values.append(options.get("default") if isinstance(value, list) else value)  # a linked widget keeps its own
        if options.get("control_after_generate"):
            values.append(node.after)
    return values


def _note(number: int, order: int, graph: Graph, y: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": NOTE,
        "pos": [0, y],
        "size": [300, 320],
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
