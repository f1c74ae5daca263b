"""Every symbol of ComfyUI that the pack uses, and whether a host has it: `python -m research host-symbols`.

Read from the source, so nothing is forgotten: imports, `importlib.import_module("...")`, what is reached from them by
attributes, and what is asked of a MODEL, CLIP or VAE by name. Attributes that are looked for with getattr or hasattr
are optional to the pack, and left out.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .in_process_host import PACK_ROOT, start_host
from .options import add_host_option

PACK = PACK_ROOT / "budgetfusion_nodes"
HOST_PACKAGES = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "comfyui_version", "utils"} | {
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
}
GIVEN = {"model": "comfy.model_patcher.ModelPatcher", "clip": "comfy.sd.CLIP", "vae": "comfy.sd.VAE"}
"""Parameter names that mean a value of the host throughout the pack's code that touches it."""
TOUCHING = ("host", "planning", "calibration", "nodes")
"""Folders in which GIVEN holds."""

Uses = dict[str, set[str]]
"""Dotted symbol -> files that use it."""


def used_symbols(pack: Path = PACK) -> Uses:
    """Dotted symbol (module, attributes) -> the files of the pack that use it."""
    uses: Uses = {}
    for file in sorted(pack.rglob("*.py")):
        place = file.relative_to(pack).as_posix()
        reader = Reader(given=GIVEN if place.split("/")[0] in TOUCHING else {})
        for symbol in reader.read(file.read_text(encoding="utf-8")):
            uses.setdefault(symbol, set()).add(place)
    return uses


class Reader:
    """Symbols of the host in one file. A name means what it was last bound to, whatever the function."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self.names: dict[str, str] = {}
        self.given = dict(given)
        self.returned: dict[str, str] = {}
        """Function -> the host symbol that it returns."""

    def read(self, source: str) -> set[str]:
        tree = ast.parse(source)
        found: set[str] = set()
        for node in ast.walk(tree):
            found.update(self._imported(node))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                self._note_returned(node)
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign):
                self._note_assigned(node)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute | ast.Call) and (meant := self.meaning(node)):
                found.add(meant)
        return {symbol for symbol in found if not any(other.startswith(f"{symbol}.") for other in found)}

    def _imported(self, node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if is_host(alias.name):
                    bound = alias.asname or alias.name.split(".")[0]
                    self.names[bound] = alias.name if alias.asname else bound
                    yield alias.name
        if isinstance(node, ast.ImportFrom) and node.level == 0 and is_host(node.module or ""):
            for alias in node.names:
                self.names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}"

    def _note_returned(self, function: ast.FunctionDef) -> None:
        returned = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value]
        if len(returned) == 1 and (meant := self.meaning(returned[0])):
            self.returned[function.name] = meant

    def _note_assigned(self, node: ast.Assign) -> None:
        targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
        if meant := self.meaning(node.value):
            self.names.update(dict.fromkeys(targets, meant))
        owner = _cloned(node.value)
        if owner in self.given:
            self.given.update(dict.fromkeys(targets, self.given[owner]))

    def meaning(self, node: ast.expr) -> str | None:
        """The host symbol that an expression is, None where it is none."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            return self._attribute(node)
        if isinstance(node, ast.Subscript):
            return self._module_named(node.slice) if ast.unparse(node.value) == "sys.modules" else None
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("importlib.import_module", "import_module", "sys.modules.get"):
                return self._module_named(node.args[0])
            return self.returned.get(called)
        return None

    def _attribute(self, node: ast.Attribute) -> str | None:
        if isinstance(node.value, ast.Name) and node.value.id in self.given and node.value.id not in self.names:
            return f"{self.given[node.value.id]}.{node.attr}"
        owner = self.meaning(node.value)
        return None if owner is None or owner.startswith(tuple(GIVEN.values())) else f"{owner}.{node.attr}"

    @staticmethod
    def _module_named(node: ast.expr) -> str | None:
        named = isinstance(node, ast.Constant) and isinstance(node.value, str) and is_host(node.value)
        return str(node.value) if isinstance(node, ast.Constant) and named else None


def _cloned(node: ast.expr) -> str:
    """`name` in `name.clone()`, else ''."""
    called = node.func if isinstance(node, ast.Call) else None
    is_clone = isinstance(called, ast.Attribute) and called.attr == "clone"
    return ast.unparse(called.value) if isinstance(called, ast.Attribute) and is_clone else ""


def is_host(module: str) -> bool:
    """Whether a module is one of ComfyUI's."""
    return module.split(".")[0] in HOST_PACKAGES


def missing(symbols: Iterable[str]) -> list[str]:
    """Those that the running host lacks."""
    return [symbol for symbol in symbols if not _exists(symbol)]


def _exists(symbol: str) -> bool:
    owner, _, name = symbol.rpartition(".")
    try:
        if owner in GIVEN.values():  # what a value has may be made by its class's __init__
            made = _resolve(owner)
            return hasattr(made, name) or name in made.__init__.__code__.co_names
        _resolve(symbol)
    except (ImportError, AttributeError):
        return False
    return True


def _resolve(symbol: str) -> Any:
    """The module or attribute that a dotted name means. ImportError or AttributeError where there is none."""
    parts = symbol.split(".")
    value, used = importlib.import_module(parts[0]), 1
    for used in range(1, len(parts)):
        if hasattr(value, parts[used]):
            value = getattr(value, parts[used])
            continue
        value = importlib.import_module(".".join(parts[: used + 1]))
    return value


def add_parser(groups: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`python -m research host-symbols`."""
    parser = groups.add_parser(
        "host-symbols", help="list what the pack uses of ComfyUI, and what a ComfyUI lacks of it"
    )
    add_host_option(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    symbols = used_symbols()
    with tempfile.TemporaryDirectory() as base:
        session = start_host(options.host, base)
        absent = missing(symbols)
    for symbol, files in sorted(symbols.items()):
        mark = "MISSING " if symbol in absent else ""
        sys.stdout.write(f"{mark}{symbol}  ({', '.join(sorted(files))})\n")
    sys.stdout.write(f"{len(symbols)} symbols, {len(absent)} missing in ComfyUI {session.version}\n")
    return 1 if absent else 0
