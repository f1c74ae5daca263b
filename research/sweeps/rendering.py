"""Renders prompts over a grid of step counts in a genuine ComfyUI inside this process, and measures them at once."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from budgetfusion_nodes.core.curves import METRICS
from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.setting import Setting
from budgetfusion_nodes.host.batch import encode_prompts, render_batch, token_count
from budgetfusion_nodes.host.identity import Identity, read_identity
from budgetfusion_nodes.host.prefix_cache import PrefixCache, with_replay
from budgetfusion_nodes.host.sampling import decode, nfe
from budgetfusion_nodes.metrics.images import to_bchw
from budgetfusion_nodes.metrics.measure import Backends, Series
from budgetfusion_nodes.tiny_scenes.host_model import register
from research.in_process_host import import_host, start_host

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
KEPT_BYTES = 2**30
"""For the evaluation that all counts of a batch share."""
JUDGES = ("latent_rmse", "mdsi", "ms_ssim")
"""Distances to the full-step image that no plan is made with: RMSE in model space, MDSI and 1 - MS-SSIM of piq (0 is
equal)."""

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the five scales (Wang, Simoncelli & Bovik 2003, table 1)."""

Report = Callable[[int], None]
"""Told of denoiser evaluations as they are done: images times evaluations."""


@dataclass(frozen=True)
class Sampling:
    """How to render: a Setting without the model."""

    sampler_name: str = "dpmpp_2m"
    scheduler: str = "karras"
    cfg: float = 3.0
    width: int = 64
    height: int = 64
    dtype: str = "fp32"
    """fp32: on a GPU too, without TF32, so that one planner holds for both; bf16: the denoiser under autocast on the
    CPU, faster, but its rounding is part of every distance; host: whatever ComfyUI chooses on its GPU (the Setting then
    says which)."""

    def setting(self, identity: Identity) -> Setting:
        """Autocast overrules the model's own precision. UnsupportedError if the model cannot be told from others."""
        return Setting(
            identity.known(),
            self.sampler_name,
            self.scheduler,
            self.cfg,
            self.width,
            self.height,
            model_name=identity.name,
            precision="bf16" if self.dtype == "bf16" else identity.precision,
            sampling=identity.sampling.text(),
        )


@dataclass(frozen=True)
class LoadedModel:
    """A checkpoint as the host's Load Checkpoint gives it."""

    model: Any
    clip: Any
    vae: Any
    host_version: str
    device: torch.device = CPU
    """Where the host renders, and where its pictures are measured."""


@dataclass(frozen=True)
class Measured:
    """n trajectories over K counts. Distances are to each trajectory's own image at the last count."""

    shortfall: Tensor
    """[n, K, M] in METRICS order, >= 0, exactly 0 at the last count."""
    l_snr: Tensor
    """[n, K] dB of the image itself."""
    judges: Tensor
    """[n, K, J] in JUDGES order."""


def load_model(
    host_dir: Path, base_dir: Path, checkpoint: Path, device: str = "cpu", *, fp32: bool = False
) -> LoadedModel:
    """Starts the host and loads the checkpoint file through its own loader. device: "cpu" or "gpu"; on "gpu" the host
    chooses the precision as it does for an artist's renders, unless `fp32` asks for full single precision."""
    if not checkpoint.is_file():
        raise InputError(f"--checkpoint: there is no file {checkpoint.name} in {checkpoint.parent}.")
    if device == "gpu" and not getattr(torch, "accelerator", torch.cuda).is_available():
        raise InputError(
            "--device: PyTorch finds no GPU here. Install the PyTorch that belongs to your GPU, or leave --device out."
        )
    import_host(host_dir, cpu=device == "cpu")  # with PyTorch's own attention, where no host runs yet
    if fp32 and device == "gpu":
        compute_in_fp32()
    session = start_host(host_dir, base_dir, extras=(), cpu=device == "cpu")
    register()
    folder_paths, nodes = importlib.import_module("folder_paths"), importlib.import_module("nodes")
    folder_paths.add_model_folder_path("checkpoints", str(checkpoint.parent.resolve()), True)
    if Path(folder_paths.get_full_path("checkpoints", checkpoint.name)).resolve() != checkpoint.resolve():
        raise InputError(f"--checkpoint: ComfyUI knows another file named {checkpoint.name}. Rename this one.")
    with torch.inference_mode():
        model, clip, vae = nodes.CheckpointLoaderSimple().load_checkpoint(checkpoint.name)[:3]
    where = importlib.import_module("comfy.model_management").get_torch_device()
    return LoadedModel(model, clip, vae, session.version, where)


def compute_in_fp32() -> None:
    """The host loads denoisers in fp32 from now on, and PyTorch rounds no factor of a product to TF32 (10 bits)."""
    importlib.import_module("comfy.cli_args").args.fp32_unet = True
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False  # on by default, and the picture's first layer is a convolution


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def identify(loaded: LoadedModel, sampling: Sampling) -> Setting:
    return sampling.setting(read_identity(loaded.model))


class Renderer:
    """Renders and measures trajectories of one model at one sampling setting."""

    def __init__(self, loaded: LoadedModel, sampling: Sampling, backends: Backends | None) -> None:
        self.loaded, self.sampling, self.backends = loaded, sampling, backends
        (self.negative,) = encode_prompts(loaded.clip, [""])

    def encode(self, texts: Sequence[str]) -> list[Any]:
        """A CONDITIONING for each text; a text that occurs again is not encoded again."""
        distinct = list(dict.fromkeys(texts))
        known = dict(zip(distinct, encode_prompts(self.loaded.clip, distinct), strict=True))
        return [known[text] for text in texts]

    def latents(
        self, conditionings: Sequence[Any], seeds: Sequence[int], grid: Sequence[int], report: Report | None = None
    ) -> Tensor:
        """[n, K, C, H, W]: every count from the same noise; prompts of different token counts in separate batches."""
        groups: dict[int, list[int]] = {}
        for index, conditioning in enumerate(conditionings):
            groups.setdefault(token_count(conditioning), []).append(index)
        rows: list[Tensor | None] = [None] * len(seeds)
        for members in groups.values():
            given = [conditionings[i] for i in members], [seeds[i] for i in members]
            rendered = torch.stack(list(self._counts(*given, grid, report)), dim=1)
            for place, index in enumerate(members):
                rows[index] = rendered[place]
        return torch.stack([row for row in rows if row is not None])

    def _counts(
        self, conditionings: Sequence[Any], seeds: Sequence[int], grid: Sequence[int], report: Report | None
    ) -> Iterator[Tensor]:
        cache = PrefixCache(limit=KEPT_BYTES)
        for steps in grid:
            model, _ = with_replay(self.loaded.model, "all counts begin alike", 1, cache)
            with self._precision():
                yield render_batch(
                    model,
                    conditionings,
                    self.negative,
                    seeds,
                    steps,
                    sampler_name=self.sampling.sampler_name,
                    scheduler=self.sampling.scheduler,
                    cfg=self.sampling.cfg,
                    width=self.sampling.width,
                    height=self.sampling.height,
                ).float()
            if report is not None:
                report(len(seeds) * nfe(self.sampling.sampler_name, steps))

    def _precision(self) -> AbstractContextManager[Any]:
        if self.sampling.dtype == "bf16":
            return torch.autocast(self.loaded.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def images(self, latents: Tensor) -> Tensor:
        """[n, K, 3, H, W] in [0, 1] of latents [n, K, C, H, W], by the host's VAE Decode."""
        n, counts = latents.shape[:2]
        with torch.inference_mode():  # as the host runs its nodes: a VAE's weights would ask for gradients
            decoded = decode(self.loaded.vae, {"samples": latents.flatten(0, 1)}).float().clamp(0.0, 1.0)
        return to_bchw(decoded.clone()).reshape(n, counts, 3, *decoded.shape[1:3])

    def measure(self, latents: Tensor, images: Tensor) -> Measured:
        """Of latents [n, K, C, H, W] and their images [n, K, 3, H, W]. The result is on the CPU."""
        if self.backends is None:
            raise InputError("study: the backends of d_sim and i_clip are needed to measure.")
        return measure_trajectories(latents, images, self.backends, self.loaded.device)


@torch.no_grad()
def measure_trajectories(latents: Tensor, images: Tensor, backends: Backends, device: torch.device = CPU) -> Measured:
    """Each image against its trajectory's last one, and the judges of the same pairs, on `device`."""
    rows = [_measured(*row, backends, device) for row in zip(latents, images, strict=True)]
    return Measured(*(torch.stack([getattr(row, f.name) for row in rows]).cpu() for f in fields(Measured)))


def _measured(latents: Tensor, images: Tensor, backends: Backends, device: torch.device) -> Measured:
    """Of one trajectory, [K, C, H, W] and [K, 3, H, W]."""
    found = Series(images[-1:], backends, device=device).add(images)
    shortfall = torch.stack([found.distances[metric] for metric in METRICS], dim=-1).cpu()
    rmse = (latents - latents[-1:]).square().mean(dim=(1, 2, 3)).sqrt()
    x, y = images.to(device), images[-1:].to(device).expand_as(images)
    judges = torch.stack([rmse.cpu(), _mdsi(x, y).cpu(), ms_ssim_distance(x, y).cpu()], dim=-1)
    for distances in (shortfall, judges):
        distances[-1] = 0.0  # the image against itself; what is left is rounding
    return Measured(shortfall, found.decibel.cpu(), judges)


def _mdsi(x: Tensor, y: Tensor) -> Tensor:
    """Mean Deviation Similarity Index [B] (Nafchi et al. 2016) by piq; 0 for equal images, larger is worse."""
    from piq import mdsi

    return torch.nan_to_num(mdsi(x, y, data_range=1.0, reduction="none"))


def ms_ssim_distance(x: Tensor, y: Tensor) -> Tensor:
    """1 - MS-SSIM [B] by piq, for BCHW in [0, 1] of at least 16 pixels; 0 for equal images.

    The published five scales with an 11-pixel window need 161 pixels. Smaller images are compared with a 7-pixel window
    on the first three scales (from 25 pixels on) or two, their weights made to add up to 1.
    """
    from piq import multi_scale_ssim

    size = min(x.shape[-2:])
    kernel, scales = (11, 5) if size >= 161 else (7, 3 if size >= 25 else 2)
    weights = torch.tensor(MS_SSIM_WEIGHTS[:scales], dtype=x.dtype, device=x.device)
    similarity = multi_scale_ssim(
        x, y, kernel_size=kernel, data_range=1.0, reduction="none", scale_weights=weights / weights.sum()
    )
    return (1.0 - similarity).clamp_min(0.0)
