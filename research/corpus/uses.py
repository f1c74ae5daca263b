"""What each sampler node of a graph is set to: model file, LoRAs, sampler, schedule, cfg and steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .graph import chosen, constant, first_input, is_link, nearest, upstream
from .package import SAMPLERS
from .swap import SCHEDULER, scheduler_of

MODEL_FILES = ("unet_name", "ckpt_name", "gguf_name")
POSITIVE = ("positive", "conditioning", "cond1", "positive_1", "video_positive")
CFG = ("cfg", "cfg_conds", "video_cfg")


@dataclass(frozen=True)
class Use:
    """One sampler node. What the graph computes, and does not say as a number, is None."""

    graph: str
    node: str
    sampler_class: str
    model_file: str
    """The file that the sampled model was loaded from; empty where no loader is behind it."""
    loras: tuple[str, ...]
    """On the way from the loader to the sampler, as the graph's switches stand."""
    sampler_name: str
    schedule: str
    """A scheduler of the host's own list, or the node type that makes the sigmas."""
    hand_set: bool
    """Whether the sigmas come from another node than Basic Scheduler."""
    cfg: float | None
    """1 where the guider has none."""
    steps: int | None
    part: str
    """'' for a whole run; which of the steps, or which denoise, for a part of one."""


def uses_of(name: str, prompt: Mapping[str, Any]) -> Iterator[Use]:
    """Every active sampler node of an API prompt."""
    for number, node in prompt.items():
        if node["class_type"] in SAMPLERS:
            yield _use(name, prompt, number, node)


def _use(name: str, prompt: Mapping[str, Any], number: str, node: Mapping[str, Any]) -> Use:
    around = _around(prompt, node)
    scheduler = scheduler_of(prompt, node)
    made_by = scheduler[1]["class_type"] if scheduler else ""
    names = _model(prompt, next((one for one in around if "model" in one["inputs"]), None))
    return Use(
        graph=name,
        node=number,
        sampler_class=node["class_type"],
        model_file=names[0],
        loras=names[1],
        sampler_name=_sampler(prompt, node, around),
        schedule=made_by if made_by not in ("", SCHEDULER) else str(_value(prompt, around, "scheduler") or "computed"),
        hand_set=made_by not in ("", SCHEDULER),
        cfg=_cfg(prompt, node, around),
        steps=_steps(prompt, scheduler[1] if scheduler else node),
        part=_part(prompt, node, around),
    )


def _around(prompt: Mapping[str, Any], node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The sampler node and the nodes that hold parts of its setting."""
    guider = nearest(prompt, node["inputs"].get("guider"), lambda one: "model" in one["inputs"])
    sampler = nearest(prompt, node["inputs"].get("sampler"), lambda one: True)
    scheduler = scheduler_of(prompt, node)
    return [node, *(found[1] for found in (guider, scheduler, sampler) if found)]


def _value(prompt: Mapping[str, Any], around: list[Mapping[str, Any]], *names: str) -> Any:
    values = (first_input(one, *names) for one in around)
    return constant(prompt, next((value for value in values if value is not None), None))


def _model(prompt: Mapping[str, Any], node: Mapping[str, Any] | None) -> tuple[str, tuple[str, ...]]:
    """(file, LoRAs) along the chain of model links."""
    loras: list[str] = []
    value = None if node is None else node["inputs"]["model"]
    for _ in range(len(prompt)):
        value = chosen(prompt, value)
        if not is_link(value) or value[0] not in prompt:
            break
        behind = prompt[value[0]]
        inputs = behind["inputs"]
        file = next((str(constant(prompt, inputs[key])) for key in MODEL_FILES if key in inputs), None)
        if file is not None:
            return file, tuple(loras)
        if inputs.get("lora_name") and constant(prompt, inputs.get("strength_model", 1.0)) != 0:
            loras.append(str(constant(prompt, inputs["lora_name"])))
        value = first_input(behind, "model", "model1", "input", "on_false")
    return "", tuple(loras)


def _sampler(prompt: Mapping[str, Any], node: Mapping[str, Any], around: list[Mapping[str, Any]]) -> str:
    """The name in the host's list; the node type of a sampler that has none there."""
    if "sampler" not in node["inputs"]:
        return str(_value(prompt, [node], "sampler_name") or "computed")
    behind = list(upstream(prompt, node["inputs"]["sampler"]))
    named = next((one for _, one in behind if "sampler_name" in one["inputs"]), None)
    if named is not None:
        return str(_value(prompt, [named], "sampler_name") or "computed")
    return behind[0][1]["class_type"] if behind else "computed"


def _cfg(prompt: Mapping[str, Any], node: Mapping[str, Any], around: list[Mapping[str, Any]]) -> float | None:
    if all(first_input(one, *CFG) is None for one in around):
        return 1.0 if "guider" in node["inputs"] else None
    found = _value(prompt, around, *CFG)
    return float(found) if isinstance(found, int | float) else None


def _steps(prompt: Mapping[str, Any], node: Mapping[str, Any]) -> int | None:
    if node["class_type"] == "ManualSigmas":
        return len(str(node["inputs"].get("sigmas", "")).replace(",", " ").split()) - 1
    found = constant(prompt, node["inputs"].get("steps"))
    return int(found) if isinstance(found, int | float) else None


def _part(prompt: Mapping[str, Any], node: Mapping[str, Any], around: list[Mapping[str, Any]]) -> str:
    if node["class_type"] == "KSamplerAdvanced":
        start, end = (constant(prompt, node["inputs"].get(name)) for name in ("start_at_step", "end_at_step"))
        total = constant(prompt, node["inputs"].get("steps"))
        if start or (isinstance(end, int) and isinstance(total, int) and end < total) or end is None:
            return "second part" if start else "first part"
        return ""
    if _is_split(prompt, node):
        return "first part" if _is_split(prompt, node) == 1 else "second part"
    denoise = _value(prompt, around, "denoise")
    return f"denoise {denoise:g}" if isinstance(denoise, int | float) and denoise < 1 else ""


def _is_split(prompt: Mapping[str, Any], node: Mapping[str, Any]) -> int:
    """1 or 2 where the sigmas are an output of SplitSigmas, else 0."""
    value = chosen(prompt, node["inputs"].get("sigmas"))
    if is_link(value) and prompt[value[0]]["class_type"].startswith("SplitSigmas"):
        return 1 + value[1]
    return 0
