"""The demo's own graph in the genuine host, with the shipped generator, image encoder and planner."""

from __future__ import annotations

import math
from typing import Any

import pytest

from research.demo import graph as graphs
from research.demo.__main__ import to_row
from research.demo.client import Finished
from research.foreign_checkpoint import stock_render
from research.in_process_host import HostSession
from research.shipped_models import MODELS

QUALITY = 0.8
PROMPT = "a large red circle in the centre on a plain white background"


@pytest.mark.parametrize("model", ["eps", pytest.param("flow", marks=pytest.mark.one_host)])
def test_demo_graph_gives_a_whole_row(session: HostSession, model: str) -> None:
    graph = graphs.build(graphs.load_base(model=MODELS[model]), PROMPT, 1, QUALITY)
    run = session.execute(graph.nodes)
    seconds: dict[str, Any] = dict.fromkeys((graph.planner, graph.adaptive, graph.full), 1.0)
    row = to_row(graph, Finished(run.ui, seconds), PROMPT, 1)
    (plan,) = run.ui[graph.planner]["budget_plan"]
    assert plan["fallback"] is None, "the shipped planner is for the shipped generator"
    assert plan["warnings"] == []
    assert 2 <= row.steps == plan["steps"] < graph.target_steps, "a lone object on a plain background settles early"
    assert row.set_by in ("l_snr", "d_sim", "i_clip")
    assert row.quality_predicted is not None and QUALITY <= row.quality_predicted <= 1
    assert row.quality_measured is not None and math.isfinite(row.quality_measured)
    assert row.seconds >= 2.0 and row.seconds_target >= 1.0  # and what was taken from the other one's draft
    assert row.prefix_steps > 0
    assert 2 <= row.steps_stock <= graph.target_steps
    for node in (graph.save_adaptive, graph.save_full):
        assert len(run.ui[node]["images"]) == 1


def test_an_ordinary_render_is_one_of_stock_nodes_alone(session: HostSession) -> None:
    base = graphs.load_base()
    for node in base.values():
        node["inputs"] |= {key: 2 for key in ("max_steps",) if key in node["inputs"]}
    graph = graphs.build(base, PROMPT, 1, QUALITY)
    nodes = stock_render(graph)
    (sampler,) = [node for node in nodes.values() if "Sampler" in node["class_type"]]
    assert (sampler["class_type"], sampler["inputs"]["steps"]) == ("KSampler", 2)
    assert not any("BudgetFusion" in node["class_type"] for node in nodes.values())
    assert len(session.execute(nodes).ui[graph.save_full]["images"]) == 1
