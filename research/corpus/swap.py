"""Our nodes in the place of the stock ones, as an artist puts them there."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from budgetfusion_nodes.command_line.page_format import Info, widget_values

from .graph import chosen, first_input, is_link, nearest, upstream
from .package import SAMPLERS, Prompt

ADAPTIVE, PLANNER = "BudgetFusion_AdaptiveKSampler", "BudgetFusion_BudgetPlanner"
SCHEDULER = "BasicScheduler"
DEFAULTS = {"sampler_name": "euler", "scheduler": "simple", "cfg": 1.0, "max_steps": 20}
"""What an artist sets on the planner where the graph has no single value of its own."""


@dataclass(frozen=True)
class Swapped:
    """A graph with our nodes in it."""

    prompt: Prompt
    ours: Mapping[str, str]
    """Id of each of our nodes -> the stock sampler class that it serves."""


def swap(prompt: Mapping[str, Any], info: Info, *, sigmas: bool = False) -> Swapped:
    """Adaptive KSampler for KSampler; the planner's steps into KSamplerAdvanced and BasicScheduler; its sigmas into
    SamplerCustom and SamplerCustomAdvanced where they have no BasicScheduler, and everywhere with `sigmas`.

    `info`: the host's definitions; what the graph does not say has its default.
    """
    made: Prompt = copy.deepcopy(dict(prompt))
    ours: dict[str, str] = {}
    for number in _in_order(prompt):
        node = prompt[number]
        kind = node["class_type"]
        if kind == "KSampler":
            made[number] = _adaptive(node, info)
            ours[number] = kind
        else:
            planner = f"{number}-plan"
            made[planner] = {
                "class_type": PLANNER,
                "inputs": {**defaults(info[PLANNER]), **_planner_inputs(prompt, node)},
            }
            ours[planner] = kind
            _connect(made, number, planner, sigmas=sigmas)
    return Swapped(made, ours)


def _in_order(prompt: Mapping[str, Any]) -> list[str]:
    """The samplers, each after those whose latent it takes."""
    found = [number for number, node in prompt.items() if node["class_type"] in SAMPLERS]
    behind = {number: {before for before, _ in upstream(prompt, [number, 0])} & set(found) for number in found}
    return sorted(found, key=lambda number: len(behind[number]))


def _adaptive(node: Mapping[str, Any], info: Info) -> dict[str, Any]:
    inputs = dict(node["inputs"])
    if "steps" in inputs:
        inputs["max_steps"] = inputs.pop("steps")
    return {"class_type": ADAPTIVE, "inputs": {**defaults(info[ADAPTIVE]), **inputs}}


def defaults(definition: Mapping[str, Any]) -> dict[str, Any]:
    """What the fields of a new node hold."""
    return widget_values({"widgets_values": []}, definition)


def _planner_inputs(prompt: Mapping[str, Any], node: Mapping[str, Any]) -> dict[str, Any]:
    """model, positive and setting for a planner: from the sampler node, its guider, its scheduler, its sampler."""
    inputs = node["inputs"]
    guider = nearest(prompt, inputs.get("guider"), lambda one: "model" in one["inputs"])
    scheduler = scheduler_of(prompt, node)
    sampler = nearest(prompt, inputs.get("sampler"), lambda one: "sampler_name" in one["inputs"])
    around = [one for one in (node, guider and guider[1], scheduler and scheduler[1], sampler and sampler[1]) if one]

    def find(*names: str) -> Any:
        return next((value for one in around if (value := first_input(one, *names)) is not None), None)

    found = {
        "model": find("model"),
        "positive": find("positive", "conditioning", "cond1", "positive_1", "video_positive"),
        "sampler_name": find("sampler_name"),
        "scheduler": find("scheduler"),
        "cfg": find("cfg", "cfg_conds", "video_cfg"),
        "max_steps": find("steps"),
        "latent_image": find("latent_image"),
    }
    return {**DEFAULTS, **{name: value for name, value in found.items() if value is not None}}


def scheduler_of(prompt: Mapping[str, Any], node: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """The node that makes the sigmas of a custom sampler: behind SplitSigmas and its kin."""
    found = None
    for _ in range(len(prompt)):
        value = chosen(prompt, node["inputs"].get("sigmas"))
        if not is_link(value) or value[0] not in prompt:
            break
        found, node = (value[0], prompt[value[0]]), prompt[value[0]]
    return found


def _connect(made: Prompt, sampler: str, planner: str, *, sigmas: bool) -> None:
    """Two passes may share one schedule: the plan of the first one decides, and the second connects nothing."""
    node = made[sampler]
    if node["class_type"] == "KSamplerAdvanced":
        node["inputs"]["steps"] = [planner, 1]
        return
    scheduler = scheduler_of(made, node)
    if scheduler is not None and scheduler[1]["class_type"] == SCHEDULER and not sigmas:
        if not _is_planned(scheduler[1]["inputs"].get("steps")):
            made[scheduler[0]]["inputs"]["steps"] = [planner, 1]
        return
    taker = node  # what stands between, such as SplitSigmas, goes on doing its work
    while is_link(value := chosen(made, taker["inputs"].get("sigmas"))) and "sigmas" in made[value[0]]["inputs"]:
        if not is_link(made[value[0]]["inputs"]["sigmas"]):
            break
        taker = made[value[0]]
    if not _is_planned(taker["inputs"].get("sigmas")):
        taker["inputs"]["sigmas"] = [planner, 2]


def _is_planned(value: Any) -> bool:
    return is_link(value) and value[0].endswith("-plan")
