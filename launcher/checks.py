"""`run.py test`: every test of the project, each host in a process of its own, one closing line."""

from __future__ import annotations

import os
import re
import shutil
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import browser
from .comfyui import Host
from .console import say
from .errors import LaunchError
from .layout import ROOT, Layout
from .server import default_threads

PARTS = ("unit", "host", "web", "page", "lint")
ERROR_LINES = 12

Runner = Callable[[Sequence[str], dict[str, str]], int]


@dataclass(frozen=True)
class Outcome:
    """One line of the summary."""

    name: str
    passed: int
    failed: int
    skipped: int = 0
    note: str = ""
    failures: tuple[str, ...] = ()
    """Each failed test with the first lines of its error: a build server's log is cut in the middle."""


def run(layout: Layout, hosts: Sequence[Host], parts: Sequence[str], runner: Runner) -> int:
    """Runs the parts and returns 0 only if everything passed. `runner(command, environment)` gives exit statuses."""
    started = time.monotonic()
    reports = layout.run_dir / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    environment = {**os.environ, "PYTHONUTF8": "1"}
    environment.setdefault("OMP_NUM_THREADS", str(default_threads()))
    environment.pop("BUDGETFUSION_TEST_HOST", None)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # else every process compiles what pip left as it was
    outcomes: list[Outcome] = []
    if "unit" in parts:
        command = _pytest(layout, reports / "unit.xml", "tests", "--ignore=tests/host")
        outcomes.append(_run_pytest("unit", command, reports / "unit.xml", environment, runner))
    if "host" in parts:
        for host in hosts:
            name = f"host {host.version}"
            report = reports / f"host-{host.version}.xml"
            its_own = {**environment, "BUDGETFUSION_TEST_HOST": str(host.path)}
            chosen = [] if host is hosts[0] else ["-m", "not one_host"]
            command = _pytest(layout, report, "tests/host", *chosen)
            outcomes.append(_run_pytest(name, command, report, its_own, runner))
    if "web" in parts:
        outcomes += _run_web(layout, reports / "web.tap", environment, runner)
    if "page" in parts:
        for host in hosts:
            outcomes.append(_run_page(layout, host, None, reports, environment, runner))
        if all(host.pinned for host in hosts):
            outcomes.append(_run_page(layout, _newest(hosts), browser.NEWEST_FRONTEND, reports, environment, runner))
    if "lint" in parts:
        for name, tool in (
            ("ruff check", ["ruff", "check", "."]),
            ("ruff format", ["ruff", "format", "--check", "."]),
            ("pyright", ["pyright"]),
        ):
            _heading(name)
            code = runner([str(layout.python), "-m", *tool], environment)
            outcomes.append(Outcome(name, int(code == 0), int(code != 0)))
    return _close(outcomes, time.monotonic() - started)


def _heading(name: str) -> None:
    say(f"\n===== {name} =====")


def _pytest(layout: Layout, report: Path, *args: str) -> list[str]:
    # a file's tests share what it sets up; two workers fill two cores, more only repeat the set-up
    workers = str(min(4, os.cpu_count() or 1))
    spread = ["-n", workers, "--dist=loadfile", "--no-loadscope-reorder"]  # in the order of tests/conftest.py
    return [str(layout.python), "-m", "pytest", "-q", *spread, f"--junitxml={report}", *args]


def _run_pytest(
    name: str, command: Sequence[str], report: Path, environment: dict[str, str], runner: Runner
) -> Outcome:
    _heading(name)
    code = runner(command, environment)
    return pytest_outcome(name, report, code)


def pytest_outcome(name: str, report: Path, code: int) -> Outcome:
    """Counts from pytest's own report. A run that broke off (no report, or no test at all) counts as one failure."""
    if code not in (0, 1) or not report.is_file():
        return Outcome(name, 0, 1, note=f"pytest ended with status {code}")
    suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
    total, bad, skipped = (
        sum(int(suite.get(key, "0")) for suite in suites for key in keys)
        for keys in (("tests",), ("failures", "errors"), ("skipped",))
    )
    if code == 1 and bad == 0:
        bad = 1
    failures = tuple(
        _failure(f"{case.get('classname')}::{case.get('name')}", found.text or "", last=True)
        for suite in suites
        for case in suite.iter("testcase")
        for found in (*case.iter("failure"), *case.iter("error"))
    )
    return Outcome(name, max(0, total - bad - skipped), bad, skipped, failures=failures)


def _failure(test: str, error: str, last: bool = False) -> str:
    """last: the error stands at the end of the text, below its traceback."""
    lines = [line for line in error.splitlines() if line.strip()]
    return "\n    ".join([test, *(lines[-ERROR_LINES:] if last else lines[:ERROR_LINES])])


def _run_web(layout: Layout, report: Path, environment: dict[str, str], runner: Runner) -> list[Outcome]:
    """The browser code without a page: its unit tests, and its types."""
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests/web").rglob("*.test.mjs"))
    try:
        node = browser.ensure_node(layout)
    except LaunchError as error:
        return [_absent("web", str(error), len(files))]
    _heading("web")
    done = tap_outcome("web", report, runner(_node_test(node, report, files), environment))
    try:
        npm = browser.ensure_npm_packages(layout, node)
    except LaunchError as error:
        return [done, _absent("tsc", str(error))]
    _heading("tsc")
    compiler = str(npm / "node_modules" / "typescript" / "bin" / "tsc")
    code = runner([str(node.program), compiler, "--project", str(browser.TYPE_CHECK)], environment)
    return [done, Outcome("tsc", int(code == 0), int(code != 0))]


def _newest(hosts: Sequence[Host]) -> Host:
    return max(hosts, key=lambda host: [int(part) for part in re.findall(r"\d+", host.version)])


def _run_page(
    layout: Layout, host: Host, frontend: str | None, reports: Path, environment: dict[str, str], runner: Runner
) -> Outcome:
    """The nodes in the genuine page of this host, or in another version of the page, in a Chromium."""
    name = f"page {host.version}" if frontend is None else f"page {frontend}"
    chromium = browser.find_chromium()
    if chromium is None:
        return _absent(name, f"no Chromium was found: {browser.advice()}")
    try:
        node, needed = browser.page_tools(layout, host, chromium, frontend)
        shown = frontend or browser.frontend_version(host)
    except LaunchError as error:
        return _absent(name, str(error))
    _heading(f"page, ComfyUI {host.version}, frontend {shown}")
    report = reports / f"{name.replace(' ', '-')}.tap"
    command = _node_test(node, report, [str(path) for path in browser.PAGE_TESTS])
    return tap_outcome(name, report, runner(command, {**environment, **needed}))


def _absent(name: str, reason: str, tests: int = 1) -> Outcome:
    """What could not run here: told and counted as skipped, but a failure on a build server."""
    on_build_server = os.environ.get("CI", "").lower() in ("1", "true")
    return Outcome(name, 0, int(on_build_server), 0 if on_build_server else tests, note=reason)


def _node_test(node: browser.Node, report: Path, files: Sequence[str]) -> list[str]:
    reporters = ["--test-reporter=spec", "--test-reporter-destination=stdout"]
    reporters += ["--test-reporter=tap", f"--test-reporter-destination={report}"]
    # a file of the page's tests has a server and a browser of its own, which wait for each other
    return [str(node.program), "--test", "--test-concurrency=2", *reporters, *files]


def tap_outcome(name: str, report: Path, code: int) -> Outcome:
    """Counts from the closing comments of a TAP report (`# pass 12`)."""
    text = report.read_text(encoding="utf-8") if report.is_file() else ""
    counts = {
        key: int(value) for key, value in re.findall(r"^# (pass|fail|cancelled|skipped) (\d+)$", text, re.MULTILINE)
    }
    bad = counts.get("fail", 0) + counts.get("cancelled", 0)
    if code != 0 and bad == 0:
        bad = 1
    found = re.findall(r"^not ok \d+ - (.*)\n  ---\n((?:  .*\n)*?)  \.\.\.", text, re.MULTILINE)
    failures = tuple(_failure(test, details) for test, details in found)
    return Outcome(name, counts.get("pass", 0), bad, counts.get("skipped", 0), failures=failures)


def _close(outcomes: Sequence[Outcome], seconds: float) -> int:
    if any(one.failures for one in outcomes):
        _heading("failures")
    for one in outcomes:
        for failure in one.failures:
            say(f"{one.name}: {failure}\n")
    _heading("summary")
    for one in outcomes:
        note = f"  ({one.note})" if one.note else ""
        say(f"{one.name:<14} {one.passed:>5} passed {one.failed:>4} failed {one.skipped:>4} skipped{note}")
    passed, failed, skipped = (sum(getattr(one, key) for one in outcomes) for key in ("passed", "failed", "skipped"))
    say(f"{passed} passed, {failed} failed, {skipped} skipped in {seconds:.0f}s")
    return 1 if failed or not passed else 0
