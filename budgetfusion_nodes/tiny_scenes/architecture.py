"""The shape of the Tiny Scenes model, shared by its training and by the host adapter. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_SIZE = 64
PATCH = 4
"""The UNet folds 4 x 4 pixels into 48 channels, so it works on a 16 x 16 grid."""
PATCH_CHANNELS = 3 * PATCH * PATCH
TEXT_WIDTH = 128
TEXT_LAYERS = 3
TEXT_HEADS = 4
MAX_TOKENS = 48
MODEL_CHANNELS = 64
CHANNEL_MULT = (1, 2, 2)
TRANSFORMER_DEPTH = (0, 1, 1)
"""Transformer blocks a level: none at 16 x 16, one at 8 x 8, one at 4 x 4."""
NUM_HEADS = 4
PIXEL_SCALE = 1.0
"""Pixels in [-1, 1] have a standard deviation near .6; v-prediction is at home near 1 and needs no exact value."""
HINTS = 9
"""Channels a pixel that the UNet gives the pixel head beside its drawing."""
HEAD_CHANNELS = 16
"""Width of the pixel head: three 3 x 3 convolutions at full resolution, which set the edges inside the patches."""
MARKER_KEY = "model.diffusion_model.tiny_scenes_version"
VERSION = 2

UNET_CONFIG = {
    "image_size": IMAGE_SIZE // PATCH,
    "in_channels": PATCH_CHANNELS,
    "out_channels": (3 + HINTS) * PATCH * PATCH,
    "model_channels": MODEL_CHANNELS,
    "num_res_blocks": [1] * len(CHANNEL_MULT),
    "channel_mult": CHANNEL_MULT,
    "num_heads": NUM_HEADS,
    "num_head_channels": -1,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "context_dim": TEXT_WIDTH,
    "num_classes": "sequential",
    "adm_in_channels": TEXT_WIDTH,
    "legacy": False,
}
"""Arguments of the host's UNetModel for training; at load the host reads the same ones from the weights' shapes."""


def text_config(vocabulary_size: int) -> dict[str, object]:
    """A CLIP text configuration, in the words that transformers and the host share."""
    return {
        "vocab_size": vocabulary_size,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "projection_dim": TEXT_WIDTH,
        "num_hidden_layers": TEXT_LAYERS,
        "num_attention_heads": TEXT_HEADS,
        "max_position_embeddings": MAX_TOKENS,
        "hidden_act": "gelu",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }


def discrete_sigmas(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """The host's default ModelSamplingDiscrete (betas linear in the square root, as in SD): [steps], rising."""
    import torch

    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64, device="cpu") ** 2
    alphas = torch.cumprod(1 - betas, 0)
    return ((1 - alphas) / alphas).sqrt().float()
