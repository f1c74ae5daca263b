"""A graph with a Calibrate node: around a checkpoint, or put into an artist's own graph beside its sampler."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from .page_format import Info, to_prompt

CALIBRATE = "BudgetFusion_Calibrate"
NODE = "budgetfusion_calibrate"
"""Id of the node that is put in."""
KSAMPLERS = ("KSampler", "BudgetFusion_AdaptiveKSampler", "KSamplerAdvanced")
CUSTOM = ("SamplerCustomAdvanced", "SamplerCustom")
ENCODERS = ("CLIPTextEncode", "TextEncode")

Graph = dict[str, dict[str, Any]]


def read_graph(path: Path, definitions: Callable[[], Info]) -> Graph:
    """A graph in API format, from a file in that format or in the page's own. InputError for anything else.

    definitions: what the host's /object_info answers; asked for a file in the page's format only, where values of
    widgets lie without names.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--workflow: {path.name} cannot be read as JSON ({error}).") from error
    if isinstance(content, dict) and "nodes" in content and "links" in content:
        content = _converted(path, content, definitions())
    nodes = content.values() if isinstance(content, dict) else ()
    if not nodes or not all(isinstance(n, dict) and isinstance(n.get("inputs"), dict) for n in nodes):
        raise InputError(f"--workflow: {path.name} is no ComfyUI graph. Save one with Workflow > Export (API).")
    return content


def _converted(path: Path, page: Mapping[str, Any], info: Info) -> Graph:
    try:
        return to_prompt(page, info)
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError, RecursionError) as error:
        raise InputError(
            f"--workflow: {path.name} is in the page's format and cannot be read ({type(error).__name__}: {error}). "
            "Open it in ComfyUI, save it with Workflow > Export (API), and give that file."
        ) from error


def around_checkpoint(
    checkpoint: str, negative: str, sampler: str, scheduler: str, cfg: float, steps: int, width: int, height: int
) -> Graph:
    """checkpoint: a name in models/checkpoints."""
    return {
        "1": _node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "2": _node("CLIPTextEncode", text=negative, clip=["1", 1]),
        NODE: _node(
            CALIBRATE,
            model=["1", 0],
            clip=["1", 1],
            vae=["1", 2],
            negative=["2", 0],
            sampler_name=sampler,
            scheduler=scheduler,
            cfg=cfg,
            max_steps=steps,
            width=width,
            height=height,
            **DEFAULTS,
        ),
    }


DEFAULTS: Mapping[str, Any] = {"thoroughness": "quick", "prompts": "built-in", "prompt_text": "", "name": ""}


def with_calibrate(graph: Graph, steps: int | None = None) -> tuple[Graph, str]:
    """(the graph's nodes that a Calibrate node needs, its id). An own Calibrate node is taken as it is; else one is
    put beside the sampler, with everything that the sampler is given. steps: in place of the sampler's own."""
    own = [key for key, node in graph.items() if node.get("class_type") == CALIBRATE]
    if len(own) > 1:
        raise InputError("--workflow: the graph has several Calibrate nodes. Keep one.")
    if own:
        return _needed(graph, own[0]), own[0]
    key, found = _the_sampler(graph)
    found["max_steps"] = steps or found["max_steps"]
    if not isinstance(found["max_steps"], int):
        raise InputError("--workflow: the sampler's steps come from another node. Give --steps.")
    found |= {"clip": _clip_behind(graph, found["positive"]), "vae": _vae_behind(graph, key)}
    return _needed({**graph, NODE: _node(CALIBRATE, **DEFAULTS, width=512, height=512, **found)}, NODE), NODE


def _the_sampler(graph: Graph) -> tuple[str, dict[str, Any]]:
    """(id, what it is given) of the graph's sampler; of several that differ in steps alone, the one with most."""
    samplers = [key for key, node in graph.items() if node.get("class_type") in (*KSAMPLERS, *CUSTOM)]
    given = {key: _of_sampler(graph, key) for key in samplers}
    settings = [{name: one[name] for name in ("model", "sampler_name", "scheduler", "cfg")} for one in given.values()]
    if not samplers or any(setting != settings[0] for setting in settings):
        raise InputError(
            f"--workflow: the graph has {len(samplers)} samplers that are known and set differently (KSampler, "
            "SamplerCustomAdvanced). Add a Calibrate node to it, connected like the sampler that is meant."
        )
    return max(given.items(), key=lambda item: item[1]["max_steps"] if isinstance(item[1]["max_steps"], int) else 0)


def _of_sampler(graph: Graph, key: str) -> dict[str, Any]:
    """model, positive, negative, latent_image, sampler_name, scheduler, cfg, max_steps of a sampler node."""
    node = graph[key]
    inputs = node["inputs"]
    if node["class_type"] in KSAMPLERS:
        steps = inputs.get("steps", inputs.get("max_steps"))
        names = ("model", "positive", "negative", "latent_image", "sampler_name", "scheduler", "cfg")
        return {**{name: _given(inputs, name, key) for name in names}, "max_steps": steps}
    sampler, sigmas = (_behind(graph, inputs, name, key) for name in ("sampler", "sigmas"))
    guider = _behind(graph, inputs, "guider", key) if "guider" in inputs else inputs
    positive = guider.get("positive", guider.get("conditioning"))
    return {
        "model": _given(guider, "model", key),
        "positive": positive,
        "negative": guider.get("negative", positive),  # a guider without cfg never looks at it
        "latent_image": _given(inputs, "latent_image", key),
        "sampler_name": _given(sampler, "sampler_name", key),
        "scheduler": _given(sigmas, "scheduler", key),
        "cfg": guider.get("cfg", 1.0),
        "max_steps": sigmas.get("steps", sigmas.get("max_steps")),
    }


def _given(inputs: Mapping[str, Any], name: str, key: str) -> Any:
    if name not in inputs:
        raise InputError(f"--workflow: the sampler {key} has no {name}. Add a Calibrate node to the graph yourself.")
    return inputs[name]


def _behind(graph: Graph, inputs: Mapping[str, Any], name: str, key: str) -> Mapping[str, Any]:
    """The inputs of the node that is linked to the input `name`."""
    link = _given(inputs, name, key)
    if not isinstance(link, list) or str(link[0]) not in graph:
        raise InputError(f"--workflow: {name} of the sampler {key} is not connected.")
    return graph[str(link[0])]["inputs"]


def _clip_behind(graph: Graph, link: Any) -> Any:
    """The link to the CLIP of the text encoder that a conditioning comes from."""
    for node in _upstream(graph, link):
        if any(kind in node["class_type"] for kind in ENCODERS) and isinstance(node["inputs"].get("clip"), list):
            return node["inputs"]["clip"]
    raise InputError("--workflow: no text encoder leads to the sampler. Add a Calibrate node to the graph yourself.")


def _vae_behind(graph: Graph, sampler: str) -> Any:
    """The link to the VAE that decodes what the sampler gives."""
    for node in graph.values():
        vae, samples = node["inputs"].get("vae"), node["inputs"].get("samples")
        if _is_link(vae) and _is_link(samples) and any(n is graph[sampler] for n in _upstream(graph, samples)):
            return vae
    raise InputError("--workflow: no VAE Decode follows the sampler. Add a Calibrate node to the graph yourself.")


def _upstream(graph: Graph, link: Any) -> Iterator[dict[str, Any]]:
    """The node behind a link and all behind that one, the nearest first."""
    waiting, seen = [link], set()
    while waiting:
        key = str(waiting.pop(0)[0])
        if key in graph and key not in seen:
            seen.add(key)
            yield graph[key]
            waiting += [value for value in graph[key]["inputs"].values() if _is_link(value)]


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], int)


def _needed(graph: Graph, key: str) -> Graph:
    """The node and all behind it, so that nothing else of the graph is rendered."""
    wanted = [id(node) for node in _upstream(graph, [key, 0])]
    return {name: node for name, node in graph.items() if id(node) in wanted}


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}
