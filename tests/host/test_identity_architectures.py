"""The identity of other architectures, small and with random weights, and of networks of a thousand matrices."""

from __future__ import annotations

import collections
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn


def test_large_networks_are_sampled_from_all_layers(pack: Any) -> None:
    """Of a thousand matrices those looked at do not follow the rhythm of the blocks."""
    weights = pack("host.weights")
    kinds = ("attn.k", "attn.q", "attn.v", "mlp")
    network = torch.nn.Module()
    for block in range(256):
        for kind in kinds:
            layer = torch.nn.Linear(8, 8, bias=False)
            network.add_module(f"{block:03d}_{kind}".replace(".", "_"), layer)
    model = SimpleNamespace(model=SimpleNamespace(diffusion_model=network))
    names = [name for name, _ in weights.original_weights(model, network)]
    assert len(names) == weights.MATRICES
    counts = collections.Counter(name[4:] for name in names)
    assert min(counts.values()) > weights.MATRICES / len(kinds) / 2
    assert len({name[:2] for name in names}) == 26


SMALL = {
    "WAN21_T2V": {"image_model": "wan2.1", "model_type": "t2v", "dim": 256, "ffn_dim": 512, "num_heads": 2}
    | {"num_layers": 2, "in_dim": 16, "out_dim": 16, "text_dim": 64},
    "QwenImage": {"image_model": "qwen_image", "num_layers": 2, "num_attention_heads": 2, "joint_attention_dim": 64},
    "SD3": {"in_channels": 16, "depth": 2, "input_size": None, "adm_in_channels": 64, "num_patches": 64}
    | {"pos_embed_max_size": 8, "pos_embed_scaling_factor": None, "patch_size": 2, "context_processor_layers": None}
    | {"context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 128}}},
    "SDXL": {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1, 1]}
    | {"transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 1, 1], "channel_mult": [1, 2]}
    | {"transformer_depth_middle": 1, "context_dim": 64, "num_heads": -1, "num_head_channels": 32}
    | {"use_linear_in_transformer": True, "adm_in_channels": 64, "num_classes": "sequential"}
    | {"use_temporal_attention": False, "use_spatial_transformer": True, "legacy": False},
}


def small(name: str, dtype: torch.dtype, weights: Mapping[str, Tensor] | None) -> Any:
    config = getattr(sys.modules["comfy.supported_models"], name)(dict(SMALL[name]))
    config.set_inference_dtype(dtype, None)
    with torch.inference_mode():
        model = config.get_model({}, "")
        if weights is not None:
            model.diffusion_model.load_state_dict(dict(weights))
    return sys.modules["comfy.model_patcher"].ModelPatcher(model, CPU, CPU)


def random_weights(name: str, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    shapes = small(name, torch.float32, None).model.diffusion_model.state_dict()
    return {key: torch.randn(value.shape) for key, value in shapes.items()}


@pytest.mark.parametrize("name", SMALL)
def test_each_architecture(session: Any, read: Any, name: str) -> None:
    del session
    weights = random_weights(name, 0)
    found = {read(small(name, dtype, weights)).fingerprint for dtype in (torch.float32, torch.bfloat16, FP8)}
    assert len(found) == 1
    assert None not in found
    assert read(small(name, torch.float32, random_weights(name, 1))).fingerprint not in found
    assert read(small(name, torch.float32, weights)).sampling.prediction
