"""Families of today in the genuine host: no planner is there, the node says so, and exactly max_steps are rendered."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from research.in_process_host import HostRunError
from tests.fixtures.tiny_models import NAMES, VIDEO, Tiny, make_tiny

SETTING = {"cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}


@pytest.fixture(scope="module", params=NAMES)
def tiny(request: pytest.FixtureRequest, session: Any) -> Tiny:
    return make_tiny(request.param)


class Graph:
    """Nodes that hand the tiny model into a graph, and a counter of the denoiser's evaluations."""

    def __init__(self, bench: Any, tiny: Tiny, make_node: Any, to: Any) -> None:
        self.evaluations = 0
        model = tiny.model.clone()
        model.set_model_unet_function_wrapper(self._counted)
        self.nodes = {
            "1": make_node("GivenMODEL", key=bench.value(model)),
            "2": make_node("GivenCONDITIONING", key=bench.value(tiny.positive)),
            "3": make_node("GivenCONDITIONING", key=bench.value(tiny.negative)),
            "4": make_node("GivenLATENT", key=bench.value(tiny.latent)),
        }
        self.links = {
            "model": to("1"),
            "positive": to("2"),
            "negative": to("3"),
            "latent_image": to("4"),
            **SETTING,
        }

    def _counted(self, apply_model: Any, given: dict[str, Any]) -> Any:
        self.evaluations += 1
        return apply_model(given["input"], given["timestep"], **given["c"])


@pytest.fixture
def graph(bench: Any, tiny: Tiny, make_node: Any, to: Any) -> Graph:
    return Graph(bench, tiny, make_node, to)


def test_adaptive_ksampler_renders_exactly_max_steps_and_says_why(
    bench: Any, graph: Graph, tiny: Tiny, make_node: Any, to: Any
) -> None:
    stock = make_node("KSampler", seed=5, steps=3, denoise=1.0, **graph.links)
    ours = bench.adaptive(max_steps=3, **graph.links)
    run = bench.run({**graph.nodes, "5": ours, "6": stock, "7": make_node("PreviewAny", source=to("6"))}, show="5")
    latent, steps, _ = run.outputs["5"]
    (plan,) = run.ui["5"]["budget_plan"]
    assert steps == 3 and graph.evaluations == 6, "three of ours and three of the stock node"
    assert torch.equal(latent["samples"], run.outputs["6"][0]["samples"])
    assert torch.isfinite(latent["samples"]).all() and latent["samples"].std() > 0
    assert latent["samples"].shape[1] == tiny.latent["samples"].shape[1]
    assert no_planner(plan, tiny), plan["fallback"]


def test_budget_planner_gives_the_hosts_own_sigmas(bench: Any, graph: Graph, tiny: Tiny) -> None:
    run = bench.run({**graph.nodes, "5": bench.planner(max_steps=7, **_planned(graph.links))})
    _, steps, sigmas = run.outputs["5"]
    (plan,) = run.ui["5"]["budget_plan"]
    assert steps == 7 and sigmas.shape == (8,)
    assert sigmas[-1] == 0 and (sigmas.diff() < 0).all()
    assert graph.evaluations == 0, "a plan renders nothing"
    assert no_planner(plan, tiny), plan["fallback"]


def test_step_sweep_renders_each_count_once(bench: Any, graph: Graph, tiny: Tiny, make_node: Any, to: Any) -> None:
    """A video is either refused before anything is rendered, or all its frames are there, count by count."""
    graph.nodes["5"] = make_node("GivenVAE", key=bench.value(_Decoder()))
    sweep = make_node("BudgetFusion_StepSweep", vae=to("5"), seed=3, step_counts="1 2 4", **graph.links)
    try:
        run = bench.run({**graph.nodes, "6": sweep}, show="6")
    except HostRunError as refused:
        assert tiny.family in VIDEO, refused
        assert graph.evaluations == 0
        return
    images, text, counts = run.outputs["6"]
    assert images.shape[0] == 3 * (tiny.latent["samples"].shape[2] if tiny.family in VIDEO else 1)
    assert text == "1 2 4" and counts == [1, 2, 4]
    assert graph.evaluations == 7


def test_seeds_make_two_models_of_one_architecture(session: Any, pack: Any, tiny: Tiny) -> None:
    fingerprint = pack("host.identity").model_fingerprint
    assert fingerprint(tiny.model)[0] == fingerprint(make_tiny(tiny.family).model)[0]
    assert fingerprint(tiny.model)[0] != fingerprint(make_tiny(tiny.family, seed=1).model)[0]


def no_planner(plan: dict[str, Any], tiny: Tiny) -> bool:
    """Whether the reason is that nothing was calibrated for this model: not a fault, and not another reason."""
    reason = plan["fallback"]
    said = reason if isinstance(reason, str) else reason["code"]
    return plan["steps"] == plan["max_steps"] and ("no planner was calibrated" in said or said.startswith("no_planner"))


def _planned(links: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in links.items() if name != "negative"}


class _Decoder:
    """Any latent as one grey picture a frame: what a VAE does with shapes, without its weights."""

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        grey = samples.mean(dim=1, keepdim=True).movedim(1, -1)
        return torch.sigmoid(grey).expand(*grey.shape[:-1], 3)
