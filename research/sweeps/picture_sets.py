"""Picture sets on disk: what one method made of the same prompts, batch by batch. No host, no measuring.

A set is known by its key, for instance the digest of the sigmas that it was rendered along. Its file of batch b holds
the pictures of rows 32 b to 32 b + 31, a row for each prompt and seed, a prompt's seeds one after the other. Methods
whose cost differs from picture to picture have a .json of evaluations beside each file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from budgetfusion_nodes.core.curves import FloatArray
from budgetfusion_nodes.core.files import in_one_piece
from budgetfusion_nodes.core.schedule import Sigmas

from .prompts import PromptList

BATCH = 32


def sigma_key(sigmas: Sigmas) -> str:
    return hashlib.sha256(np.asarray(sigmas, np.float32).tobytes()).hexdigest()[:24]


def word_key(*words: str) -> str:
    return hashlib.sha256(" ".join(words).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class PictureSets:
    """The folder of one setting."""

    folder: Path
    prompts: PromptList

    @property
    def seeds(self) -> int:
        return len(self.prompts.prompts[0].seeds)

    @property
    def rows(self) -> list[tuple[str, int]]:
        """(text, seed) of every picture of a set."""
        return [(p.text, seed) for p in self.prompts.prompts for seed in p.seeds]

    def file(self, key: str, batch: int) -> Path:
        return self.folder / f"{key}-{batch}.pt"

    def save(self, key: str, batch: int, images: Tensor, evaluations: list[float] | None = None) -> None:
        """images: [n, 3, H, W] in [0, 1]; evaluations: of each, where they are not the same for all."""
        if evaluations is not None:
            with in_one_piece(self.file(key, batch).with_suffix(".json")) as partial:
                partial.write_text(json.dumps(evaluations), encoding="utf-8")
        with in_one_piece(self.file(key, batch)) as partial:
            torch.save(images.half(), partial)

    def covered(self, key: str) -> int:
        """Prompts from the first on that are rendered with all seeds."""
        batch = 0
        while self.file(key, batch).is_file():
            batch += 1
        return min(batch * BATCH // self.seeds, len(self.prompts.prompts))

    def batches(self, prompts: int) -> range:
        return range(-(-prompts * self.seeds // BATCH))

    def load(self, key: str, batch: int) -> Tensor:
        """[n, 3, H, W] float32 in [0, 1]."""
        return torch.load(self.file(key, batch), weights_only=True).float()

    def picture(self, key: str, prompt: int, seed: int) -> Tensor:
        """[3, H, W]; both are indices."""
        row = prompt * self.seeds + seed
        return self.load(key, row // BATCH)[row % BATCH]

    def evaluations(self, key: str, prompts: int) -> FloatArray:
        """[prompts] means over seeds, where they were counted."""
        files = [self.file(key, batch).with_suffix(".json") for batch in self.batches(prompts)]
        counted = np.concatenate([json.loads(file.read_text("utf-8")) for file in files])
        return counted[: prompts * self.seeds].reshape(prompts, -1).mean(axis=1)
