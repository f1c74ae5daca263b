"""Which GPU a worker's ComfyUI gets: a genuine Ray that is told of GPUs, and a ComfyUI that says what it sees."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import ray

from budgetfusion_nodes.command_line import ray_executor
from budgetfusion_nodes.command_line.comfyui import ServerGone

pytestmark = pytest.mark.long_file

COMFYUI = """
import os, pathlib, sys
seen = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
pathlib.Path(__file__).with_name(f"{os.getpid()}.seen").write_text(seen)
sys.exit("nothing to serve")
"""


def test_every_worker_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(ray_executor, "STARTS_IN_VAIN", 0)
    monkeypatch.setattr(ray, "init", functools.partial(ray.init, num_gpus=2))
    (tmp_path / "main.py").write_text(COMFYUI)
    given = ({"1": {"class_type": "x", "inputs": {}}}, "1", str(tmp_path), str(tmp_path), ["--cpu"])
    connected, workers, place = ray_executor.connect("local", None)
    try:
        assert workers == 2, "one a GPU"
        with pytest.raises(ServerGone, match="nothing to serve"):
            ray_executor.RayExecutor(connected, workers, place, lambda actor: actor.remote(*given))
    finally:
        connected.shutdown()
    assert sorted(path.read_text() for path in tmp_path.glob("*.seen")) == ["0", "1"]
