"""The pictures that a sweep keeps: one PNG a trajectory, all its step counts side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from budgetfusion_nodes.core.errors import InputError

FOLDER = "images"
"""In the folder of the sweep."""


def strip_path(sweep: Path, prompt: int, noise: int) -> Path:
    """prompt: place in the prompt list; noise: the seed of the trajectory."""
    return sweep / FOLDER / f"{prompt:05d}-{noise}.png"


def save_strip(path: Path, images: Tensor) -> None:
    """images: [K, 3, H, W] in [0, 1]; 8-bit in the file."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    strip = torch.cat(list(images), dim=2).permute(1, 2, 0)
    Image.fromarray(strip.mul(255.0).round().byte().numpy()).save(path)


def read_strip(path: Path, counts: int) -> Tensor:
    """[K, 3, H, W] in [0, 1] of `save_strip`'s file. InputError where its width does not hold `counts` pictures."""
    from PIL import Image

    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    if pixels.shape[1] % counts:
        raise InputError(f"{path.name} is {pixels.shape[1]} pixels wide, which {counts} pictures cannot fill.")
    strip = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float().div(255)
    return torch.stack(strip.chunk(counts, dim=2))
