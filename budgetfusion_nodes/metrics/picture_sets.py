"""Plain features of a picture, by which sets of pictures of different seeds are compared. They need no weights."""

from __future__ import annotations

import torch
from torch import Tensor

from .images import luminance

SIDE = 8
BANDS = 16
FLOOR = 1e-6
"""Power below which a band is empty; pixels lie in [0, 1]."""


def low_pass(x: Tensor) -> Tensor:
    """[B, 3 * SIDE^2] mean colours of SIDE x SIDE equal parts; x: [B, 3, H, W] in [0, 1]."""
    return torch.nn.functional.interpolate(x.float(), (SIDE, SIDE), mode="area").flatten(1)


def power_spectrum(x: Tensor) -> Tensor:
    """[B, BANDS] log of luminance's mean power in equal bands of frequency, 0 to half a cycle a pixel; x as above."""
    grey = luminance(x.float()).squeeze(1)
    power = torch.fft.rfft2(grey - grey.mean((1, 2), keepdim=True), norm="ortho").abs().square()
    rows = torch.fft.fftfreq(grey.shape[1], device=x.device)[:, None]
    columns = torch.fft.rfftfreq(grey.shape[2], device=x.device)[None]
    band = ((rows.square() + columns.square()).sqrt() * 2 * BANDS).long().clamp(max=BANDS - 1).flatten()
    one = torch.zeros(BANDS, device=x.device)
    counts = one.index_add(0, band, torch.ones_like(band, dtype=torch.float32)).clamp_min(1.0)
    sums = torch.zeros(x.shape[0], BANDS, device=x.device).index_add(1, band, power.flatten(1))
    return (sums / counts + FLOOR).log()
