"""The house's two limits: a file can be read in one go, a function on one screen."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = ("budgetfusion_nodes", "launcher", "research")
LONGEST_FILE, LONGEST_FUNCTION, USUAL_FUNCTION = 400, 60, 20


def files(*endings: str) -> Iterator[Path]:
    for part in PARTS:
        for path in (ROOT / part).rglob("*"):
            if path.suffix in endings:
                yield path


def test_no_file_is_longer_than_can_be_read_in_one_go() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files(".py", ".js")}
    assert len(lengths) > 100
    assert {str(path): n for path, n in lengths.items() if n > LONGEST_FILE} == {}


def test_functions_fit_on_a_screen() -> None:
    lengths = {
        f"{path}:{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in files(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert {name: n for name, n in lengths.items() if n > LONGEST_FUNCTION} == {}
    assert sorted(lengths.values())[round(0.9 * len(lengths))] <= USUAL_FUNCTION
