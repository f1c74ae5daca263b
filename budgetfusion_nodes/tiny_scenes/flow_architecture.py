"""The shape of Tiny Scenes Flow, shared by its training and by the host adapter. Imports nothing heavy.

The denoiser is the host's own MMDiT (joint attention of picture and text, as in Stable Diffusion 3; Esser et al. 2024,
arXiv 2403.03206) in small, on pixels; the text encoder and its words are those of Tiny Scenes (`architecture`).
"""

from __future__ import annotations

from .architecture import TEXT_WIDTH

PATCH = 4
"""Pixels a side of a patch: 64 x 64 pixels are 256 tokens."""
HEAD_WIDTH = 64
"""Fixed in the host's class, where the width is `depth` heads of this size."""
HEADS = 4
WIDTH = HEADS * HEAD_WIDTH
BLOCKS = 6
SHIFT = 3.0
"""Of the noise levels (sigma -> shift sigma / (1 + (shift - 1) sigma)), in training and as the host's default."""
TIME_SCALE = 1000.0
"""The network is told sigma times this, as the host's ModelSamplingDiscreteFlow does."""

FIXED_CONFIG = {
    "in_channels": 3,
    "patch_size": PATCH,
    "adm_in_channels": TEXT_WIDTH,
    "qk_norm": "rms",
}
"""By these shapes, which no other family has together, the host knows the file. The rest is read from the weights."""


def denoiser_config(width: int = WIDTH, blocks: int = BLOCKS) -> dict[str, object]:
    """Arguments of the host's MMDiT for training; at load the host reads the same ones from the weights' shapes.

    Without a table of positions the host computes them for any size, and always from 0 to 15 along the shorter side.
    """
    embedder = {"target": "torch.nn.Linear", "params": {"in_features": TEXT_WIDTH, "out_features": width}}
    return {
        **FIXED_CONFIG,
        "input_size": None,
        "out_channels": 3,
        "depth": width // HEAD_WIDTH,
        "num_blocks": blocks,
        "context_embedder_config": embedder,
    }
