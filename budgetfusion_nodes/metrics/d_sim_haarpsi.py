"""HaarPSI (Reisenhofer et al. 2018, arXiv 1607.06140): a similarity of Haar wavelet responses, without weights."""

from __future__ import annotations

import torch
from torch import Tensor

from .weights import require_package


class HaarPsiBackend:
    """HaarPSI of piq, in [0, 1]. Its three Haar scales span 16 pixels. It compares pixel by pixel: see docs/metrics.md
    for what it makes of a picture moved by one."""

    name = "haarpsi"
    min_side = 16
    bytes_per_pixel = 150

    def __init__(self) -> None:
        require_package("piq", "haarpsi")
        from piq import haarpsi

        self._haarpsi = haarpsi

    def prepare(self, reference: Tensor) -> Tensor:
        return reference

    def similarity(self, x: Tensor, reference: Tensor) -> Tensor:
        score = self._haarpsi(x, reference.expand_as(x), reduction="none", data_range=1.0)
        # Two black images have no wavelet response at all, and piq's logit of eps / eps is infinite. They are equal.
        score = torch.where(torch.isfinite(score), score, torch.ones_like(score))
        return score.clamp(0.0, 1.0)

    def to(self, device: torch.device) -> None:
        """It has no weights."""
