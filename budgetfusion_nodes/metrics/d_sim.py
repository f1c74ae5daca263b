"""D-SIM: mid-level perceptual similarity of two images; 1 is identical. The backend decides the number, so name it.

`1 - distance` for DreamSim (Fu et al. 2023, arXiv 2306.09344) and LPIPS (Zhang et al. 2018, arXiv 1801.03924), and the
index itself for HaarPSI (Reisenhofer et al. 2018, arXiv 1607.06140), which is in [0, 1].
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from .backends import DSimBackend, check_side, load_d_sim
from .images import to_pair

HIGHER_IS_BETTER = True

_log = logging.getLogger(__name__)


def d_sim(x: Tensor, y: Tensor, backend: str | DSimBackend = "auto") -> Tensor:
    """Similarity `[B]` of x and y, `[B, H, W, 3]` or `[B, 3, H, W]` in [0, 1]; y may hold one image for all.

    backend: a loaded backend, or a name for `load_d_sim`. "auto" takes the first one available of dreamsim, lpips and
    haarpsi; the choice is logged, and callers that store the number load the backend themselves and store its `.name`.
    """
    a, b = to_pair(x, y)
    if isinstance(backend, str):
        wanted, backend = backend, load_d_sim(backend)
        if wanted == "auto":
            _log.info("d_sim: auto chose %s", backend.name)
    check_side(a, backend)
    with torch.no_grad():
        return backend.similarity(a, b.expand_as(a))
