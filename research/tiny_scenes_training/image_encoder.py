"""The small image encoder that serves I-CLIP on Tiny Scenes: open_clip's own model and loss on rendered scenes.

Two additions help a small training budget. Half of every batch shares few backgrounds, so that the background alone
cannot tell a caption from its neighbours. A linear head, thrown away afterwards, asks both embeddings what the caption
says (`data.attribute_names`). Resumable after a kill; seeded. `open_clip` is imported on use.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from budgetfusion_nodes.tiny_scenes import captions, scenes
from budgetfusion_nodes.tiny_scenes.encoder_text import clip_tokens, tokenize

from .augment import augment
from .data import RenderedScenes, attribute_names, rendered_scenes
from .renderer import SIZE, render
from .settings import EncoderSettings
from .training_state import load_training_state, save_training_state

log = logging.getLogger(__name__)

MEAN = (0.5, 0.5, 0.5)
STD = (0.3, 0.3, 0.3)
CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": SIZE,
        "patch_size": 8,
        "width": 128,
        "layers": 3,
        "head_width": 32,
        "mlp_ratio": 4.0,
        "pool_type": "avg",
    },
    # one id more than the vocabulary: see `clip_tokens` of tiny_scenes/encoder_text.py
    "text_cfg": {
        "context_length": captions.MAX_TOKENS,
        "vocab_size": len(captions.vocabulary()) + 1,
        "width": 96,
        "heads": 3,
        "layers": 2,
        "mlp_ratio": 4.0,
    },
}
"""open_clip's model configuration."""


def normalise(images: Tensor) -> Tensor:
    """[B, 3, 64, 64] in [0, 1] -> what `encode_image` expects."""
    mean, std = (images.new_tensor(v)[:, None, None] for v in (MEAN, STD))
    return (images - mean) / std


def build_model() -> Any:
    """open_clip's CLIP with fresh weights."""
    import open_clip

    return open_clip.CLIP(**json.loads(json.dumps(CONFIG)))


class EncoderTrainer:
    """One training run. `folder` holds the resumable state; `data` [N] are pictures, tokens and attributes."""

    def __init__(self, folder: Path, settings: EncoderSettings, data: RenderedScenes) -> None:
        self.folder, self.settings, self.data = folder, settings, data
        torch.manual_seed(settings.seed)
        self.model = build_model().train()
        self.head = nn.Linear(CONFIG["embed_dim"], len(attribute_names()))
        self.parameters = [*self.model.parameters(), *self.head.parameters()]
        matrices = [p for p in self.parameters if p.ndim > 1]
        vectors = [p for p in self.parameters if p.ndim <= 1]
        self.optimiser: torch.optim.Optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            betas=(0.9, 0.98),
        )
        self.step, self.average = 0, 0.0
        self.state_path = folder / "encoder_state.pt"
        self.by_background = group_by_background(data.attributes)

    def indices(self, generator: torch.Generator) -> NDArray[np.int64]:
        """Half of the batch at random; the other half from `shared_backgrounds` backgrounds."""
        settings = self.settings
        half = settings.batch // 2
        random = torch.randint(len(self.data.images), (settings.batch - half,), generator=generator).numpy()
        parts = [random]
        each = half // settings.shared_backgrounds
        for _ in range(settings.shared_backgrounds):
            # a background is drawn as often as it occurs
            start = int(torch.randint(len(self.data.images), (), generator=generator))
            alike = self.by_background[start]
            parts.append(alike[torch.randint(len(alike), (each,), generator=generator).numpy()])
        return np.concatenate(parts)

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images [B, 3, 64, 64] in [0, 1], tokens [B, 48] and attributes [B, A]: a function of seed and step alone."""
        settings = self.settings
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        index = self.indices(generator)
        phrasing = torch.randint(self.data.tokens.shape[1], (len(index),), generator=generator).numpy()
        images = torch.from_numpy(self.data.images[index]).permute(0, 3, 1, 2).float().div(255)
        images = augment(images, generator, noise=settings.noise, blur=settings.blur)
        tokens = clip_tokens(torch.from_numpy(self.data.tokens[index, phrasing]).long())
        return images, tokens, torch.from_numpy(self.data.attributes[index]).float()

    def train_step(self) -> float:
        from open_clip.loss import ClipLoss

        settings = self.settings
        images, tokens, attributes = self.batch(self.step)
        rate = min(1.0, (self.step + 1) / settings.warmup)
        rate *= 0.5 * (1 + math.cos(math.pi * self.step / settings.steps))
        for group in self.optimiser.param_groups:
            group["lr"] = settings.learning_rate * rate
        with torch.autocast("cpu", torch.bfloat16):
            image_features, text_features, scale = self.model(normalise(images), tokens)
        image_features, text_features = image_features.float(), text_features.float()
        contrastive = ClipLoss()(image_features, text_features, scale)
        # unit vectors are too short for a linear head
        logits = self.head(8.0 * torch.cat([image_features, text_features]))
        questions = functional.binary_cross_entropy_with_logits(logits, attributes.repeat(2, 1))
        loss = contrastive + settings.attribute_weight * questions
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
        self.step += 1
        return float(contrastive.detach())

    def run(self, save_every: int = 100, limit: int | None = None) -> None:
        """Trains to the end, or for `limit` more steps; goes on from a saved state."""
        self._resume()
        stop = self.settings.steps if limit is None else min(self.settings.steps, self.step + limit)
        started, first = time.monotonic(), self.step
        while self.step < stop:
            loss = self.train_step()
            if not math.isfinite(loss):
                raise RuntimeError(f"The loss became {loss} at step {self.step}; resume with a lower learning rate.")
            self.average += (loss - self.average) / min(50, self.step)
            if self.step % 25 == 0:
                pace = (time.monotonic() - started) / (self.step - first)
                left = pace * (self.settings.steps - self.step) / 60
                log.info("step %d  contrastive %.3f  %.2f s/step  %.1f min left", self.step, self.average, pace, left)
            if self.step % save_every == 0:
                self._save_state()
        self._save_state()

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "head": self.head, "optimiser": self.optimiser}

    def _save_state(self) -> None:
        save_training_state(self.state_path, self._parts(), self.settings, step=self.step, average=self.average)

    def _resume(self) -> None:
        if found := load_training_state(self.state_path, self._parts(), self.settings):
            self.step, self.average = int(found["step"]), found["average"]


def group_by_background(attributes: NDArray[np.uint8]) -> list[NDArray[np.int64]]:
    """[N] -> the indices of all pictures with the same background caption."""
    names = attribute_names()
    background = [i for i, name in enumerate(names) if name.split()[0] in ("pattern", "base", "second", "scale")]
    packed = np.packbits(np.asarray(attributes)[:, background], axis=1)
    _, inverse = np.unique(packed, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    order = np.argsort(inverse, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(inverse))[:-1])
    return [groups[i] for i in inverse]


def save_encoder(model: Any, path: Path, provenance: dict[str, Any]) -> None:
    """fp16 safetensors that `metrics.backends.OpenClipImageEncoder.from_checkpoint` loads; provenance beside it."""
    from safetensors.torch import save_file

    metadata = {
        "open_clip_config": json.dumps(CONFIG),
        "image_mean": json.dumps(MEAN),
        "image_std": json.dumps(STD),
        "image_size": json.dumps(SIZE),
    }
    state = {key: value.detach().to(torch.float16).contiguous().clone() for key, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata)
    path.with_suffix(".json").write_text(json.dumps(provenance, indent=1) + "\n")


def train_encoder(
    folder: Path, out: Path, settings: EncoderSettings, limit: int | None = None
) -> dict[str, Any] | None:
    """Trains, saves and measures. Returns the provenance that stands beside the file, or None if `limit` stopped it."""
    from budgetfusion_nodes.metrics.open_clip_file import load_open_clip_checkpoint

    data = rendered_scenes(
        folder / f"scenes-{settings.scenes}-{settings.data_seed}", settings.scenes, settings.data_seed
    )
    trainer = EncoderTrainer(folder, settings, data)
    trainer.run(limit=limit)
    if trainer.step < settings.steps:
        return None
    provenance = {
        "model": "Tiny Scenes image encoder (open_clip.model.CLIP)",
        "command": "python -m research tiny-scenes train-encoder",
        "settings": asdict(settings),
        "contrastive_loss": round(trainer.average, 4),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
    }
    save_encoder(trainer.model, out, provenance)
    provenance["retrieval"] = asdict(retrieval(load_open_clip_checkpoint(out).model))
    out.with_suffix(".json").write_text(json.dumps(provenance, indent=1) + "\n")
    return provenance


@dataclass(frozen=True)
class Retrieval:
    """Share of held-out scenes whose own partner is first, or among the first five, of `scenes` candidates."""

    scenes: int
    image_to_text_top1: float
    image_to_text_top5: float
    text_to_image_top1: float
    text_to_image_top5: float


def held_out_pairs(count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Pictures [count, 3, 64, 64] in [0, 1] of scenes that no training saw, and one caption each."""
    rng = np.random.default_rng(seed)
    found = scenes.sample_scenes(count, seed, held_out=True)
    images = np.stack([render(scene, rng) for scene in found])
    texts = [captions.describe(scene, rng) for scene in found]
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255), texts


@torch.no_grad()
def retrieval(model: Any, count: int = 200, seed: int = 4) -> Retrieval:
    """Retrieval accuracy of the encoder among `count` held-out scenes."""
    images, texts = held_out_pairs(count, seed)
    image_features = model.encode_image(normalise(images), normalize=True)
    text_features = model.encode_text(tokenize(texts), normalize=True)
    similarity = image_features @ text_features.T  # [image, text]

    def top(matrix: Tensor, k: int) -> float:
        own = matrix.diagonal()[:, None]
        # strictly better candidates; ties count against
        return float(((matrix >= own).sum(1) <= k).float().mean())

    return Retrieval(count, *(round(top(m, k), 4) for m in (similarity, similarity.T) for k in (1, 5)))
