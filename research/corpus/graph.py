"""Reading an API prompt: what is behind a link, and the value that comes out of switches and constants."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

SWITCH = "ComfySwitchNode"


def is_link(value: Any) -> bool:
    """Whether an input is `["id", slot]`."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def chosen(prompt: Mapping[str, Any], value: Any) -> Any:
    """`value`, seen through switches: a link, a constant, or None where nothing is connected."""
    for _ in range(len(prompt) + 1):
        if not is_link(value):
            return value
        node = prompt.get(value[0])
        if node is None:
            return None
        if node["class_type"] != SWITCH:
            return value
        position = constant(prompt, node["inputs"].get("switch"))
        value = node["inputs"].get("on_true" if position else "on_false")
    return None


def constant(prompt: Mapping[str, Any], value: Any) -> Any:
    """The number, text or switch position that comes out, None where it is computed."""
    value = chosen(prompt, value)
    if not is_link(value):
        return value
    node = prompt[value[0]]
    return chosen_constant(prompt, node) if node["class_type"].startswith("Primitive") else None


def chosen_constant(prompt: Mapping[str, Any], node: Mapping[str, Any]) -> Any:
    """What a Primitive node of the host holds."""
    return constant(prompt, node["inputs"].get("value"))


def upstream(prompt: Mapping[str, Any], value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(id, node) of everything that `value` depends on, nearest first, through switches only where they lead."""
    waiting, seen = [value], set()
    while waiting:
        value = chosen(prompt, waiting.pop(0))
        if not is_link(value) or value[0] in seen or value[0] not in prompt:
            continue
        seen.add(value[0])
        node = prompt[value[0]]
        yield value[0], node
        waiting += node["inputs"].values()


def nearest(
    prompt: Mapping[str, Any], value: Any, wanted: Callable[[Mapping[str, Any]], bool]
) -> tuple[str, Mapping[str, Any]] | None:
    """The nearest node behind `value` that is wanted."""
    return next((found for found in upstream(prompt, value) if wanted(found[1])), None)


def first_input(node: Mapping[str, Any], *names: str) -> Any:
    """The first of these inputs that the node has."""
    return next((node["inputs"][name] for name in names if node["inputs"].get(name) is not None), None)
