"""Trains the Tiny Scenes generator. Resumable after a kill, seeded, on CPU (bf16 autocast) or GPU.

v-prediction (Salimans and Ho 2022, arXiv 2202.00512) under the host's discrete noise schedule; the noise levels are
drawn around those that decide shapes and edges. Before that, the text encoder gets a head start: a few minutes of
predicting what its caption says, so that the UNet meets features that already tell colours, shapes and counts apart.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from budgetfusion_nodes.tiny_scenes import architecture as arch
from budgetfusion_nodes.tiny_scenes.architecture import discrete_sigmas
from budgetfusion_nodes.tiny_scenes.tokenizer import WordTokenizer

from .classifier import UNASKED, labels
from .data import RenderedScenes, attribute_names, rendered_scenes
from .optimiser import GeneratorOptimiser
from .training_model import TinyScenesTrainingModel, load_checkpoint, save_checkpoint
from .training_state import load_training_state, save_training_state

log = logging.getLogger(__name__)

WEIGHT_FLOOR = 0.12


@dataclass(frozen=True)
class TrainSettings:
    """Everything that a training run depends on, apart from the machine."""

    steps: int = 12_000
    batch: int = 48
    learning_rate: float = 1.5e-3
    muon_factor: float = 2.0
    """Muon's rate over AdamW's: orthogonal updates of matrices this small bear more than AdamW's do."""
    warmup: int = 200
    decay: int = 4_000
    """The learning rate is constant, then falls linearly to zero over this many last steps."""
    scenes: int = 60_000
    seed: int = 1
    text_steps: int = 600
    text_batch: int = 128
    lone_share: float = 0.4
    """At least this share of a batch has one medium or large object: shapes are learned last."""
    caption_dropout: float = 0.1
    log_sigma_mean: float = 0.8
    """Shapes and places are decided between sigma 1.5 and 12, where half of the batch is."""
    log_sigma_std: float = 1.2
    uniform_share: float = 0.15
    ema_decay: float = 0.999
    weight_decay: float = 0.01


def noise_level_weights(sigmas: Tensor, settings: TrainSettings) -> Tensor:
    """[1000] probabilities of each timestep: log-normal in sigma, mixed with a uniform share so that none is unseen."""
    log_sigma = sigmas.log()
    spacing = torch.gradient(log_sigma)[0]
    normal = torch.exp(-0.5 * ((log_sigma - settings.log_sigma_mean) / settings.log_sigma_std) ** 2) * spacing
    return (1 - settings.uniform_share) * normal / normal.sum() + settings.uniform_share / len(sigmas)


def diffusion_loss(
    model: TinyScenesTrainingModel, images: Tensor, tokens: Tensor, timestep: Tensor, sigmas: Tensor, noise: Tensor
) -> Tensor:
    """Weighted squared error of v = alpha (eps - sigma x0), alpha = 1 / sqrt(1 + sigma^2). `images` [B, 3, H, W].

    The network draws x0, whose error counts 1 / (sigma alpha)^2 in v; the weight bounds that at 1 / WEIGHT_FLOOR^2, or
    the last invisible traces of noise would drown everything else.
    """
    sigma = sigmas[timestep].view(-1, 1, 1, 1)
    alpha = (1 + sigma**2).rsqrt()
    noised = alpha * (images + sigma * noise)
    target = alpha * (noise - sigma * images)
    context, pooled = model.encode(tokens)
    weight = (sigma * alpha) ** 2 / ((sigma * alpha) ** 2 + WEIGHT_FLOOR**2)
    return (weight * (model(noised, timestep.float(), context, pooled).float() - target) ** 2).mean()


@dataclass(frozen=True)
class Share:
    """This process's share of every batch: single-threaded processes side by side beat OpenMP threads on a busy CPU."""

    rank: int = 0
    world: int = 1

    def take(self, tensor: Tensor) -> Tensor:
        return tensor[self.rank :: self.world]

    def require_equal(self, step: int) -> None:
        """A kill while the states were being written can leave them a save apart, or one of them missing; then there is
        no common past. Every process has to ask."""
        if self.world == 1:
            return
        steps = torch.tensor([float(step), -float(step)])
        torch.distributed.all_reduce(steps, op=torch.distributed.ReduceOp.MAX)
        if steps[0] != -steps[1]:
            raise RuntimeError(
                "The processes' saved states are from different steps. Start again from the exported weights "
                "(--start-from tiny_scenes.safetensors) in a new folder."
            )

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replaces every gradient by its mean over the processes."""
        if self.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        torch.distributed.all_reduce(flat)
        flat /= self.world
        torch._foreach_copy_(
            gradients,
            [part.view_as(g) for part, g in zip(flat.split([g.numel() for g in gradients]), gradients, strict=True)],
        )


def pretrain_text(
    model: TinyScenesTrainingModel, data: RenderedScenes, settings: TrainSettings, device: torch.device, share: Share
) -> float:
    """Head start of the text encoder: yes-or-no questions about the caption from its pooled output. Gives the loss."""
    torch.manual_seed(settings.seed)  # the head must start alike in every process
    generator = torch.Generator().manual_seed(settings.seed)
    head = torch.nn.Linear(arch.TEXT_WIDTH, len(attribute_names())).to(device)
    optimiser = torch.optim.AdamW(
        [*model.text.parameters(), *head.parameters()], lr=1e-3, weight_decay=settings.weight_decay, fused=True
    )
    average = 1.0
    for step in range(settings.text_steps):
        index = torch.randint(len(data.images), (settings.text_batch,), generator=generator).numpy()
        phrasing = torch.randint(data.tokens.shape[1], (settings.text_batch,), generator=generator).numpy()
        tokens = share.take(torch.from_numpy(data.tokens[index, phrasing]).long()).to(device)
        # The encoder is causal, so columns in which every caption has ended change no pooled output.
        tokens = tokens[:, : int((tokens != tokens[:, -1:]).sum(1).max()) + 2]
        wanted = share.take(torch.from_numpy(data.attributes[index]).float()).to(device)
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 100, (settings.text_steps - step) / (0.3 * settings.text_steps))
        with torch.autocast(device.type, torch.bfloat16):
            logits = head(model.encode(tokens)[1])
        loss = functional.binary_cross_entropy_with_logits(logits.float(), wanted)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        share.average_gradients([*model.text.parameters(), *head.parameters()])
        optimiser.step()
        average += 0.02 * (loss.item() - average)
        if step % 100 == 0 and share.rank == 0:
            log.info("text step %d  loss %.4f", step, average)
    return average


def learning_rate(step: int, settings: TrainSettings) -> float:
    return settings.learning_rate * min(
        1.0, (step + 1) / settings.warmup, max(0.0, (settings.steps - step) / settings.decay)
    )


class Trainer:
    """One training run in `folder`: its data, and the state that a killed run resumes from."""

    def __init__(
        self,
        folder: Path,
        settings: TrainSettings,
        device: str = "cpu",
        start_from: Path | None = None,
        share: Share | None = None,
    ) -> None:
        self.folder, self.settings, self.device, self.share = folder, settings, torch.device(device), share or Share()
        torch.manual_seed(settings.seed)
        self.data = rendered_scenes(
            folder / f"scenes-{settings.scenes}-{settings.seed}", settings.scenes, settings.seed
        )
        self.model = (load_checkpoint(start_from) if start_from else TinyScenesTrainingModel()).to(self.device).train()
        self.lone = torch.from_numpy(np.flatnonzero(labels(self.data.attributes)["shape"] != UNASKED))
        self.sigmas = discrete_sigmas().to(self.device)
        self.weights = noise_level_weights(self.sigmas.cpu(), settings)
        self.empty = torch.tensor(WordTokenizer().padded(""), dtype=torch.long)
        self.step, self.average = 0, 1.0
        self.state_path = folder / f"state-{self.share.rank}-of-{self.share.world}.pt"
        self.fresh = start_from is None
        self.optimiser = GeneratorOptimiser(
            self.model, settings.weight_decay, self.share.rank, self.share.world, settings.muon_factor
        )
        self.ema = copy.deepcopy(self.model).requires_grad_(False)

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "ema": self.ema, "optimiser": self.optimiser}

    def _save_state(self) -> None:
        save_training_state(self.state_path, self._parts(), self.settings, step=self.step, average=self.average)
        if self.share.rank == 0:
            self.export()

    def _resume(self) -> bool:
        found = load_training_state(
            self.state_path, self._parts(), self.settings, changeable=("steps", "decay"), device=self.device
        )
        if found:
            self.step, self.average = int(found["step"]), found["average"]
        self.share.require_equal(self.step)
        return found is not None

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images, tokens, timesteps and noise of a step: a function of seed and step, so a resumed run repeats it."""
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + step)
        size = self.settings.batch
        index = torch.randint(len(self.data.images), (size,), generator=generator)
        chosen = torch.rand(size, generator=generator) < self.settings.lone_share
        lone = self.lone[torch.randint(len(self.lone), (size,), generator=generator)]
        index = torch.where(chosen, lone, index).numpy()
        phrasing = torch.randint(self.data.tokens.shape[1], (size,), generator=generator).numpy()
        tokens = torch.from_numpy(self.data.tokens[index, phrasing]).long()
        tokens[torch.rand(size, generator=generator) < self.settings.caption_dropout] = self.empty
        images = torch.from_numpy(self.data.images[index]).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        timestep = torch.multinomial(self.weights, size, replacement=True, generator=generator)
        noise = torch.randn(images.shape, generator=generator)
        mine = [self.share.take(tensor).to(self.device) for tensor in (images, tokens, timestep, noise)]
        return mine[0], mine[1], mine[2], mine[3]

    def train_step(self) -> float:
        images, tokens, timestep, noise = self.batch(self.step)
        # On the CPU the backward pass of flash attention takes 14 times its forward pass; plain products take 3 times.
        attention = sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext()
        self.optimiser.zero_grad()
        with attention:
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = diffusion_loss(self.model, images, tokens, timestep, self.sigmas, noise)
            loss.backward()
        self.share.average_gradients(self.model.parameters())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step(learning_rate(self.step, self.settings))
        self.step += 1
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)
        return loss.item()

    def run(self, save_every: int = 500) -> Path:
        """Trains to the end, writes `tiny_scenes.safetensors` (EMA weights, fp16) into the folder, returns its path."""
        if not self._resume() and self.fresh:
            final = pretrain_text(self.model, self.data, self.settings, self.device, self.share)
            log.info("text encoder's head start: loss %.4f", final)
            self.ema.load_state_dict(self.model.state_dict())
        started, first = time.monotonic(), self.step
        while self.step < self.settings.steps:
            loss = self.train_step()
            if not math.isfinite(loss):
                raise RuntimeError(f"The loss became {loss} at step {self.step}; resume with a lower learning rate.")
            self.average += 0.01 * (loss - self.average) if self.step > 100 else (loss - self.average) / self.step
            if self.step % 50 == 0 and self.share.rank == 0:
                pace = (time.monotonic() - started) / (self.step - first)
                log.info(
                    "step %d  v-loss %.4f  %.2f s/step  %.0f min left",
                    self.step,
                    self.average,
                    pace,
                    pace * (self.settings.steps - self.step) / 60,
                )
            if self.step % save_every == 0:
                self._save_state()
        self._save_state()
        return self.folder / "tiny_scenes.safetensors"

    def export(self) -> Path:
        path = self.folder / "tiny_scenes.safetensors"
        save_checkpoint(self.ema, path, self.provenance())
        return path

    def provenance(self) -> dict[str, Any]:
        return {
            "model": "Tiny Scenes generator",
            "command": "python -m research tiny-scenes train",
            "settings": asdict(self.settings),
            "steps_done": self.step,
            "v_loss": round(self.average, 5),
            "torch": torch.__version__,
            "device": self.device.type,
            "parameters": {
                "unet": sum(p.numel() for p in self.model.unet.parameters()),
                "text": sum(p.numel() for p in self.model.text.parameters()),
            },
        }


def read_settings(text: str | None) -> TrainSettings:
    """TrainSettings from JSON such as `{"steps": 20000}`; unknown names are an error that lists the known ones."""
    changes = json.loads(text) if text else {}
    known = asdict(TrainSettings())
    if unknown := set(changes) - set(known):
        raise ValueError(f"unknown training settings {sorted(unknown)}; known: {sorted(known)}")
    return TrainSettings(**{**known, **changes})


def train_share(
    rank: int, world: int, folder: Path, settings: TrainSettings, start_from: Path | None, prepare: Callable[[], object]
) -> None:
    """One of `world` single-threaded processes that train together; `prepare` puts the host on `sys.path`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    prepare()
    torch.set_num_threads(1)
    if world > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=(folder.resolve() / "rendezvous").as_uri(), rank=rank, world_size=world
        )
    Trainer(folder, settings, start_from=start_from, share=Share(rank, world)).run()


def train(
    folder: Path,
    settings: TrainSettings,
    *,
    workers: int,
    prepare: Callable[[], object],
    start_from: Path | None = None,
) -> Path:
    """Trains on the CPU with `workers` processes; the same command goes on where a killed run stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    rendered_scenes(folder / f"scenes-{settings.scenes}-{settings.seed}", settings.scenes, settings.seed, workers)
    (folder / "rendezvous").unlink(missing_ok=True)
    torch.multiprocessing.spawn(train_share, (workers, folder, settings, start_from, prepare), nprocs=workers)
    return folder / "tiny_scenes.safetensors"
