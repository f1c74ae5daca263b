"""Slight noise, blur and shift, so that a classifier of clean renderings also understands generated pictures."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def augment(
    images: Tensor, generator: torch.Generator, *, noise: float = 0.06, blur: float = 1.2, shift: int = 2
) -> Tensor:
    """`images` [B, 3, H, W] in [0, 1], changed: half get Gaussian noise of deviation up to `noise`, a third
    a Gaussian blur of up to `blur` pixels, all are moved by up to `shift` pixels (the border is repeated)."""
    count = len(images)
    images = shift_each(images, torch.randint(-shift, shift + 1, (count, 2), generator=generator))
    blurred = torch.nonzero(torch.rand(count, generator=generator) < 1 / 3)[:, 0]
    sigma = 0.3 + (blur - 0.3) * torch.rand((), generator=generator).item()
    if len(blurred):
        images[blurred] = gaussian_blur(images[blurred], sigma)
    noisy = torch.nonzero(torch.rand(count, generator=generator) < 0.5)[:, 0]
    strength = noise * torch.rand((len(noisy), 1, 1, 1), generator=generator)
    images[noisy] += strength * torch.randn((len(noisy), *images.shape[1:]), generator=generator)
    return images.clamp(0, 1)


def shift_each(images: Tensor, offsets: Tensor) -> Tensor:
    """Moves image i by `offsets[i]` = (down, right) whole pixels; what comes in repeats the border."""
    height, width = images.shape[-2:]
    rows = (torch.arange(height) - offsets[:, :1]).clamp(0, height - 1)  # [B, H]
    columns = (torch.arange(width) - offsets[:, 1:]).clamp(0, width - 1)  # [B, W]
    batch = torch.arange(len(images))[:, None, None]
    moved = images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian of standard deviation `sigma` pixels, cut at three of them; the border is repeated."""
    reach = max(1, round(3 * sigma))
    offsets = torch.arange(-reach, reach + 1, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1)
    padded = functional.pad(images, (reach,) * 4, mode="replicate")
    across = functional.conv2d(padded, kernel[:, :, None, :], groups=images.shape[1])
    return functional.conv2d(across, kernel[:, :, :, None], groups=images.shape[1])
