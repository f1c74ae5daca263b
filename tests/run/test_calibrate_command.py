"""`python -m budgetfusion_nodes calibrate` as an artist runs it: a genuine server, from a copy of the pack."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_SHIPPED = shutil.ignore_patterns(".*", "__pycache__", "demo_out", "node_modules", "tests", "research")


def test_a_checkpoint_becomes_a_planner_from_the_shell(host_dir: Path, tmp_path: Path) -> None:
    pack = tmp_path / "base" / "custom_nodes" / "budgetfusion"
    shutil.copytree(ROOT, pack, ignore=NOT_SHIPPED)
    (tmp_path / "base" / "models" / "checkpoints").mkdir(parents=True)
    shutil.copy(
        ROOT / "weights/checkpoints/tiny_scenes.safetensors", tmp_path / "base/models/checkpoints/own.safetensors"
    )
    captions = [
        f"{n} small {c} circles on a blue background"
        for n in ("two", "three", "four")
        for c in ("red", "green", "white", "yellow")
    ]
    (tmp_path / "prompts.txt").write_text("\n".join(captions))
    options = ["--checkpoint", "own.safetensors", "--sampler", "euler", "--scheduler", "normal", "--cfg", "3"]
    options += ["--steps", "4", "--width", "64", "--height", "64", "--name", "from the shell"]
    options += ["--prompts", str(tmp_path / "prompts.txt"), "--base-directory", str(tmp_path / "base"), "--json"]
    options += ["--comfyui-option=--disable-api-nodes", "--comfyui-option=--database-url=sqlite:///:memory:"]
    page = tmp_path / "page"  # none is asked for, and the package that holds it need not be there
    page.mkdir()
    options.append(f"--comfyui-option=--front-end-root={page}")
    environment = {**os.environ, "COMFYUI_PATH": str(host_dir), "PWD": str(pack), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "budgetfusion_nodes"]
    done = subprocess.run(
        [*command, "calibrate", *options],
        cwd=pack,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shown = json.loads(done.stdout)
    assert shown["file"] == "from the shell.safetensors"
    assert shown["prompts"] == len(captions)
    places = ["--base-directory", str(tmp_path / "base"), "--json"]
    listed = subprocess.run(
        [*command, "planners", "list", *places], cwd=pack, env=environment, check=True, capture_output=True, text=True
    )
    assert "from the shell.safetensors" in [row["file"] for row in json.loads(listed.stdout)]
    info = subprocess.run(
        [*command, "store", "info", *places], cwd=pack, env=environment, check=True, capture_output=True, text=True
    )
    (setting,) = json.loads(info.stdout)["settings"]
    assert setting["prompts"] == len(captions)
