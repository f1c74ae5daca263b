"""The commands as a user meets them: one sentence, what to do, no traceback, a status other than 0."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher import cli, packages
from launcher.layout import ROOT, Layout
from launcher.lock import set_up_lock

from .conftest import without_network


def run(arguments: list[str], run_dir: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**without_network(), "BUDGETFUSION_RUN_DIR": str(run_dir), **environment},
    )


def assert_one_sentence(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stdout + done.stderr
    for word in words:
        assert re.search(word, done.stderr), done.stderr


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared, because making a genuine virtual environment takes seconds."""
    return tmp_path_factory.mktemp("shared") / "run"


def test_without_network_it_says_so_and_leaves_nothing_that_breaks_the_next_run(run_dir: Path) -> None:
    done = run(["demo"], run_dir)
    assert_one_sentence(done, "could not be reached", "Check the network", r"pip's own words are in .*\.log")
    layout = Layout(run_dir)
    assert not layout.incomplete.exists() and not layout.stamp.exists() and not layout.temporary.exists()
    assert layout.python.exists(), "the environment itself was made, and the next run goes on from there"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_pip_ends_with_a_launcher_that_is_killed_outright(run_dir: Path) -> None:
    with socket.socket() as index:  # Takes connections and never answers, as a network that hangs does.
        index.bind(("127.0.0.1", 0))
        index.listen()
        index.settimeout(30)
        url = f"http://127.0.0.1:{index.getsockname()[1]}/simple"
        environment = {**without_network(), "PIP_INDEX_URL": url, "BUDGETFUSION_RUN_DIR": str(run_dir)}
        launcher = subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), "demo"], env=environment, stdout=subprocess.DEVNULL
        )
        of_pip, _ = index.accept()
        with of_pip:
            of_pip.settimeout(5)
            assert of_pip.recv(4096).startswith(b"GET /simple/")
            launcher.kill()
            launcher.wait()
            assert of_pip.recv(4096) == b"", "pip still holds its connection"


def test_a_comfyui_path_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    done = run(["demo"], tmp_path / "run", COMFYUI_PATH=str(tmp_path))
    assert_one_sentence(done, "holds no ComfyUI", "Set COMFYUI_PATH to the folder that holds ComfyUI's main.py")
    assert not (tmp_path / "run").exists(), "nothing is set up for it"


def test_a_taken_port_is_refused_before_the_set_up(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        done = run(["demo", "--port", str(other.getsockname()[1])], tmp_path / "run")
    assert_one_sentence(done, r"Port \d+ is taken", "--port")
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_one_sentence(run(["demo"], tmp_path / "file" / "run"), "cannot be written to", "BUDGETFUSION_RUN_DIR")


def test_contradicting_options_are_refused(tmp_path: Path) -> None:
    assert_one_sentence(run(["demo", "--prompt", "a", "--held-out", "3"], tmp_path / "run"), "both given")


def test_a_file_in_place_of_the_output_folder_is_told_before_the_set_up(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    done = run(["demo", "--out", str(tmp_path / "taken")], tmp_path / "run")
    assert_one_sentence(done, "taken is a file, and a folder is needed", "Choose another name")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--quality", "1.2"], "quality must be from 0.5 to 0.99, and '1.2' was given"),
        (["demo", "--quality", "high"], "quality must be"),
        (["demo", "--quality", "nan"], "quality must be"),
        (["demo", "--port", "99999"], "the port must be from 1 to 65535"),
        (["demo", "--held-out", "0"], "the number must be"),
        (["demo", "--seed", "-1"], "the seed must be"),
        (["demo", "--prompt", " "], "the prompt is empty; write what the picture should show"),
        (["bench-nothing"], "invalid choice"),
        ([], "required"),
    ],
)
def test_wrong_options_are_explained(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_an_intel_mac_is_told_before_pip_fails(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.sys, "platform", "darwin")
    monkeypatch.setattr(cli.platform, "machine", lambda: "x86_64")
    assert cli.main(["demo"]) == 1
    assert "Intel" in capsys.readouterr().err
    assert not layout.venv.exists()


def test_a_full_disk_in_the_middle_is_one_sentence(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packages, "ensure_packages", full)
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().err.startswith("Error: The disk is full. Free some space")


def test_ctrl_c_is_quiet(layout: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(packages, "ensure_packages", interrupted)
    assert cli.main(["demo"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_one_set_up_at_a_time(layout: Layout, tmp_path: Path) -> None:
    code = (
        "from launcher.lock import set_up_lock; from launcher.layout import Layout\n"
        "with set_up_lock(Layout.from_environment()): print('inside', flush=True)\n"
    )
    with set_up_lock(layout):
        other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert "waiting for it" in other.stdout.readline()
        time.sleep(0.2)
        assert other.poll() is None
    assert other.stdout.readline() == "inside\n"
    assert other.wait(10) == 0
    other.stdout.close()


def test_main_leaves_the_terminals_ctrl_c_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert signal.getsignal(signal.SIGINT) is before
