"""Core, predictor and metrics never need the host: proven in a fresh interpreter and by walking every import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PURE = ("core", "predictor", "metrics")
HOST = {
    "comfy",
    "comfy_api",
    "comfy_extras",
    "comfy_execution",
    "nodes",
    "folder_paths",
    "server",
    "execution",
    "latent_preview",
}
OWN_PARTS = {"core": set(), "predictor": {"core"}, "metrics": {"core"}}


def files(part: str) -> list[Path]:
    return sorted((ROOT / "budgetfusion_nodes" / part).rglob("*.py"))


def imports(path: Path) -> list[tuple[int, str]]:
    """(level, module) of every import statement, at any depth of the code."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


@pytest.mark.parametrize("path", [p for part in PURE for p in files(part)], ids=lambda p: f"{p.parent.name}/{p.name}")
def test_no_import_of_the_host(path):
    for level, module in imports(path):
        assert level > 0 or module.split(".")[0] not in HOST, f"{path.name} imports {module}"
        assert level > 0 or module.split(".")[0] != "budgetfusion_nodes", "a pack is loaded under another name"


@pytest.mark.parametrize("part", PURE)
def test_parts_import_only_what_lies_below_them(part):
    for path in files(part):
        depth = len(path.relative_to(ROOT / "budgetfusion_nodes").parts)
        for level, module in imports(path):
            if level == depth:  # `..x` from core/a.py: a sibling part
                assert module.split(".")[0] in OWN_PARTS[part], f"{path.name} imports {module}"
            assert level <= depth


def test_the_pack_never_imports_what_an_artist_does_not_install():
    for path in sorted((ROOT / "budgetfusion_nodes").rglob("*.py")):
        found = [module for level, module in imports(path) if not level]
        assert not {"research", "launcher", "tests"} & {module.split(".")[0] for module in found}, path


def test_pure_parts_import_in_a_fresh_interpreter_without_the_host():
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for part in PURE
        for path in files(part)
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"bad = {sorted(HOST)!r} + ['lpips', 'open_clip', 'dreamsim', 'transformers', 'piq', 'matplotlib']\n"
        "print([name for name in bad if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_no_pickle_and_no_thread_setting_in_core():
    for path in files("core"):
        text = path.read_text(encoding="utf-8")
        assert "torch.load(" not in text
        assert "set_num_threads" not in text
        assert not any(module in ("pickle", "joblib", "dill") for _, module in imports(path))
