"""Importing the metrics costs no metric library, and never the host."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "budgetfusion_nodes" / "metrics"
HEAVY = {"lpips", "open_clip", "dreamsim", "transformers", "piq", "torchvision", "timm", "peft"}
HOST = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "server", "execution"}


def test_a_fresh_interpreter_imports_no_metric_library() -> None:
    modules = [f"budgetfusion_nodes.metrics.{p.stem}" for p in sorted(PACKAGE.glob("*.py")) if p.stem != "__init__"]
    code = (
        f"import sys, json, importlib; [importlib.import_module(m) for m in {modules}]; "
        "from budgetfusion_nodes.metrics.backends import available_d_sim_backends as a; a(); "
        "print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    root = PACKAGE.parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=120
    )
    loaded = set(json.loads(done.stdout))
    assert "torch" in loaded
    assert not loaded & (HEAVY | HOST)


def test_the_names_that_a_node_lists_cost_nothing() -> None:
    code = "import sys; import budgetfusion_nodes.metrics.names; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parents[1], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_no_module_imports_them_at_its_top_or_the_host_at_all() -> None:
    for path in PACKAGE.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_top = {name for node in tree.body for name in imported(node)}
        anywhere = {name for node in ast.walk(tree) for name in imported(node)}
        assert not at_top & HEAVY, path.name
        assert not anywhere & HOST, path.name


def imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.partition(".")[0] for alias in node.names}
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return {node.module.partition(".")[0]}
    return set()
