"""The stages of a node's work, read out of the pack's own code, and how one of them is made to fail.

A node's `execute` is walked: what a function calls is a stage, unless it has a handler for any error itself or lies in
the module of one that has (`planning/service.py`): then what it calls is walked in its place. So a stage that is added
later is in the list by itself. What stands in a handler is no stage: nothing fails twice.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FunctionType, ModuleType
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor

from .in_host import pack_module

NO_STAGES: Mapping[str, str] = {
    "render": "the host's own sampling; what lies around it is walked",
    "check_latent": "says what is wrong with an input",
    "only_seed": "a look at a shape",
    "_clock": "a closure around the host's sampling",
    "_along": "a closure around the host's sampling",
    "_wrappers": "a name of the host",
    "message": "says what failed",
    "told": "says what failed",
    "naming_the_stage": "says what failed",
    "nfe": "a look into a table",
    "get_sigmas": "the host's own scheduler, without which there is no render",
}
"""Function -> why a fault there may stop a render."""
WALKED = (
    *("render", "learner", "probe", "remember", "run", "measure", "reference", "looks"),
    *("calibrate_graph", "choose_schedule", "lead", "run_to_best", "run_trajectory"),
)
"""What is walked although it has no handler: its stages are those that matter."""


@dataclass(frozen=True)
class Stage:
    """A function of the pack, where its callers look it up."""

    owner: Any
    """Module or class."""
    name: str
    function: FunctionType = field(compare=False)

    @property
    def told(self) -> str:
        """As core/stages.py names it."""
        where = self.function.__module__.partition("budgetfusion_nodes.")[2].replace(".", "/")
        return f"{where}.py {self.function.__name__}"


def stages_of(entry: Callable[..., Any], methods: tuple[type, ...]) -> list[Stage]:
    """Every stage below `entry`. methods: classes whose methods are stages where their name is called."""
    known: dict[str, list[tuple[type, FunctionType]]] = {}
    for cls in methods:
        for name, value in vars(cls).items():
            value = inspect.unwrap(getattr(value, "__func__", value))  # of a class method
            if _is_own(value):
                known.setdefault(name, []).append((cls, value))
    found: dict[str, Stage] = {}
    walked: set[FunctionType] = set()

    def walk(function: FunctionType) -> None:
        walked.add(function)
        for stage in _called(function, known):
            inner = cast(FunctionType, stage.function)  # to a type checker it is bound on access
            if inner in walked or stage.name.startswith("__"):
                continue
            if stage.name in WALKED or _guards(inner) or inner.__module__ == function.__module__ != "":
                walk(inner)
            elif stage.name not in NO_STAGES:
                found.setdefault(stage.told, stage)

    walk(inspect.unwrap(getattr(entry, "__func__", entry)))
    return list(found.values())


def _is_own(value: Any) -> bool:
    return isinstance(value, FunctionType) and ".budgetfusion_nodes." in value.__module__


def _tree(function: FunctionType) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def _guards(function: FunctionType) -> bool:
    """Whether it catches whatever happens in it."""
    handlers = (one for one in ast.walk(_tree(function)) if isinstance(one, ast.ExceptHandler))
    return any(isinstance(one.type, ast.Name) and one.type.id == "Exception" for one in handlers)


def _called(function: FunctionType, methods: Mapping[str, list[tuple[type, FunctionType]]]) -> Iterator[Stage]:
    module = importlib.import_module(function.__module__)
    local = dict(_imports(function, module))
    for one in _outside_handlers(_tree(function)):
        if isinstance(one, ast.Attribute) and one.attr in methods:
            yield from (Stage(cls, one.attr, method) for cls, method in methods[one.attr])
        if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load):
            owner, name = local.get(one.id, (module, one.id))
        elif isinstance(one, ast.Attribute) and isinstance(one.value, ast.Name):
            owner, name = getattr(module, one.value.id, None), one.attr
        else:
            continue
        value = getattr(owner, name, None) if isinstance(owner, ModuleType) else None
        value = inspect.unwrap(value) if callable(value) else value
        if isinstance(value, FunctionType) and _is_own(value):
            yield Stage(owner, name, value)


def _imports(function: FunctionType, module: ModuleType) -> Iterator[tuple[str, tuple[ModuleType, str]]]:
    """Names that a function imports itself -> where they come from."""
    for one in ast.walk(_tree(function)):
        if isinstance(one, ast.ImportFrom) and one.level:
            source = importlib.import_module("." * one.level + (one.module or ""), module.__package__)
            for alias in one.names:
                yield alias.asname or alias.name, (source, alias.name)


def _outside_handlers(tree: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(tree):
        if not isinstance(child, ast.ExceptHandler):
            yield child
            yield from _outside_handlers(child)


@contextlib.contextmanager
def failing(stage: Stage, make: Callable[[], Any]) -> Iterator[list[int]]:
    """Inside the block the stage fails: `make` raises, or gives what is returned in place of a result, once the stage
    has done its work. The traceback is that of a fault in the function itself. Gives the calls."""
    calls: list[int] = []
    whole = getattr(stage.owner, stage.name)

    def fault(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        wrong = make()
        right = whole(*arguments, **named)
        if right is None:
            return None
        return torch.full_like(right, wrong) if isinstance(right, Tensor) and right.is_floating_point() else wrong

    own = stage.function.__code__
    fault.__code__ = fault.__code__.replace(co_name=own.co_name, co_filename=own.co_filename)
    with mock.patch.object(stage.owner, stage.name, fault):
        yield calls


def entry(module: str, cls: str) -> Callable[..., Any]:
    """`execute` of a node as the host loaded it."""
    return getattr(pack_module(module), cls).execute
