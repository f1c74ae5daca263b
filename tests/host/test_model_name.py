"""What a model is called: by the file that the host remembers, else by the loader in the graph, else honestly."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from budgetfusion_nodes.host.model_name import learn_name, model_name


class Flux(torch.nn.Module):
    """An inner model."""


def model(origin: Any = None) -> Any:
    return SimpleNamespace(model=Flux(), cached_patcher_init=origin)


@pytest.mark.parametrize(
    ("origin", "name"),
    [
        ((max, ("/models/unet/flux1-dev.safetensors", {})), "flux1-dev"),
        ((max, ("/models/a.ckpt", False, False, False, "/models/embeddings", True, {}, {}), 0), "a"),
        ((max, (["/models/first.safetensors", "/models/second.safetensors"], None)), "first"),
        ((max, (Path("/models/b.v1.gguf"),)), "b.v1"),
        ((max, ("C:\\models\\c.safetensors",)), "c"),
        ((max, ({}, 3)), "Flux"),
        ((max,), "Flux"),
        ("odd", "Flux"),
        (None, "Flux"),
    ],
)
def test_what_the_loader_left(origin: Any, name: str) -> None:
    assert model_name(model(origin)) == name


def graph(**loader: Any) -> dict[str, Any]:
    """loader 1 -> LoRA 2 -> sampling 3 -> node 4."""
    return {
        "1": {"class_type": "UnetLoaderGGUF", "inputs": loader},
        "2": {"inputs": {"model": ["1", 0], "lora_name": "style.safetensors", "strength_model": 1.0}},
        "3": {"inputs": {"shift": 3.0, "model": ["2", 0]}},
        "4": {"inputs": {"model": ["3", 0], "positive": ["5", 0]}},
        "5": {"inputs": {"clip": ["6", 0]}},
        "6": {"inputs": {"clip_name": "t5xxl.gguf"}},
    }


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        (graph(unet_name="sub/flux1-dev-Q4_K_S.gguf"), "flux1-dev-Q4_K_S"),
        (graph(vae_name="ae.safetensors", model_name="wan.safetensors"), "wan"),
        (graph(kind="default"), "Flux"),
        (graph(model=["4", 0]), "Flux"),  # a circle
        (graph(any_01=["7", 0]) | {"7": {"inputs": {"unet_name": "switched.sft"}}}, "switched"),
        (graph(model1=["7", 0], model2=["8", 0]) | {"7": {"inputs": {"ckpt_name": "first.ckpt"}}}, "first"),
        ({"4": {"inputs": {"model": ["gone", 0]}}}, "Flux"),
        ({"4": None}, "Flux"),
        (None, "Flux"),
    ],
)
def test_what_the_graph_tells(prompt: Any, name: str) -> None:
    found = model()
    learn_name(found, prompt, "4")
    assert model_name(found) == name


def test_the_loader_knows_better_than_the_graph() -> None:
    found = model((max, ("/models/true.safetensors",)))
    learn_name(found, graph(unet_name="other.gguf"), "4")
    assert model_name(found) == "true"


@pytest.mark.parametrize("ours", ["planner", "adaptive"])
def test_a_node_learns_it_from_its_own_graph(
    bench: Any, make_node: Any, to: Any, loaded: Any, pack: Any, ours: str
) -> None:
    """A model whose file its loader did not leave on it, as GGUF loaders give it."""
    forgotten = loaded.model.clone()
    forgotten.cached_patcher_init = None
    given = make_node("GivenMODEL", key=bench.value(forgotten), unet_name=f"{ours}-Q8_0.gguf")
    shown = {"show": "5"} if ours == "adaptive" else {}
    bench.run({**bench.base(), "7": given, "5": getattr(bench, ours)(model=to("7"))}, **shown)
    assert pack("host.model_name").model_name(forgotten) == f"{ours}-Q8_0"
