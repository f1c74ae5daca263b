"""The genuine host's CLIP_VISION, random weights, in its own process: one host a process, and none in this one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CANDIDATES = [*sorted((ROOT / ".run" / "host").glob("*")), Path(os.environ.get("COMFYUI_PATH", "-"))]
HOSTS = [p for p in CANDIDATES if (p / "comfy" / "clip_vision.py").is_file()]

PROGRAM = """
import json, sys
host, root = sys.argv[1:3]
sys.path[:0] = [host, root]
from comfy.cli_args import args
args.cpu = True
import comfy.clip_vision
import torch
from budgetfusion_nodes.metrics.backends import load_d_sim
from budgetfusion_nodes.metrics.encoders import HostClipVisionEncoder
from budgetfusion_nodes.metrics.measure import Backends, measure

torch.manual_seed(0)
clip_vision = comfy.clip_vision.ClipVisionModel(sys.argv[3])
for parameter in clip_vision.model.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
encoder = HostClipVisionEncoder(clip_vision)
x = torch.rand(3, 48, 80, 3)
with torch.no_grad():
    own = clip_vision.encode_image(x, crop=False).image_embeds.float()
distances = measure(x, x[:1], Backends(load_d_sim("haarpsi"), encoder))
weight = clip_vision.model.state_dict()["visual_projection.weight"]
weight[0, 0] += 1.0
tuned = HostClipVisionEncoder(clip_vision).name
weight[0, 0] -= 1.0
twin = comfy.clip_vision.ClipVisionModel(sys.argv[3])
twin.load_sd({key: value.half() for key, value in clip_vision.get_sd().items()})
cosine = torch.nn.functional.cosine_similarity(own, own[:1])
print(json.dumps({
    "name": encoder.name,
    "tuned": tuned,
    "in_half": HostClipVisionEncoder(twin).name,
    "names": Backends(load_d_sim("haarpsi"), encoder).names(),
    "embeddings_differ_by": float((encoder.encode(x.permute(0, 3, 1, 2)) - own).abs().max()),
    "i_clip": distances["i_clip"].tolist(),
    "expected": (1 - cosine).tolist(),
}))
"""


CONFIG = {
    "model_type": "clip_vision_model",
    "hidden_act": "gelu",
    "hidden_size": 32,
    "image_size": 32,
    "intermediate_size": 64,
    "layer_norm_eps": 1e-5,
    "num_attention_heads": 2,
    "num_channels": 3,
    "num_hidden_layers": 2,
    "patch_size": 8,
    "projection_dim": 16,
}


@pytest.mark.skipif(not HOSTS, reason="no genuine ComfyUI; run.py test brings one")
@pytest.mark.parametrize("host", HOSTS, ids=lambda p: p.name)
def test_the_hosts_own_embeddings(host: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG), encoding="utf-8")
    command = [sys.executable, "-c", PROGRAM, str(host), str(ROOT), str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["name"] == result["names"]["i_clip"]
    assert re.fullmatch(r"clip_vision:clip-32-8-32#[0-9a-f]{8}", result["name"])
    assert result["tuned"] != result["name"]
    assert result["in_half"] == result["name"]
    assert result["embeddings_differ_by"] == 0.0
    assert result["i_clip"][0] < 1e-5
    assert result["i_clip"] == pytest.approx(result["expected"], abs=1e-5)
    assert min(result["i_clip"][1:]) > 1e-5
