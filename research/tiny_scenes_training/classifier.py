"""The classifier of Tiny Scenes pictures: a small conv net that only ever saw scenes outside the held-out set.

It names the background's pattern and colours, and the colour and shape of a lone medium or large object. Every figure
it gives is shown beside its own accuracy on renderings of the same scenes, which is the most a generator can reach.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from budgetfusion_nodes.tiny_scenes.scenes import COLOURS, PATTERNS, SHAPES, Scene, sample_scenes

from .augment import augment
from .data import RenderedScenes, attribute_names, rendered_scenes
from .renderer import render
from .settings import ClassifierSettings
from .training_state import load_training_state, save_training_state

log = logging.getLogger(__name__)

NONE = "none"
CLASSES: Mapping[str, tuple[str, ...]] = {
    "pattern": PATTERNS,
    "base": tuple(COLOURS),
    "second": (*COLOURS, NONE),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
}
"""Question -> possible answers. The last two are about the only object of a picture."""
UNASKED = -1
"""Label of a question that a picture cannot answer: colour and shape where there is no lone large enough object."""
LOSS_WEIGHTS: Mapping[str, float] = {"shape": 2.0, "second": 0.5}
"""Shapes are learned last; nothing is judged by the second colour alone."""


class SceneClassifier(nn.Module):
    """[B, 3, 64, 64] in [0, 1] -> question -> logits [B, answers]."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_layer(3, width, 5, 2),  # 32 x 32
            *_layer(width, 2 * width, 3, 2),  # 16 x 16
            *_layer(2 * width, 3 * width, 3, 1),
            *_layer(3 * width, 4 * width, 3, 2),  # 8 x 8
            *_layer(4 * width, 5 * width, 3, 1),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(10 * width, len(answers)) for name, answers in CLASSES.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.features(images * 2 - 1)  # [B, C, 8, 8]
        pooled = torch.cat([features.mean((2, 3)), features.amax((2, 3))], 1)  # [B, 2 C]
        return {name: head(pooled) for name, head in self.heads.items()}

    @torch.no_grad()
    def answer(self, images: Tensor, batch: int = 64) -> list[dict[str, str]]:
        """The most likely answer to every question, for [N, 3, 64, 64] in [0, 1]. In evaluation mode only."""
        answers: list[dict[str, str]] = []
        for part in images.split(batch):
            best = {name: logits.argmax(1).tolist() for name, logits in self(part).items()}
            answers += [{name: CLASSES[name][best[name][i]] for name in CLASSES} for i in range(len(part))]
        return answers


def _layer(inputs: int, outputs: int, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def has_lone_object(scene: Scene) -> bool:
    """True if the classifier is asked about the object: one group of one medium or large object."""
    return len(scene.groups) == 1 and scene.groups[0].count == 1 and scene.groups[0].size in ("medium", "large")


def right_answers(scene: Scene) -> dict[str, frozenset[str]]:
    """Question -> answers that count as right; questions that the scene cannot answer are missing.

    The two colours of checks cover equal areas at a random phase, so either is its background colour.
    """
    background = scene.background
    second = background.second or NONE
    right = {"pattern": {background.pattern}, "base": {background.colour}, "second": {second}}
    if background.pattern == "checks":
        right |= {"base": {background.colour, second}, "second": {background.colour, second}}
    if has_lone_object(scene):
        right |= {"colour": {scene.groups[0].colour}, "shape": {scene.groups[0].shape}}
    return {name: frozenset(answers) for name, answers in right.items()}


def labels(attributes: NDArray[np.uint8]) -> dict[str, NDArray[np.int64]]:
    """Question -> [N] indices into its answers, or UNASKED, from yes-or-no `data.attributes_of` columns [N, A].

    The colours of checks are put into the order of COLOURS, because the picture does not tell which was named first.
    """
    table = dict(zip(attribute_names(), np.asarray(attributes).T, strict=True))
    pattern = np.stack([table[f"pattern {name}"] for name in PATTERNS]).argmax(0)
    base = np.stack([table[f"base {name}"] for name in COLOURS]).argmax(0)
    seconds = np.stack([table[f"second {name}"] for name in COLOURS])
    second = np.where(seconds.any(0), seconds.argmax(0), len(COLOURS))
    checks = pattern == PATTERNS.index("checks")
    base, second = (
        np.where(checks, np.minimum(base, second), base),
        np.where(checks, np.maximum(base, second), second),
    )
    colours = np.stack([[table[f"{colour} {shape}"] for shape in SHAPES] for colour in COLOURS])  # [10, 8, N]
    once = np.stack([table[f"1 {shape}"] for shape in SHAPES]).sum(0) == 1
    more = np.stack([table[f"{count} {shape}"] for count in range(2, 7) for shape in SHAPES]).any(0)
    small = np.stack([table[f"{size} {shape}"] for size in ("tiny", "small") for shape in SHAPES]).any(0)
    lone = (colours.sum((0, 1)) == 1) & once & ~more & ~small
    colour = np.where(lone, colours.any(1).argmax(0), UNASKED)
    shape = np.where(lone, colours.any(0).argmax(0), UNASKED)
    found = {"pattern": pattern, "base": base, "second": second, "colour": colour, "shape": shape}
    return {name: values.astype(np.int64) for name, values in found.items()}


class ClassifierTrainer:
    """One training run; a stopped one goes on from `state_path`. Half of every batch has a lone object."""

    def __init__(self, state_path: Path, settings: ClassifierSettings, data: RenderedScenes) -> None:
        self.state_path, self.settings, self.data = state_path, settings, data
        torch.manual_seed(settings.seed)
        self.model = SceneClassifier().train().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.optimiser: torch.optim.Optimizer = torch.optim.AdamW(
            self.model.parameters(), weight_decay=settings.weight_decay
        )
        self.wanted = {name: torch.from_numpy(values) for name, values in labels(data.attributes).items()}
        self.lone = torch.nonzero(self.wanted["shape"] != UNASKED)[:, 0]
        self.step = 0

    def batch(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Images [B, 3, 64, 64] in [0, 1] and labels of each question: a function of seed and step alone."""
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + step)
        half = self.settings.batch // 2
        index = torch.randint(len(self.data.images), (self.settings.batch - half,), generator=generator)
        index = torch.cat([index, self.lone[torch.randint(len(self.lone), (half,), generator=generator)]])
        images = augment(to_tensor(self.data.images[index.numpy()]), generator)
        # no question tells left from right, and every shape is its own mirror image
        mirrored = torch.rand((len(images), 1, 1, 1), generator=generator) < 0.5
        images = torch.where(mirrored, images.flip(-1), images)
        return images, {name: values[index] for name, values in self.wanted.items()}

    def train_step(self) -> float:
        settings = self.settings
        images, wanted = self.batch(self.step)
        rate = min(1.0, (self.step + 1) / settings.warmup) * 0.5 * (1 + math.cos(math.pi * self.step / settings.steps))
        for group in self.optimiser.param_groups:
            group["lr"] = settings.learning_rate * rate
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(images.to(memory_format=torch.channels_last))
        losses = [
            LOSS_WEIGHTS.get(name, 1.0)
            * functional.cross_entropy(logits[name].float(), wanted[name], ignore_index=UNASKED)
            for name in CLASSES
        ]
        loss = torch.stack(losses).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.step += 1
        return float(loss.detach())

    def run(self, save_every: int = 100, limit: int | None = None) -> None:
        """Trains to the end, or for `limit` more steps."""
        self._resume()
        stop = self.settings.steps if limit is None else min(self.settings.steps, self.step + limit)
        recent, started, first = 0.0, time.monotonic(), self.step
        while self.step < stop:
            loss = self.train_step()
            recent += (loss - recent) / min(50, self.step - first)
            if self.step % 50 == 0:
                log.info(
                    "step %d  loss %.3f  %.2f s/step",
                    self.step,
                    recent,
                    (time.monotonic() - started) / (self.step - first),
                )
            if self.step % save_every == 0 or self.step == stop:
                self._save_state()

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimiser": self.optimiser}

    def _save_state(self) -> None:
        save_training_state(self.state_path, self._parts(), self.settings, step=self.step)

    def _resume(self) -> None:
        if found := load_training_state(self.state_path, self._parts(), self.settings):
            self.step = int(found["step"])


def accuracy(model: SceneClassifier, count: int = 1000, lone: int = 400, seed: int = 6) -> dict[str, float]:
    """Question -> share of right answers on renderings of held-out scenes: `count` of all kinds and `lone` with one
    medium or large object."""
    found = sample_scenes(count, seed, held_out=True)
    candidates = sample_scenes(4 * lone, seed + 1, held_out=True, groups=1)
    found += [scene for scene in candidates if has_lone_object(scene)][:lone]
    rng = np.random.default_rng(seed)
    answers = model.answer(to_tensor(np.stack([render(scene, rng) for scene in found])))
    right: dict[str, list[bool]] = {name: [] for name in CLASSES}
    for scene, answer in zip(found, answers, strict=True):
        for name, accepted in right_answers(scene).items():
            right[name].append(answer[name] in accepted)
    return {name: round(float(np.mean(values)), 4) for name, values in right.items()}


def to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """[N, H, W, 3] uint8 -> [N, 3, H, W] float in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255)


def save_classifier(model: SceneClassifier, path: Path, provenance: dict[str, Any]) -> None:
    """fp16 safetensors with the answers' names in its metadata, and provenance beside it."""
    from safetensors.torch import save_file

    state = {
        key: value.detach().to(torch.float16).contiguous().clone()
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, {"classes": json.dumps(CLASSES)})
    path.with_suffix(".json").write_text(json.dumps(provenance, indent=1) + "\n")


def load_classifier(path: Path) -> SceneClassifier:
    """A saved classifier, in evaluation mode. ValueError if it answers other questions than this code asks."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, framework="pt") as handle:
        known = json.loads((handle.metadata() or {}).get("classes", "null"))
    if known != json.loads(json.dumps(CLASSES)):
        raise ValueError(f"{path.name} answers other questions than this version asks; train it again.")
    model = SceneClassifier()
    state = {key: value.float() for key, value in load_file(path).items()}
    counters = {key: value for key, value in model.state_dict().items() if key.endswith("num_batches_tracked")}
    model.load_state_dict({**state, **counters})
    return model.eval().requires_grad_(False)


def train_classifier(
    folder: Path, out: Path, settings: ClassifierSettings, limit: int | None = None
) -> dict[str, Any] | None:
    """Trains, saves and measures. Returns the provenance that stands beside the file, or None if `limit` stopped it."""
    data = rendered_scenes(
        folder / f"scenes-{settings.scenes}-{settings.data_seed}", settings.scenes, settings.data_seed
    )
    trainer = ClassifierTrainer(folder / "classifier_state.pt", settings, data)
    trainer.run(limit=limit)
    if trainer.step < settings.steps:
        return None
    model = trainer.model.eval()
    provenance: dict[str, Any] = {
        "model": "Tiny Scenes judge",
        "command": "python -m research tiny-scenes train-classifier",
        "settings": asdict(settings),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    save_classifier(model, out, provenance)
    provenance["accuracy_on_held_out_renderings"] = accuracy(load_classifier(out))
    out.with_suffix(".json").write_text(json.dumps(provenance, indent=1) + "\n")
    return provenance
