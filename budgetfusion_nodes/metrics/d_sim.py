"""D-SIM: mid-level perceptual similarity of two images; 1 is identical. The backend decides the number, so name it.

`1 - distance` for DreamSim, shift-tolerant LPIPS and LPIPS, and the index itself for HaarPSI, which is in [0, 1].
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from .backends import load_d_sim
from .images import to_pair
from .interfaces import DSimBackend, check_side

HIGHER_IS_BETTER = True

_log = logging.getLogger(__name__)


def d_sim(x: Tensor, y: Tensor, backend: str | DSimBackend = "auto") -> Tensor:
    """Similarity `[B]` of x and y, `[B, H, W, 3]` or `[B, 3, H, W]` in [0, 1]; y may hold one image for all.

    backend: a loaded backend, or a name for `load_d_sim`. "auto" takes the first of names.D_SIM_ORDER
    that is available; the choice is logged, and callers that store the number load the backend themselves and
    store its `.name`.
    """
    a, b = to_pair(x, y)
    if isinstance(backend, str):
        wanted, backend = backend, load_d_sim(backend)
        if wanted == "auto":
            _log.info("d_sim: auto chose %s", backend.name)
    check_side(a, backend)
    with torch.no_grad():
        return backend.similarity(a, backend.prepare(b))
