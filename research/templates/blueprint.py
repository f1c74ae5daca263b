"""The blueprint of a planned render: a subgraph for the page's node library."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from .page import LINE, Node, declared_inputs, is_widget, link, output_kinds, page_node, place, type_name
from .parts import adaptive, planner

BLUEPRINT = "BudgetFusion Planned Render"
"""Its name in the page's node library."""
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
        planner(0, **shared),
        adaptive(1, 6, plan=link(5), negative=given("negative"), seed=given("seed"), **shared),
        Node(8, "VAEDecode", {"samples": link(6), "vae": given("vae")}, 2, width=200),
    )


RESULTS = (("IMAGE", "IMAGE", 8, 0), ("steps", "INT", 6, 1), ("receipt", "STRING", 6, 2))
"""What it gives: name, type, node and output inside."""

Inputs = Mapping[str, tuple[Any, Mapping[str, Any]]]
"""Name -> type and options."""


def to_blueprint(nodes: Sequence[Node], info: Mapping[str, Any]) -> dict[str, Any]:
    """The subgraph in the page's format: one node, and its definition."""
    declared = {name: (kind, options) for name, kind, options in declared_inputs(info[nodes[1].type])}
    kinds = ["VAE" if name == "vae" else type_name(declared[name][0]) for name in BLUEPRINT_INPUTS]
    links: list[list[Any]] = []
    known = {BOUNDARY_IN: kinds, **output_kinds(nodes, info)}
    inside = [page_node(node, index, info[node.type], links, known) for index, node in enumerate(nodes)]
    place(inside, [node.column for node in nodes])
    for slot, (_, kind, source, output) in enumerate(RESULTS):
        links.append([len(links) + 1, source, output, BOUNDARY_OUT, slot, kind])
    by_id = {node["id"]: node for node in inside}
    for number, source, output, *_ in links:
        if source in by_id:
            made = by_id[source]["outputs"][output]
            made["links"] = [*(made["links"] or []), number]
    return {
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [_outer(nodes[1], declared, kinds)],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [_definition(inside, links, kinds)]},
        "extra": {},
    }


def _outer(sampler: Node, declared: Inputs, kinds: Sequence[str]) -> dict[str, Any]:
    """The node that stands for the subgraph. sampler: the node inside whose widgets it shows."""
    widgets = [name for name in BLUEPRINT_INPUTS if name in declared and is_widget(*declared[name])]
    given = [(name, sampler.inputs[name]) for name in widgets]
    return {
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
        "outputs": [{"name": name, "type": kind, "links": None} for name, kind, *_ in RESULTS],
        "title": BLUEPRINT,
        "properties": {"proxyWidgets": [["-1", name] for name in widgets]},
        "widgets_values": [declared[name][1].get("default") if isinstance(v, list) else v for name, v in given],
    }


def _definition(
    inside: Sequence[dict[str, Any]], links: Sequence[Sequence[Any]], kinds: Sequence[str]
) -> dict[str, Any]:
    """The graph inside, with its own input and output node."""
    right = max(node["pos"][0] + node["size"][0] for node in inside)
    comes = {slot: [n for n, *at, _, _, _ in links if at == [BOUNDARY_IN, slot]] for slot in range(len(kinds))}
    goes = {slot: [n for n, _, _, *at, _ in links if at == [BOUNDARY_OUT, slot]] for slot in range(len(RESULTS))}
    last = max(node["id"] for node in inside)
    return {
        "id": BLUEPRINT_ID,
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": last, "lastLinkId": len(links), "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": BLUEPRINT,
        "inputNode": {"id": BOUNDARY_IN, "bounding": [-220, 0, 140, 40 + 20 * len(kinds)]},
        "outputNode": {"id": BOUNDARY_OUT, "bounding": [right + 80, 0, 120, 40 + 20 * len(RESULTS)]},
        "inputs": [
            _boundary(name, kind, slot, "in", comes[slot])
            for slot, (name, kind) in enumerate(zip(BLUEPRINT_INPUTS, kinds, strict=True))
        ],
        "outputs": [_boundary(name, kind, slot, "out", goes[slot]) for slot, (name, kind, *_) in enumerate(RESULTS)],
        "widgets": [],
        "nodes": list(inside),
        "groups": [],
        "links": [
            dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), one, strict=True))
            for one in links
        ],
        "extra": {"workflowRendererVersion": "LG"},
        "category": "BudgetFusion",
        "description": "Plans the number of steps from the prompt, renders with it, and decodes the picture.",
    }


def _boundary(name: str, kind: str, slot: int, side: str, links: list[int]) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid5(uuid.UUID(BLUEPRINT_ID), f"{side} {name}")),
        "name": name,
        "type": kind,
        "linkIds": links,
        "pos": [-100, 20 + 20 * slot],
    }
