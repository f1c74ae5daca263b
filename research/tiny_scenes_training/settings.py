"""What the small trainings depend on, apart from the machine. Numbers only: imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EncoderSettings:
    """Of the image encoder."""

    steps: int = 600
    batch: int = 128
    learning_rate: float = 1.5e-3
    warmup: int = 60
    weight_decay: float = 0.05
    scenes: int = 60_000
    data_seed: int = 1
    seed: int = 2
    attribute_weight: float = 10.0
    """Of the attribute questions beside the contrastive loss; their mean over ~300 mostly-false answers is small."""
    shared_backgrounds: int = 8
    """Different backgrounds in the half of a batch that shares them."""
    noise: float = 0.10
    blur: float = 2.0


@dataclass(frozen=True)
class ClassifierSettings:
    """Of the classifier."""

    steps: int = 2000
    batch: int = 96
    learning_rate: float = 4e-3
    warmup: int = 50
    weight_decay: float = 0.02
    scenes: int = 60_000
    data_seed: int = 1
    seed: int = 3
