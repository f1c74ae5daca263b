"""What to call a MODEL: its file, where the host or the graph tells it, else its architecture."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

FILES = (".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pth", ".bin", ".pkl", ".nf4")
OTHER_FILES = ("lora", "vae", "clip", "text", "control", "upscale", "ipadapter", "audio")
"""An input whose name has one of these names no diffusion model."""
FIRST = ("model", "model1", "unet", "diffusion_model", "base_model")
"""Inputs by which a node takes the MODEL that it hands on."""

_from_graph: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
"""Inner model -> its file's name, found in a graph; loaders that start from a state dict (GGUF) remember none."""


def model_name(model: Any) -> str:
    """The file's name without folder and ending, else the class of the architecture."""
    inner = getattr(model, "model", model)
    return _remembered(model) or _learned(inner) or type(inner).__name__


def learn_name(model: Any, prompt: Any, node_id: Any) -> None:
    """Keeps the file's name that the graph's loader node shows, for a model whose loader did not leave it on the MODEL.

    `prompt` is the graph in API form and `node_id` the node that takes the MODEL at its input `model`.
    """
    if not _remembered(model) and isinstance(prompt, Mapping):
        name = _upstream(prompt, str(node_id), set())
        if name:
            with suppress(TypeError):  # of another pack, and of a class that cannot be referred to weakly
                _from_graph[model.model] = stem(name)


def _learned(inner: Any) -> str:
    with suppress(TypeError):
        return _from_graph.get(inner, "")
    return ""


def stem(path: str) -> str:
    """File name without folder and ending; paths of Windows too."""
    return PurePosixPath(PureWindowsPath(path).as_posix()).stem


def _remembered(model: Any) -> str:
    """The path among the arguments of the loader that the host can call again: (loader, arguments[, index])."""
    origin = getattr(model, "cached_patcher_init", None)
    if not isinstance(origin, tuple) or len(origin) < 2:
        return ""
    return next((stem(text) for text in _texts(origin[1]) if text.lower().endswith(FILES)), "")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, str) or hasattr(value, "__fspath__"):
        yield str(value)


def _upstream(prompt: Mapping[str, Any], node_id: str, seen: set[str]) -> str:
    """The model file of the first loader against the direction of the links; empty if there is none."""
    node = prompt.get(node_id)
    inputs = node.get("inputs") if isinstance(node, Mapping) else None
    if node_id in seen or not isinstance(inputs, Mapping):
        return ""
    seen.add(node_id)
    links = {key: str(value[0]) for key, value in inputs.items() if isinstance(value, list) and len(value) == 2}
    for key in FIRST:
        if key in links:
            return _upstream(prompt, links[key], seen)
    return _file(inputs) or next(
        (name for name in (_upstream(prompt, link, seen) for link in links.values()) if name), ""
    )


def _file(inputs: Mapping[str, Any]) -> str:
    for key, value in inputs.items():
        if isinstance(value, str) and value.lower().endswith(FILES) and not any(o in key.lower() for o in OTHER_FILES):
            return value
    return ""
