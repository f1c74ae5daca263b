"""What a D-SIM backend and an image encoder look like to the code that measures."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..core.errors import InputError


@runtime_checkable
class DSimBackend(Protocol):
    """A full-reference similarity. Inputs are checked `[B, 3, H, W]` in [0, 1], of one size, float32 or float64."""

    name: str
    """See names.py."""
    min_side: int
    """Smallest image side in pixels that its network or kernel can take."""
    bytes_per_pixel: int
    """Working memory for one picture and its reference, in bytes per pixel of one picture, weights not counted."""

    def prepare(self, reference: Tensor) -> Any:
        """What is computed of references `[1 or B, 3, H, W]` alone, once for all pictures compared with them."""
        ...

    def similarity(self, x: Tensor, reference: Any) -> Tensor:
        """`[B]` of x `[B, 3, H, W]` and what `prepare` gave; 1 for equal images, smaller for different ones."""
        ...

    def to(self, device: torch.device) -> None:
        """Moves the weights. Measuring moves them to the pictures by itself; this is for taking them away again."""
        ...


@runtime_checkable
class ImageEncoder(Protocol):
    """Turns checked images `[B, 3, H, W]` in [0, 1] of any size into embeddings `[B, D]`."""

    name: str

    def encode(self, x: Tensor) -> Tensor: ...

    def to(self, device: torch.device) -> None: ...


def check_side(x: Tensor, backend: DSimBackend) -> None:
    """InputError if `[B, 3, H, W]` is smaller than the backend's smallest side."""
    height, width = x.shape[2:]
    if min(height, width) < backend.min_side:
        raise InputError(
            f"images: {width} x {height} pixels is too small for {backend.name}, which needs {backend.min_side} on "
            "each side. Upscale the images, or choose the haarpsi backend."
        )
