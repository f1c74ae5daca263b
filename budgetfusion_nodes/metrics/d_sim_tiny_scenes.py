"""The D-SIM of the shipped models' pictures: features of the shipped image encoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .encoders import OpenClipImageEncoder, default_image_encoder
from .images import MIN_SIDE


class TinyScenesBackend:
    """What DreamSim is to photographs, for pictures of the embedded model: cosine similarity of learned features.

    The features are those of the middle block of the shipped image encoder, averaged over a grid of GRID x GRID cells.
    So colour, pattern and the rough place count, and a few pixels of movement do not. On a red disc of 28 pixels, as
    distances over the shipped planner's scale: moved by one pixel .03, by three .09, by sixteen .66; a ring in its
    place .14; blue 3.7. HaarPSI, which compares pixel by pixel, finds .37, .94, 1.4, .73 and .05. Known limit: shape
    counts little, a square of the same area .04 (L-SNR sees its edges: .7).
    """

    GRID = 4
    min_side = MIN_SIDE
    bytes_per_pixel = 100  # it looks at 64 x 64 pixels of any picture

    def __init__(self, encoder: OpenClipImageEncoder, name: str) -> None:
        """encoder: with open_clip's VisionTransformer, whose patches fill a square."""
        self.encoder, self.name = encoder, name

    def prepare(self, reference: Tensor) -> Tensor:
        return self._cells(reference)

    def similarity(self, x: Tensor, reference: Tensor) -> Tensor:
        return nn.functional.cosine_similarity(self._cells(x), reference, dim=-1).to(x.dtype)

    def to(self, device: torch.device) -> None:
        self.encoder.to(device)

    def _cells(self, images: Tensor) -> Tensor:
        """[B, GRID * GRID * width] of [B, 3, H, W]."""
        blocks = self.encoder.model.visual.transformer.resblocks
        seen: list[Tensor] = []
        handle = blocks[len(blocks) // 2].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            self.encoder.encode(images)
        finally:
            handle.remove()
        tokens = seen[0] if seen[0].shape[0] == images.shape[0] else seen[0].transpose(0, 1)  # older: [L, B, C]
        side = math.isqrt(tokens.shape[1])
        patches = tokens[:, -side * side :].float().transpose(1, 2)  # without the class token
        grid = patches.reshape(*patches.shape[:2], side, side)
        return nn.functional.adaptive_avg_pool2d(grid, self.GRID).flatten(1)


def load_tiny_scenes() -> TinyScenesBackend:
    """Over the shipped image encoder. BackendMissingError where the pack lacks it."""
    encoder = default_image_encoder()
    return TinyScenesBackend(encoder, "tiny_scenes:" + encoder.name.partition(":")[2])
