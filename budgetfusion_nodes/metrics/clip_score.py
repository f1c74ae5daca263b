"""How well a picture fits its prompt: a level of meaning that needs no full-step image.

The CLIP score (Hessel et al. 2021, arXiv 2104.08718) is the cosine of picture and prompt in a joint embedding space.
Here the mean score with other prompts is taken off, so that what all pictures have in common cancels, and so that an
image encoder and a text encoder that were not trained together give 0 on average and can be told.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

NAME = "clip_score"
HIGHER_IS_BETTER = True
DATA_RANGE = (-2.0, 2.0)


def clip_score(images: Tensor, own: Tensor, others: Tensor) -> Tensor:
    """`[B]` of image embeddings `[B, D]`, the embedding `[D]` of their prompt and those `[J, D]` of other prompts."""
    with torch.no_grad():
        pictures = normalize(images.float(), dim=1)
        texts = normalize(torch.cat([own[None], others]).float().to(images.device), dim=1)
        scores = pictures @ texts.T  # [B, 1 + J]
        return scores[:, 0] - scores[:, 1:].mean(dim=1)
