"""The CLIP score of calibration pictures, where picture and prompt can be compared: the encoder that the pack ships for
Tiny Scenes has a text tower of its own; a connected CLIP_VISION is compared with the graph's own pooled output, if that
has its width. Whether both share one space is found out from the pictures: see core/no_reference.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..metrics.clip_score import clip_score
from ..metrics.encoders import SHIPPED_ENCODER, HostClipVisionEncoder, OpenClipImageEncoder
from ..metrics.interfaces import ImageEncoder
from ..tiny_scenes.encoder_text import tokenize

OTHERS = 8
"""Other prompts that a picture is compared with."""
LEAST_OTHERS = 2

Pooled = Callable[[str], Tensor | None]
"""Text -> the graph's pooled output [P], or None."""


class PromptFit:
    """Scores pictures against their prompt and OTHERS of `texts`, which are the same for every picture of a job."""

    def __init__(self, encoder: ImageEncoder | None, pooled: Pooled, texts: Sequence[str]) -> None:
        self._encoder, self._pooled = encoder, pooled
        distinct = list(dict.fromkeys(texts))
        step = max(1, len(distinct) // (OTHERS + 1))
        self._texts = distinct[::step][: OTHERS + 1]
        self._known: dict[str, Tensor | None] = {}

    def score(self, text: str, images: Tensor | None) -> Tensor | None:
        """`[B]` of image embeddings `[B, D]`; None where picture and text cannot be compared."""
        others = [other for other in self._texts if other != text][:OTHERS]
        if images is None or len(others) < LEAST_OTHERS:
            return None
        embedded = [self._embedding(one) for one in (text, *others)]
        found = [one for one in embedded if one is not None and one.shape[-1] == images.shape[-1]]
        if len(found) < len(embedded):
            return None
        return clip_score(images, found[0], torch.stack(found[1:]))

    def _embedding(self, text: str) -> Tensor | None:
        if text in self._texts and text not in self._known:
            self._known[text] = self._embed(text)
        return self._known[text] if text in self._known else self._embed(text)

    @torch.no_grad()
    def _embed(self, text: str) -> Tensor | None:
        encoder = self._encoder
        if isinstance(encoder, HostClipVisionEncoder):
            return self._pooled(text)
        if isinstance(encoder, OpenClipImageEncoder) and encoder.name.startswith(f"open_clip:{SHIPPED_ENCODER.stem}#"):
            device = next(encoder.model.parameters()).device
            return encoder.model.encode_text(tokenize([text]).to(device))[0]
        return None
