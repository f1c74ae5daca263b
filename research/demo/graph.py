"""The demo's graph: the shipped example graph, with a full-step render, a probe and a plan of the stock schedule added.

prompt -> Budget Planner -> Adaptive KSampler -> decode -> save
                     |                                       |
                     |      Adaptive KSampler at T steps -> decode -> save
                     +------------------------> Probe (adaptive against full-step, on the planner's scale)
prompt -> Budget Planner, stock schedule: what it would have taken
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from research.shipped_models import EPS, ShippedModel

from .errors import DemoError

Graph = dict[str, dict[str, Any]]

BASE = Path(__file__).resolve().parents[2] / "workflows" / "api" / "planner_into_adaptive_ksampler.json"
PLANNER, ADAPTIVE, PROBE = (
    f"BudgetFusion_{name}" for name in ("BudgetPlanner", "AdaptiveKSampler", "PerceptualMetricProbe")
)
CHECKPOINT_LOADER = "CheckpointLoaderSimple"
_SAME_INPUTS = (
    *("model", "seed", "cfg", "sampler_name", "scheduler", "positive", "negative", "latent_image", "denoise"),
)
"""What the full-step render shares with the adaptive one."""


@dataclass(frozen=True)
class DemoGraph:
    """A graph in API format, and the ids of the nodes whose answers the demo reads."""

    nodes: Graph
    planner: str
    adaptive: str
    full: str
    probe: str
    save_adaptive: str
    save_full: str
    stock: str
    target_steps: int

    @property
    def samplers(self) -> tuple[str, str]:
        return self.adaptive, self.full


def load_base(path: Path = BASE, model: ShippedModel = EPS) -> Graph:
    """The shipped graph, with `model`. Raises DemoError where it is missing or unreadable."""
    try:
        return with_model(json.loads(path.read_text(encoding="utf-8")), model)
    except (OSError, ValueError) as error:
        raise DemoError(
            f"The example graph {path.name} cannot be read ({error}). Restore it from the repository."
        ) from error


def with_model(base: Graph, model: ShippedModel) -> Graph:
    """The graph with another model in place of its checkpoint: loaders, and the setting of planner and sampler."""
    nodes = copy.deepcopy(base)
    old = _only(nodes, CHECKPOINT_LOADER)
    del nodes[old]
    names = [f"load_{number}" for number in range(len(model.loaders))]
    for name, (class_type, inputs) in zip(names, model.loaders.items(), strict=True):
        nodes[name] = {"class_type": class_type, "inputs": dict(inputs)}
    # three loaders give one output each, a checkpoint's loader all three
    sources = [[name, 0] for name in names] if len(names) == 3 else [[names[0], output] for output in range(3)]
    for node in nodes.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and value[0] == old:
                node["inputs"][name] = sources[value[1]]
        if "sampler_name" in node["inputs"]:
            node["inputs"].update(model.setting)
    return nodes


def build(base: Graph, prompt: str, seed: int, quality: float) -> DemoGraph:
    """Fills in the prompt, and adds the full-step render and the probe."""
    nodes = copy.deepcopy(base)
    planner, adaptive = _only(nodes, PLANNER), _only(nodes, ADAPTIVE)
    decode, save = _only(nodes, "VAEDecode"), _only(nodes, "SaveImage")
    nodes[nodes[adaptive]["inputs"]["positive"][0]]["inputs"]["text"] = prompt
    nodes[planner]["inputs"]["quality"] = quality
    nodes[adaptive]["inputs"]["seed"] = seed
    target = int(nodes[planner]["inputs"]["max_steps"])

    shared = {name: nodes[adaptive]["inputs"][name] for name in _SAME_INPUTS}
    # along the plan's schedule too: a nested plan guarantees nearness to the nested picture
    limits = {"quality": quality, "min_steps": target, "max_steps": target}
    nodes["full"] = {"class_type": ADAPTIVE, "inputs": {**shared, **limits}}
    nodes["stock"] = {"class_type": PLANNER, "inputs": {**nodes[planner]["inputs"], "schedule": "stock"}}
    nodes["full_decode"] = {
        "class_type": "VAEDecode",
        "inputs": {**nodes[decode]["inputs"], "samples": ["full", 0]},
    }
    nodes["full_save"] = {
        "class_type": "SaveImage",
        "inputs": {"images": ["full_decode", 0], "filename_prefix": "BudgetFusion_full"},
    }
    nodes["probe"] = {
        "class_type": PROBE,
        "inputs": {
            "images": [decode, 0],
            "reference": ["full_decode", 0],
            "step_counts": "",
            "d_sim_backend": "auto",
            "plan": [planner, 0],
        },
    }
    return DemoGraph(nodes, planner, adaptive, "full", "probe", save, "full_save", "stock", target)


def _only(nodes: Graph, class_type: str) -> str:
    found = [name for name, node in nodes.items() if node["class_type"] == class_type]
    if len(found) != 1:
        raise DemoError(
            f"The example graph {BASE.name} holds {len(found)} nodes of type {class_type}, where the demo needs one. "
            "Restore it from the repository."
        )
    return found[0]
