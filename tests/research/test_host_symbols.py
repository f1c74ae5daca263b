"""Which symbols of the host a source file uses."""

from __future__ import annotations

import pytest

from research.host_symbols import GIVEN, Reader


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import comfy.utils\ncomfy.utils.load_torch_file(x)", {"comfy.utils.load_torch_file"}),
        ("import comfy.sd as sd\nsd.VAE()", {"comfy.sd.VAE"}),
        ("from comfy_api.latest import io\nio.Int.Input('n')", {"comfy_api.latest.io.Int.Input"}),
        ("import importlib\nx = importlib.import_module('comfy.sample')\nx.sample()", {"comfy.sample.sample"}),
        ("importlib.import_module('nodes').VAEDecode().decode(v)", {"nodes.VAEDecode"}),
        ("host = sys.modules['folder_paths']\nhost.models_dir", {"folder_paths.models_dir"}),
        (
            "def made():\n    return importlib.import_module('comfy.samplers')\nmade().KSampler",
            {"comfy.samplers.KSampler"},
        ),
        ("def f(model):\n    return model.clone()", {"comfy.model_patcher.ModelPatcher.clone"}),
        (
            "def f(model):\n    own = model.clone()\n    own.add_patches({})",
            {"comfy.model_patcher.ModelPatcher.clone", "comfy.model_patcher.ModelPatcher.add_patches"},
        ),
        ("getattr(importlib.import_module('comfy.ops'), 'cast', None)", {"comfy.ops"}),
        ("import torch\nfrom .nodes import thing\nthing.other", set()),
    ],
)
def test_reader(source: str, found: set[str]) -> None:
    assert Reader(GIVEN).read(source) == found
