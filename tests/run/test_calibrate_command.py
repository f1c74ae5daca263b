"""`python -m budgetfusion_nodes calibrate` run from a copy of the pack: in one genuine server, or two."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors import safe_open

from budgetfusion_nodes.calibration.store import Store

pytestmark = pytest.mark.long_file

ROOT = Path(__file__).resolve().parents[2]
NOT_SHIPPED = shutil.ignore_patterns(".*", "__pycache__", "demo_out", "node_modules", "tests", "research")
COUNTS, COLOURS = ("two", "three", "four"), ("red", "green", "white", "yellow")
CAPTIONS = [f"{n} small {c} circles on a blue background" for n in COUNTS for c in COLOURS]


@dataclass(frozen=True)
class Installed:
    """A base directory of ComfyUI with the pack in it, and the shell in the pack's folder."""

    base: Path
    host: Path

    @property
    def pack(self) -> Path:
        return self.base / "custom_nodes" / "budgetfusion"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "COMFYUI_PATH": str(self.host), "PWD": str(self.pack), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "budgetfusion_nodes", *arguments]
        places = ["--base-directory", str(self.base), "--json"]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([*command, *places], cwd=self.pack, env=environment, **pipes)

    def result(self, running: subprocess.Popen[str]) -> Any:
        printed, errors = running.communicate(timeout=580)
        assert running.returncode == 0, errors[-3000:]
        return json.loads(printed)

    def calibration(self, *more: str) -> subprocess.Popen[str]:
        options = ["--checkpoint", "own.safetensors", "--sampler", "euler", "--scheduler", "normal", "--cfg", "3"]
        options += ["--steps", "4", "--width", "64", "--height", "64", "--name", "from the shell"]
        options += ["--prompts", str(self.base / "prompts.txt"), "--comfyui-option=--disable-api-nodes"]
        # no page is asked for, and the package that holds it need not be there
        options += [f"--comfyui-option=--front-end-root={self.base / 'page'}"]
        options += ["--comfyui-option=--database-url=sqlite:///:memory:"]
        return self.start("calibrate", *options, *more)

    @property
    def measured(self) -> int:
        store = self.base / "user" / "budgetfusion" / "calibration.sqlite3"
        if not store.is_file():
            return 0
        with closing(Store.at(store)) as opened:
            return sum(one.measurements for one in opened.contents())


def install(base: Path, host: Path, pack: Path | None = None) -> Installed:
    made = Installed(base, host)
    made.pack.parent.mkdir(parents=True)
    if pack is None:
        shutil.copytree(ROOT, made.pack, ignore=NOT_SHIPPED)
    else:
        made.pack.symlink_to(pack, target_is_directory=True)
    checkpoints = base / "models" / "checkpoints"
    checkpoints.mkdir(parents=True)
    shutil.copy(ROOT / "weights/checkpoints/tiny_scenes.safetensors", checkpoints / "own.safetensors")
    (base / "page").mkdir()
    (base / "prompts.txt").write_text("\n".join(CAPTIONS))
    return made


@pytest.fixture(scope="module")
def alone(host_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """Where one server has calibrated."""
    made = install(tmp_path_factory.mktemp("alone") / "base", host_dir)
    shown = made.result(made.calibration())
    assert shown["file"] == "from the shell.safetensors"
    assert shown["prompts"] == len(CAPTIONS)
    yield made


def planner(installed: Installed) -> tuple[Any, dict[str, bytes]]:
    """Description and tensors; the file may hold them in another order."""
    path = installed.base / "models" / "budgetfusion" / "from the shell.safetensors"
    with safe_open(path, framework="numpy") as opened:
        return opened.metadata(), {key: opened.get_tensor(key).tobytes() for key in opened.keys()}  # noqa: SIM118


def test_a_checkpoint_becomes_a_planner_from_the_shell(alone: Installed) -> None:
    listed = alone.result(alone.start("planners", "list"))
    assert "from the shell.safetensors" in [row["file"] for row in listed]
    (setting,) = alone.result(alone.start("store", "info"))["settings"]
    assert setting["prompts"] == len(CAPTIONS)


def servers(installed: Installed) -> list[psutil.Process]:
    """The ComfyUIs that run on this base directory; not the guards that started them."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if str(installed.base) in command and len(command) > 1 and command[1].endswith("main.py"):
            found.append(process)
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="a symbolic link to the pack needs rights on Windows")
def test_two_workers_one_of_which_is_killed_give_the_planner_of_one(alone: Installed, tmp_path: Path) -> None:
    many = install(tmp_path / "base", alone.host, alone.pack)
    running = many.calibration("--ray", "--workers", "2")
    while many.measured < 6 and running.poll() is None:
        time.sleep(0.1)
    assert running.poll() is None, running.communicate()[1][-3000:]
    killed = servers(many)[0]
    killed.kill()
    shown = many.result(running)
    assert shown["throughput"]["workers"] == 2
    assert shown["throughput"]["replaced"] == 1
    assert shown["throughput"]["renders"] == many.measured == alone.measured, "nothing is lost and nothing stands twice"
    assert planner(many) == planner(alone)
    assert servers(many) == [], "every server ends with the command"
