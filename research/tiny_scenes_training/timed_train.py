"""Trains either Tiny Scenes generator on a GPU for a given time: all data in GPU memory, no waiting for the CPU.

The learning rate follows the clock, so that the training is finished when the time is over, however fast the machine.
Seeded and resumable: a stopped run goes on with the time that is left. On a CPU it works too, for tests.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from budgetfusion_nodes.tiny_scenes import flow_architecture as flow
from budgetfusion_nodes.tiny_scenes.architecture import discrete_sigmas
from budgetfusion_nodes.tiny_scenes.tokenizer import WordTokenizer

from .classifier import UNASKED, labels
from .data import RenderedScenes, rendered_scenes
from .optimiser import GeneratorOptimiser
from .train import TrainSettings, diffusion_loss, noise_level_weights
from .training_state import load_training_state, save_training_state

log = logging.getLogger(__name__)

Loss = Callable[[Any, Tensor, Tensor, torch.Generator], Tensor]
"""(model, images [B, 3, H, W] in [-1, 1], tokens [B, 48], generator) -> mean loss."""


@dataclass(frozen=True)
class TimedSettings:
    """Everything that a timed training depends on, apart from the machine."""

    seconds: float = 380.0
    """Of training, after the data is there."""
    batch: int = 256
    learning_rate: float = 1e-3
    muon_factor: float = 2.0
    warmup: int = 300
    """Steps."""
    decay_share: float = 0.45
    """The learning rate is constant, then falls linearly to zero over this last share of the time."""
    scenes: int = 240_000
    large_scenes: int = 32_000
    """Of 128 x 128 pixels."""
    large_every: int = 8
    """Every so many steps one with a quarter of the batch at 128 x 128; 0: never."""
    seed: int = 1
    lone_share: float = 0.45
    """At least this share of a batch has one medium or large object: shapes are learned last."""
    caption_dropout: float = 0.1
    uniform_share: float = 0.1
    """Of noise levels drawn uniformly, so that none is unseen; the rest are logit-normal and then shifted."""
    ema_decay: float = 0.999
    weight_decay: float = 0.01
    compile: bool = True
    """The transformer blocks of Tiny Scenes Flow, by torch.compile."""


# ---------------------------------------------------------------------------------------------------------- losses


def draw_sigmas(count: int, uniform_share: float, generator: torch.Generator, shift: float = flow.SHIFT) -> Tensor:
    """[count] noise levels in (0, 1): logit-normal, shifted as the sampler shifts them (Esser et al. 2024)."""
    device = generator.device
    t = torch.sigmoid(torch.randn(count, generator=generator, device=device))
    shifted = shift * t / (1 + (shift - 1) * t)
    uniform = torch.rand(count, generator=generator, device=device)
    return torch.where(torch.rand(count, generator=generator, device=device) < uniform_share, uniform, shifted)


def flow_loss(model: Any, images: Tensor, tokens: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Squared error of the velocity noise - x0 at x = (1 - sigma) x0 + sigma noise (Liu et al. 2022, 2209.03003)."""
    level = sigma.view(-1, 1, 1, 1)
    noised = (1 - level) * images + level * noise
    context, pooled = model.encode(tokens)
    return ((model(noised, sigma, context, pooled).float() - (noise - images)) ** 2).mean()


def flow_objective(settings: TimedSettings) -> Loss:
    def loss(model: Any, images: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
        sigma = draw_sigmas(len(images), settings.uniform_share, generator)
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        return flow_loss(model, images, tokens, sigma, noise)

    return loss


def eps_objective(settings: TimedSettings, device: torch.device) -> Loss:
    """The loss of `train`: v-prediction under the discrete schedule of Tiny Scenes."""
    sigmas = discrete_sigmas().to(device)
    weights = noise_level_weights(discrete_sigmas(), TrainSettings(uniform_share=settings.uniform_share)).to(device)

    def loss(model: Any, images: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
        timestep = torch.multinomial(weights, len(images), replacement=True, generator=generator)
        noise = torch.randn(images.shape, generator=generator, device=device)
        return diffusion_loss(model, images, tokens, timestep, sigmas, noise)

    return loss


# ------------------------------------------------------------------------------------------------------------ data


class DeviceScenes:
    """A rendered data set on the device: `images` [N, 3, H, W] and `tokens` [N, P, 48], both uint8."""

    def __init__(self, data: RenderedScenes, device: torch.device) -> None:
        self.images = torch.from_numpy(np.array(data.images)).to(device).permute(0, 3, 1, 2).contiguous()
        self.tokens = torch.from_numpy(np.array(data.tokens)).to(device)
        self.lone = torch.from_numpy(np.flatnonzero(labels(data.attributes)["shape"] != UNASKED)).to(device)
        self.empty = torch.tensor(WordTokenizer().padded(""), device=device)

    def batch(self, size: int, settings: TimedSettings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images [size, 3, H, W] in [-1, 1] and tokens [size, 48]."""
        device = self.images.device

        def integers(below: int) -> Tensor:
            return torch.randint(below, (size,), generator=generator, device=device)

        def chance(share: float) -> Tensor:
            return torch.rand(size, generator=generator, device=device) < share

        index = torch.where(
            chance(settings.lone_share), self.lone[integers(len(self.lone))], integers(len(self.images))
        )
        tokens = self.tokens[index, integers(self.tokens.shape[1])].long()
        tokens = torch.where(chance(settings.caption_dropout)[:, None], self.empty, tokens)
        return self.images[index].float().div(127.5).sub(1), tokens


def prepare_data(folder: Path, settings: TimedSettings, workers: int) -> dict[int, RenderedScenes]:
    """Side of the pictures in pixels -> rendered scenes, made in `folder` unless they are there."""
    counts = {64: settings.scenes}
    if settings.large_every:
        counts[128] = settings.large_scenes
    return {
        size: rendered_scenes(
            folder / f"scenes-{size}-{count}-{settings.seed}", count, settings.seed, workers, 500, size
        )
        for size, count in counts.items()
    }


# -------------------------------------------------------------------------------------------------------- training


def compile_blocks(model: nn.Module) -> bool:
    """Compiles the transformer blocks of Tiny Scenes Flow in place: alike, so one compilation serves nearly all."""
    blocks = getattr(getattr(model, "denoiser", None), "joint_blocks", None)
    if blocks is None:
        return False
    torch._dynamo.config.recompile_limit = 32
    for block in blocks:
        block.compile(dynamic=False)
    return True


class TimedTrainer:
    """One run. `save(model, path, provenance)` writes the finished checkpoint."""

    def __init__(
        self,
        folder: Path,
        settings: TimedSettings,
        model: nn.Module,
        loss: Loss,
        data: dict[int, RenderedScenes],
        device: torch.device,
    ) -> None:
        self.settings, self.loss, self.device = settings, loss, device
        self.model = model.to(device).train()
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        self.data = {size: DeviceScenes(part, device) for size, part in data.items()}
        self.optimiser = GeneratorOptimiser(
            self.model, settings.weight_decay, muon_factor=settings.muon_factor, batched=True
        )
        self.average = torch.zeros((), device=device)
        self.step, self.elapsed, self.compiled = 0, 0.0, False
        self.state_path = folder / "timed-state.pt"
        self.history: list[dict[str, float]] = []

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "ema": self.ema, "optimiser": self.optimiser}

    def _save_state(self) -> None:
        progress = {"step": self.step, "elapsed": self.elapsed, "average": float(self.average)}
        save_training_state(self.state_path, self._parts(), self.settings, **progress)

    def _resume(self) -> None:
        found = load_training_state(
            self.state_path, self._parts(), self.settings, changeable=("seconds", "decay_share"), device=self.device
        )
        if found:
            self.step, self.elapsed = int(found["step"]), found["elapsed"]
            self.average.fill_(found["average"])

    def learning_rate(self) -> float:
        """By steps while it rises, by the clock while it falls."""
        rise = min(1.0, (self.step + 1) / self.settings.warmup)
        left = 1 - self.elapsed / self.settings.seconds
        return self.settings.learning_rate * rise * min(1.0, max(0.0, left) / self.settings.decay_share)

    def train_step(self) -> None:
        settings = self.settings
        generator = torch.Generator(self.device).manual_seed(settings.seed * 1_000_003 + self.step)
        large = settings.large_every > 0 and self.step % settings.large_every == settings.large_every - 1
        size = 128 if large else 64
        images, tokens = self.data[size].batch(self._batch(size), settings, generator)
        self.optimiser.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.loss(self.model, images, tokens, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step(self.learning_rate())
        self.step += 1
        decay = min(settings.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)
            if not large:  # their loss is another
                self.average.lerp_(loss.detach(), max(0.005, 1 / self.step))

    def _prepare(self) -> None:
        """Compiles the blocks, outside the clock, and goes on without where that fails or changes the answer."""
        if not self.settings.compile:
            return
        before = copy.deepcopy(self.model.state_dict())
        with torch.no_grad():  # what starts at zero would hide a wrong answer behind its gates
            for parameter in self.model.parameters():
                if not parameter.any():
                    nn.init.normal_(parameter, std=0.02)
        plain = self._trial()
        self.compiled = compile_blocks(self.model)
        if self.compiled:
            try:
                found = self._trial()
                same = all(math.isfinite(b) and abs(a - b) < 0.05 * abs(a) for a, b in zip(plain, found, strict=True))
                if not same:
                    raise RuntimeError(f"losses and gradients {found} instead of {plain}")
            except Exception as error:  # whatever the compiler throws, the training can do without
                log.warning("training without torch.compile: %s", str(error)[:2000])
                for block in self.model.denoiser.joint_blocks:  # pyright: ignore[reportAttributeAccessIssue, reportGeneralTypeIssues]
                    block._compiled_call_impl = None
                self.compiled = False
        self.model.load_state_dict(before)
        self.optimiser.zero_grad()

    def _trial(self) -> list[float]:
        """Loss and norm of the gradient for every size, on the same batch each time."""
        found = []
        for size, data in self.data.items():
            generator = torch.Generator(self.device).manual_seed(0)
            images, tokens = data.batch(self._batch(size), self.settings, generator)
            self.optimiser.zero_grad()
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = self.loss(self.model, images, tokens, generator)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            found += [float(loss.detach()), float(norm)]
        return found

    def _batch(self, size: int) -> int:
        """A quarter of the pictures where they have four times the pixels."""
        return self.settings.batch if size == 64 else max(1, self.settings.batch // 4)

    def run(self, *, log_every: float = 15.0, save_every: float = 90.0) -> nn.Module:
        """Trains until the time is over; returns the model with the averaged weights."""
        self._resume()
        started = time.monotonic()
        self._prepare()
        log.info("prepared in %.0f s, compiled: %s", time.monotonic() - started, self.compiled)
        begin, first = time.monotonic() - self.elapsed, self.step
        next_log, next_save = self.elapsed + log_every, self.elapsed + save_every
        while self.elapsed < self.settings.seconds:
            self.train_step()
            self.elapsed = time.monotonic() - begin
            if self.elapsed >= next_log:
                next_log += log_every
                self._report(first, self.elapsed)
            if self.elapsed >= next_save:
                next_save += save_every
                self._save_state()
        self._report(first, self.elapsed)
        self._save_state()
        return self.ema

    def _report(self, first: int, elapsed: float) -> None:
        loss = float(self.average)  # waits for the device
        if not math.isfinite(loss):
            raise RuntimeError(f"The loss became {loss} by step {self.step}; train with a lower learning rate.")
        self.history.append({"seconds": round(elapsed, 1), "step": self.step, "loss": round(loss, 5)})
        log.info("%4.0f s  step %d  loss %.4f  rate %.2e", elapsed, self.step, loss, self.learning_rate())

    def provenance(self) -> dict[str, Any]:
        cuda = self.device.type == "cuda"
        return {
            "settings": asdict(self.settings),
            "steps_done": self.step,
            "images_seen": self.step * self.settings.batch,
            "loss": round(float(self.average), 5),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(self.device) if cuda else "cpu",
            "compiled": self.compiled,
            "parameters": {
                name: sum(p.numel() for p in part.parameters()) for name, part in self.model.named_children()
            },
            "loss_history": self.history,
        }


def read_timed_settings(text: str | None, defaults: TimedSettings) -> TimedSettings:
    """`defaults` changed by JSON such as `{"seconds": 60}`; unknown names are an error that lists the known ones."""
    changes = json.loads(text) if text else {}
    known = asdict(defaults)
    if unknown := set(changes) - set(known):
        raise ValueError(f"unknown training settings {sorted(unknown)}; known: {sorted(known)}")
    return TimedSettings(**{**known, **changes})
