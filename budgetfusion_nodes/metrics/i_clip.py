"""I-CLIP: semantic similarity of two images, the cosine of their image embeddings (the CLIP-I score)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..core.errors import InputError
from .images import to_pair
from .interfaces import ImageEncoder

HIGHER_IS_BETTER = True
DATA_RANGE = (-1.0, 1.0)


def i_clip(x: Tensor, y: Tensor, encoder: ImageEncoder) -> Tensor:
    """Cosine `[B]` in [-1, 1] of the embeddings of x and y, `[B, H, W, 3]` or `[B, 3, H, W]` in [0, 1].

    y may hold one image for all of x; then it is encoded once.
    """
    a, b = to_pair(x, y)
    with torch.no_grad():
        return cosine(encoder.encode(a), encoder.encode(b))


def cosine(u: Tensor, v: Tensor) -> Tensor:
    """Cosine `[B]` of embeddings `[B, D]` and `[B or 1, D]`.

    Written as 1 - |u - v|^2 / 2 of the unit vectors, which is the same number, but exact for equal embeddings and free
    of cancellation near 1, where nearly converged renders lie.
    """
    u, v = u.float(), v.float().to(u.device)
    norms = torch.cat([u, v]).norm(dim=1)
    if not bool((torch.isfinite(norms) & (norms > 0)).all()):
        raise InputError(
            "i_clip: the image encoder returned an empty or infinite embedding. Its weights are damaged or its "
            "precision is too low: load it again, or choose another encoder."
        )
    return 1.0 - (normalize(u, dim=1) - normalize(v, dim=1)).square().sum(dim=1) / 2.0
