"""The virtual environment: a genuine venv and a genuine pip, with an index on disk."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from launcher import packages
from launcher.console import Step
from launcher.errors import LaunchError
from launcher.layout import ROOT, Layout

from .conftest import make_wheel, without_network

pytestmark = pytest.mark.long_file

needs_posix = pytest.mark.skipif(os.name == "nt", reason="stands in for Python with a shell script")


def a_group(folder: Path, *lines: str, name: str = "small") -> packages.Group:
    file = folder / f"{name}.txt"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return packages.Group(name, file)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "index"
    make_wheel(folder, "bf_first", "1.0")
    make_wheel(folder, "bf_first", "2.0")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in without_network(folder).items():
        monkeypatch.setenv(name, value)
    return folder


def version_in(layout: Layout, package: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([str(layout.python), "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_a_set_up_its_second_run_an_upgrade_a_failure_and_a_cut_off_one(
    layout: Layout, tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = a_group(tmp_path, "bf_first==1.0  # with a comment")
    packages.ensure_packages(layout, [group])
    assert version_in(layout, "bf_first") == "1.0"
    assert packages.missing_groups(layout, [group]) == []
    assert not layout.incomplete.exists() and not layout.temporary.exists()

    with monkeypatch.context() as patched:  # a second run only reads the stamp
        patched.setattr(packages, "run_pip", lambda *_: pytest.fail("pip was started"))
        packages.ensure_packages(layout, [group])

    newer = a_group(tmp_path, "bf_first==2.0")
    assert packages.missing_groups(layout, [newer]) == [newer]
    packages.ensure_packages(layout, [newer])
    assert version_in(layout, "bf_first") == "2.0"

    # What pip cannot find leaves the environment and its stamp alone.
    with pytest.raises(LaunchError, match="knows no bf_nowhere==9 at all"):
        packages.ensure_packages(layout, [newer, a_group(tmp_path, "bf_nowhere==9", name="other")])
    assert packages.missing_groups(layout, [newer]) == []
    assert version_in(layout, "bf_first") == "2.0"

    # Cut off while packages were being written: nothing in the environment is relied on, and it is made anew.
    layout.incomplete.write_text("")
    (next(layout.venv.rglob("bf_first.py"))).unlink()
    assert packages.missing_groups(layout, [newer]) == [newer]
    packages.ensure_packages(layout, [newer])
    assert next(layout.venv.rglob("bf_first.py")).is_file()
    assert packages.missing_groups(layout, [newer]) == []


def stand_in_python(layout: Layout, script: str) -> None:
    layout.python.parent.mkdir(parents=True, exist_ok=True)
    layout.python.write_text(f"#!/bin/sh\n{script}\n")
    layout.python.chmod(0o755)


@needs_posix
def test_a_failure_while_packages_are_written_marks_the_environment(layout: Layout) -> None:
    stand_in_python(
        layout, "echo Installing collected packages: a; echo 'ERROR: [Errno 28] No space left on device'; exit 1"
    )
    with Step("Trying") as step, pytest.raises(LaunchError, match=r"disk is full\. Free about"):
        packages.run_pip(layout, ["install", "a"], step)
    assert layout.incomplete.exists()
    assert packages.installed_digests(layout) == {}


@needs_posix
def test_a_failure_before_that_does_not(layout: Layout) -> None:
    stand_in_python(layout, "echo Collecting a; echo 'ERROR: something odd'; exit 1")
    with Step("Trying") as step, pytest.raises(LaunchError, match="something odd"):
        packages.run_pip(layout, ["install", "a"], step)
    assert not layout.incomplete.exists()


@needs_posix
def test_pip_is_ended_with_the_command_that_started_it(layout: Layout) -> None:
    stand_in_python(layout, "echo Collecting a; exec sleep 60")

    class Stopping(Step):
        def note(self, text: str) -> None:
            raise KeyboardInterrupt

    started = time.monotonic()
    with Stopping("Trying") as step, pytest.raises(KeyboardInterrupt):
        packages.run_pip(layout, ["install", "a"], step)
    assert time.monotonic() - started < 10


@needs_posix
def test_settings_that_would_send_packages_elsewhere_are_not_passed_on(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("PIP_USER", "PIP_TARGET", "PYTHONPATH"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("PIP_PROXY", "http://proxy.invalid")
    stand_in_python(layout, f'env > {tmp_path / "seen"}; test -d "$TMPDIR"')
    with Step("Trying") as step:
        packages.run_pip(layout, ["install", "a"], step)
    seen = (tmp_path / "seen").read_text()
    assert "PIP_USER" not in seen and "PIP_TARGET" not in seen and "PYTHONPATH" not in seen
    assert "PIP_PROXY=http://proxy.invalid" in seen
    assert f"TMPDIR={layout.temporary}" in seen


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "Retrying after NewConnectionError: Failed\nERROR: No matching distribution found for torch",
            "could not be reached",
        ),
        ("Temporary failure in name resolution", "could not be reached"),
        ("SSLError(SSLCertVerificationError(1, 'CERTIFICATE_VERIFY_FAILED'))", "certificate was not accepted"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("(from versions: 2.9)\nERROR: No matching distribution found for torch==2.11.0", "offers no torch==2.11.0"),
        (
            "(from versions: none)\nERROR: No matching distribution found for torch==2",
            "could not be reached, or it knows",
        ),
        ("ERROR: Cannot install a and b because they conflict.", "Cannot install a and b"),
        ("Killed", "Killed"),
        ("", "no message"),
    ],
)
def test_pips_words_become_a_sentence_and_a_remedy(words: str, sentence: str, tmp_path: Path) -> None:
    error = packages.explain_pip_failure(words, tmp_path / "pip.log")
    assert sentence in error.problem
    assert error.problem.endswith((".", "conflict.", "Killed", "no message"))
    assert "same command again" in error.remedy or "another Python" in error.remedy


def test_too_little_space_is_said_before_anything_is_written(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = packages.shutil.disk_usage(layout.run_dir)
    monkeypatch.setattr(packages.shutil, "disk_usage", lambda path: usage._replace(free=packages.GIB))
    with pytest.raises(LaunchError, match=r"needs \d+\.\d GB under .* and 1\.0 GB are free\. Free some"):
        packages.ensure_packages(layout, [packages.HOST])
    assert not layout.venv.exists()


def test_a_python_without_ensurepip_names_the_system_package(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = subprocess.CompletedProcess(
        [], 1, stdout="The virtual environment was not created: ensurepip is not available", stderr=""
    )
    monkeypatch.setattr(packages.subprocess, "run", lambda *_, **__: answer)
    monkeypatch.setattr(packages, "_require_space", lambda *_: None)
    with pytest.raises(LaunchError, match=r"apt install python3\.\d+-venv"):
        packages.ensure_packages(layout, [packages.HOST])
    assert layout.incomplete.exists(), "half an environment must not be taken for a whole one"


@pytest.mark.parametrize("stamp", ["", "[]", '{"groups": 3}', '{"groups": {"host": null}}', "{}"])
def test_a_damaged_stamp_counts_as_nothing_installed(layout: Layout, stamp: str) -> None:
    layout.python.parent.mkdir(parents=True)
    layout.python.write_text("")
    layout.stamp.write_text(stamp)
    assert packages.missing_groups(layout, [packages.HOST]) == [packages.HOST]


def test_the_stamp_follows_included_lists(layout: Layout, tmp_path: Path) -> None:
    inner = tmp_path / "inner.txt"
    inner.write_text("a==1\n")
    group = a_group(tmp_path, "-r inner.txt", "b==1")
    before = group.digest
    inner.write_text("a==2\n")
    assert group.digest != before
    assert packages.Group("small", group.file, extra=("c==1",)).digest != group.digest


def test_a_host_names_the_versions_of_its_page(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text(
        "comfyui-frontend-package==1.2.3\ntorch\ncomfyui-embedded-docs==0.1\ncomfy-aimdo==1\n"
    )
    assert packages.page_group(tmp_path).extra == ("comfyui-frontend-package==1.2.3", "comfyui-embedded-docs==0.1")
    assert packages.page_group(tmp_path / "nowhere").extra == ()


def test_every_installed_list_is_pinned_exactly() -> None:
    for file in (ROOT / "requirements").glob("*.txt"):
        for line in packages.requirement_lines(file):
            assert "==" in line, f"{file.name}: {line}"


def test_the_demo_side_is_covered_by_the_host_list(layout: Layout) -> None:
    digests = {"host": packages.HOST.digest, "client": packages.CLIENT.digest}
    layout.python.parent.mkdir(parents=True)
    layout.python.write_text("")
    layout.stamp.write_text(json.dumps({"groups": digests}))
    assert packages.missing_groups(layout, [packages.CLIENT, packages.HOST]) == []
    assert packages.HOST.contains == ("client",)
