"""The page's file format -> the host's API format, as the page's own graphToPrompt does it.

Subgraphs (nested, with promoted widgets), Reroute, Primitive, notes, muted and bypassed nodes, dynamic combos and the
widgets that the page adds beside the declared ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Info = Mapping[str, Any]
"""What /object_info answers: node type -> definition."""

NOTES = {"Note", "MarkdownNote"}
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"
MUTED, BYPASSED = 2, 4
BOUNDARY_IN, BOUNDARY_OUT = -10, -20
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
AFTER_GENERATE = {"fixed", "increment", "decrement", "randomize"}
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
WIDGETS_OF_THE_PAGE = {
    "COLOR",
    "COLORS",
    "CURVE",
    "RANGE",
    "BOUNDING_BOX",
    "BOUNDING_BOXES",
    "IMAGECOMPARE",
    "LOAD_3D",
    "LOAD_3D_ANIMATION",
    "WEBCAM",
}
"""Types with a widget of their own, whose value is stored."""


@dataclass(frozen=True)
class Literal:
    """A value that a link carries without a node of the host behind it: a Primitive's, a promoted widget's."""

    value: Any


Source = list[Any] | Literal | None
"""["id", slot], a value, or nothing."""


@dataclass
class Scope:
    """One graph: the outermost one, or one use of a subgraph."""

    graph: Mapping[str, Any]
    prefix: str = ""
    outer: tuple[Scope, Mapping[str, Any]] | None = None
    """Where this subgraph is used: the scope and the node there."""
    nodes: dict[int, Mapping[str, Any]] = field(init=False)
    links: dict[int, tuple[int, int, int, int]] = field(init=False)
    """Link id -> (origin node, its slot, target node, its slot)."""

    def __post_init__(self) -> None:
        self.nodes = {node["id"]: node for node in self.graph["nodes"]}
        self.links = dict(_link(link) for link in self.graph.get("links") or ())


def _link(link: Any) -> tuple[int, tuple[int, int, int, int]]:
    if isinstance(link, Mapping):
        return link["id"], (link["origin_id"], link["origin_slot"], link["target_id"], link["target_slot"])
    return link[0], (link[1], link[2], link[3], link[4])


class Converter:
    """Converts one file."""

    def __init__(self, page: Mapping[str, Any], info: Info) -> None:
        self.root = Scope(page)
        self.info = info
        definitions = (page.get("definitions") or {}).get("subgraphs") or ()
        self.subgraphs = {definition["id"]: definition for definition in definitions}

    def prompt(self) -> dict[str, Any]:
        """The API prompt: node id (inside subgraphs `outer:inner`) -> class_type, inputs, _meta."""
        return dict(self._emit(self.root))

    def _emit(self, scope: Scope) -> Iterator[tuple[str, dict[str, Any]]]:
        for node in scope.nodes.values():
            if node.get("mode", 0) in (MUTED, BYPASSED) or node["type"] in (*NOTES, REROUTE, PRIMITIVE):
                continue
            if node["type"] in self.subgraphs:
                yield from self._emit(self._inside(scope, node))
            else:
                yield (
                    f"{scope.prefix}{node['id']}",
                    {
                        "class_type": node["type"],
                        "inputs": self._inputs(scope, node),
                        "_meta": {"title": node.get("title") or self._display_name(node["type"])},
                    },
                )

    def _inside(self, scope: Scope, node: Mapping[str, Any]) -> Scope:
        return Scope(self.subgraphs[node["type"]], f"{scope.prefix}{node['id']}:", (scope, node))

    def _display_name(self, kind: str) -> str:
        return self.info.get(kind, {}).get("display_name") or kind

    # ------------------------------------------------------------------------------------------------------ values

    def _inputs(self, scope: Scope, node: Mapping[str, Any]) -> dict[str, Any]:
        inputs = widget_values(node, self.info.get(node["type"]))
        for slot in node.get("inputs") or ():
            if slot.get("link") is None:
                continue
            found = self._source(scope, slot["link"])
            if isinstance(found, Literal):
                inputs[slot["name"]] = found.value
            elif found is not None:
                inputs[slot["name"]] = found
            # nothing behind it: the widget's own value stays, and a plain input is not connected
        return inputs

    # ------------------------------------------------------------------------------------------------------- links

    def _source(self, scope: Scope, number: int) -> Source:
        if number not in scope.links:
            return None
        origin, slot, *_ = scope.links[number]
        if origin == BOUNDARY_IN:
            return self._from_outside(scope, slot)
        node = scope.nodes.get(origin)
        return None if node is None else self._output(scope, node, slot)

    def _from_outside(self, scope: Scope, slot: int) -> Source:
        """What comes in at input `slot` of the subgraph: a link of the node around it, or its promoted widget."""
        assert scope.outer is not None
        outer, node = scope.outer
        name = scope.graph["inputs"][slot]["name"]
        for given in node.get("inputs") or ():
            if given["name"] == name and given.get("link") is not None:
                return self._source(outer, given["link"])
        return self._promoted(scope, scope.graph["inputs"][slot])

    def _promoted(self, scope: Scope, entry: Mapping[str, Any]) -> Literal | None:
        """The value of the widget that the subgraph's node shows for this input: kept there, or inside."""
        assert scope.outer is not None
        values = scope.outer[1].get("widgets_values") or ()
        shown = [one["name"] for one in scope.graph["inputs"] if self._widget_inside(scope, one) is not None]
        if entry["name"] in shown and isinstance(values, Sequence) and len(values) == len(shown):
            return Literal(values[shown.index(entry["name"])])
        return self._widget_inside(scope, entry)

    def _widget_inside(self, scope: Scope, entry: Mapping[str, Any]) -> Literal | None:
        """The first widget that this input of a subgraph leads to, with its own value."""
        for number in entry.get("linkIds") or ():
            node = scope.nodes.get(scope.links.get(number, (0, 0, BOUNDARY_OUT, 0))[2])
            given = next((one for one in (node or {}).get("inputs") or () if one.get("link") == number), None)
            if node is None or given is None:
                continue
            if node["type"] in self.subgraphs:
                inner = self._inside(scope, node)
                deeper = next((one for one in inner.graph["inputs"] if one["name"] == given["name"]), None)
                found = self._promoted(inner, deeper) if deeper else None
                if found is not None:
                    return found
            elif "widget" in given:
                values = widget_values(node, self.info.get(node["type"]))
                return Literal(values.get(given["widget"]["name"]))
        return None

    def _output(self, scope: Scope, node: Mapping[str, Any], slot: int) -> Source:
        if node["type"] == PRIMITIVE:
            return Literal((node.get("widgets_values") or [None])[0])
        if node["type"] == REROUTE:
            return self._linked(scope, node["inputs"][0])
        mode = node.get("mode", 0)
        if mode == MUTED:
            return None
        if mode == BYPASSED:
            return self._around(scope, node, slot)
        if node["type"] in self.subgraphs:
            inner = self._inside(scope, node)
            numbers = (number for number, link in inner.links.items() if link[2:] == (BOUNDARY_OUT, slot))
            return next((found for number in numbers if (found := self._source(inner, number)) is not None), None)
        return [f"{scope.prefix}{node['id']}", slot]

    def _around(self, scope: Scope, node: Mapping[str, Any], slot: int) -> Source:
        """A bypassed node passes on its input of the output's type: the one at the same place first."""
        kind = node["outputs"][slot]["type"]
        inputs = node.get("inputs") or ()
        ordered = [*inputs[slot : slot + 1], *inputs]
        for given in ordered:
            if given["type"] == kind and given.get("link") is not None:
                return self._linked(scope, given)
        return None

    def _linked(self, scope: Scope, given: Mapping[str, Any]) -> Source:
        return None if given.get("link") is None else self._source(scope, given["link"])


def to_prompt(page: Mapping[str, Any], info: Info) -> dict[str, Any]:
    """Page format -> API format. `info`: the host's definitions; a type that it lacks is read by its own slots."""
    return Converter(page, info).prompt()


# ---------------------------------------------------------------------------------------------------------- widgets


def widget_values(node: Mapping[str, Any], definition: Mapping[str, Any] | None) -> dict[str, Any]:
    """Name -> value of a node's widgets. Values lie in the file without names, in the order of the definition; a
    widget that is younger than the file has its default."""
    stored = node.get("widgets_values") or ()
    if isinstance(stored, Mapping):
        return {name: _sent(value) for name, value in stored.items()}
    values = list(stored)
    if definition is None:
        names = [slot["widget"]["name"] for slot in node.get("inputs") or () if "widget" in slot]
        return {name: _sent(value) for name, value in zip(names, values, strict=False)}
    found: dict[str, Any] = {}
    for section in ("required", "optional"):
        for name, spec in definition["input"].get(section, {}).items():
            _take(name, spec, values, found)
    return found


def _take(name: str, spec: Sequence[Any], values: list[Any], found: dict[str, Any]) -> None:
    """Moves the value of input `name` (and what the page puts behind it) from `values` to `found`."""
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    if not is_widget(kind, options):
        return
    found[name] = _sent(values.pop(0)) if values else default_of(kind, options)
    if kind == DYNAMIC_COMBO:
        for inner, inner_spec in _of_choice(options, found[name]):
            _take(f"{name}.{inner}", inner_spec, values, found)
    generated = options.get("control_after_generate") or name in ("seed", "noise_seed")
    if generated and values and values[0] in AFTER_GENERATE:
        values.pop(0)


def is_widget(kind: Any, options: Mapping[str, Any]) -> bool:
    """Whether the page shows a field for an input of this type, in place of a plain socket."""
    if options.get("forceInput"):
        return False
    return (
        isinstance(kind, list)
        or kind in (*WIDGET_TYPES, *WIDGETS_OF_THE_PAGE, DYNAMIC_COMBO)
        or "widgetType" in options
    )


def default_of(kind: Any, options: Mapping[str, Any]) -> Any:
    """What a new node has in the field."""
    if "default" in options:
        return _sent(options["default"])
    choices = kind if isinstance(kind, list) else options.get("options") or ()
    first = choices[0] if choices else ""
    return first["key"] if isinstance(first, Mapping) else first


def _of_choice(options: Mapping[str, Any], choice: Any) -> Iterator[tuple[str, Sequence[Any]]]:
    """The inputs that a dynamic combo has at this choice."""
    for option in options["options"]:
        if option["key"] == choice:
            for section in ("required", "optional"):
                yield from option["inputs"].get(section, {}).items()


def _sent(value: Any) -> Any:
    """A list is wrapped, because a bare one means a link to the host."""
    return {"__value__": value} if isinstance(value, list) else value
