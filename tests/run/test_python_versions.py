"""A Python that is too old or too new is told so in one sentence."""

from __future__ import annotations

import ast
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "run.py"


def test_run_py_parses_under_old_grammars_and_imports_nothing_but_sys_at_the_top() -> None:
    tree = ast.parse(RUN.read_text(encoding="utf-8"), feature_version=(3, 4))
    imported = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    assert imported == ["sys"]
    assert not [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr | ast.AnnAssign)]


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 6, 15), (3, 9, 18), (3, 14, 0)])
def test_other_versions_are_refused(
    version: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = runpy.run_path(str(RUN))
    monkeypatch.setattr(sys, "version_info", version)
    assert names["main"]() == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: BudgetFusion needs Python 3.10 to 3.13, and this is Python ")
    assert f"{version[0]}.{version[1]}." in said
    assert "run.py demo" in said and said.count("\n") == 1


@pytest.mark.parametrize("name", ["python2.7", "python3.6", "python3.7", "python3.8", "python3.9", "python3.14"])
def test_genuine_other_pythons_say_so(name: str) -> None:
    program = shutil.which(name)
    if program is None or subprocess.run([program, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip(f"{name} is not installed")
    done = subprocess.run([program, str(RUN), "demo"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs Python 3.10 to 3.13" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 12), (3, 13)])
def test_the_launcher_parses_under_every_supported_grammar(version: tuple[int, int]) -> None:
    for file in (*(ROOT / "launcher").glob("*.py"), *(ROOT / "research" / "demo").glob("*.py")):
        ast.parse(file.read_text(encoding="utf-8"), feature_version=version)


def test_the_launcher_imports_nothing_but_the_standard_library() -> None:
    allowed = set(sys.stdlib_module_names) | {"launcher"}
    for file in (RUN, *(ROOT / "launcher").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found = {str(node.module).split(".")[0]}
            else:
                continue
            assert found <= allowed, f"{file.name} imports {found - allowed}"
