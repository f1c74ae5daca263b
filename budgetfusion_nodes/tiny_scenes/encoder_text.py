"""Captions as the text tower of the shipped image encoder takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import captions
from .tokenizer import WordTokenizer


def clip_tokens(tokens: Tensor) -> Tensor:
    """Our token ids [B, L] as open_clip wants them: its text tower takes the state at the highest id of a sequence, so
    the end token becomes the highest. The first of several ends counts, and causal attention ignores the padding."""
    vocabulary = captions.vocabulary()
    return torch.where(tokens == vocabulary.index(captions.END), len(vocabulary), tokens)


def tokenize(texts: Sequence[str]) -> Tensor:
    """[B, 48] token ids for the model's `encode_text`."""
    tokenizer = WordTokenizer()
    return clip_tokens(torch.tensor([tokenizer.padded(text) for text in texts]))
