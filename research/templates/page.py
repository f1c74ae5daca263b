"""A graph in our own words -> the page's file format and its API twin. Nodes stand in columns, as tall as the page
draws them after a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOTE = "MarkdownNote"
"""A node of the page alone: never sent to the host."""
AUTOGROW = "COMFY_AUTOGROW_V3"
"""An input of the host that grows a slot for each link, and one more."""
MATCHED = "COMFY_MATCHTYPE_V3"
"""A type that follows what is connected."""
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
    kinds = output_kinds(graph.nodes, info)
    nodes = [page_node(node, index, info[node.type], links, kinds) for index, node in enumerate(graph.nodes)]
    place(nodes, [node.column for node in graph.nodes])
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


def place(nodes: Sequence[dict[str, Any]], columns: Sequence[int]) -> None:
    """Columns from left to right, nodes of a column from top to bottom."""
    x = 0
    for column in range(max(columns) + 1):
        members = [node for node, own in zip(nodes, columns, strict=True) if own == column]
        y = 0
        for node in members:
            node["pos"] = [x, y]
            y += node["size"][1] + TITLE + GAP_Y
        x += max(node["size"][0] for node in members) + GAP_X


def output_kinds(nodes: Sequence[Node], info: Mapping[str, Any]) -> dict[int, list[str]]:
    """Node id -> the types of its outputs; one that follows its inputs has the type of the first link."""
    kinds: dict[int, list[str]] = {}
    for node in nodes:  # sources stand before their targets
        links = [value for value in node.inputs.values() if isinstance(value, list)]
        own = [type_name(kind) for kind in info[node.type]["output"]]
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
        declared = {name for name, _, _ in declared_inputs(info[node["type"]])}
        inputs: dict[str, Any] = {name: value for name, value in linked.items() if name not in declared}  # grown slots
        values = iter(node.get("widgets_values", ()))
        for name, kind, options in declared_inputs(info[node["type"]]):
            if is_widget(kind, options):
                inputs[name] = next(values)
                if options.get("control_after_generate"):
                    next(values)
            if name in linked:
                inputs[name] = linked[name]
        title = node.get("title") or info[node["type"]]["display_name"] or node["type"]
        prompt[str(node["id"])] = {"inputs": inputs, "class_type": node["type"], "_meta": {"title": title}}
    return prompt


def declared_inputs(info: Mapping[str, Any]) -> list[tuple[str, Any, Mapping[str, Any]]]:
    """(name, type, options) in the order in which the page makes widgets and slots."""
    found: list[tuple[str, Any, Mapping[str, Any]]] = []
    for section in ("required", "optional"):
        for name, spec in info["input"].get(section, {}).items():
            found.append((name, spec[0], spec[1] if len(spec) > 1 else {}))
    return found


def is_widget(kind: Any, options: Mapping[str, Any]) -> bool:
    return (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput")


def type_name(kind: Any) -> str:
    return "COMBO" if isinstance(kind, list) else kind


def titled(graph: Graph, info: Mapping[str, Any]) -> Graph:
    """Titles as the page shows them, where the graph names none."""
    nodes = tuple(replace(n, title=n.title or info[n.type]["display_name"] or n.type) for n in graph.nodes)
    return Graph(graph.name, graph.note, nodes)


def page_node(
    node: Node, order: int, info: Mapping[str, Any], links: list[list[Any]], kinds: Mapping[int, Sequence[str]]
) -> dict[str, Any]:
    declared = [shown for entry in declared_inputs(info) for shown in _grown(node, *entry)]
    unknown = set(node.inputs) - {name for name, _, _ in declared}
    if unknown:
        raise ValueError(f"{node.type} has no inputs {sorted(unknown)}")
    # the page lists plain sockets first, then the sockets of widgets
    ordered = sorted(declared, key=lambda entry: is_widget(entry[1], entry[2]))
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
    slot: dict[str, Any] = {"name": name, "type": type_name(kind), "link": None}
    if "label" in options:
        slot["label"] = options["label"]
    if is_widget(kind, options):
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
        if not is_widget(kind, options):
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
