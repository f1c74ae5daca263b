"""A model in a genuine ComfyUI inside this process, from texts to pictures."""

from __future__ import annotations

import hashlib
import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from budgetfusion_nodes.core.curves import METRICS
from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.setting import Setting
from budgetfusion_nodes.host.batch import encode_prompts
from budgetfusion_nodes.host.identity import Identity, read_identity
from budgetfusion_nodes.host.sampling import decode
from budgetfusion_nodes.metrics.images import to_bchw
from budgetfusion_nodes.metrics.measure import Backends, Series
from budgetfusion_nodes.tiny_scenes.host_model import register
from research.in_process_host import import_host, start_host

log = logging.getLogger(__name__)

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Sampling:
    """How to render: a Setting without the model."""

    sampler_name: str = "dpmpp_2m"
    scheduler: str = "karras"
    cfg: float = 3.0
    width: int = 64
    height: int = 64

    def setting(self, identity: Identity) -> Setting:
        """UnsupportedError if the model cannot be told from others."""
        return Setting(
            identity.known(),
            self.sampler_name,
            self.scheduler,
            self.cfg,
            self.width,
            self.height,
            model_name=identity.name,
            precision=identity.precision,
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
    """Texts to conditionings and latents to pictures, for one model at one sampling setting."""

    def __init__(self, loaded: LoadedModel, sampling: Sampling) -> None:
        self.loaded, self.sampling = loaded, sampling
        (self.negative,) = encode_prompts(loaded.clip, [""])

    def encode(self, texts: Sequence[str]) -> list[Any]:
        """A CONDITIONING for each text; a text that occurs again is not encoded again."""
        distinct = list(dict.fromkeys(texts))
        known = dict(zip(distinct, encode_prompts(self.loaded.clip, distinct), strict=True))
        return [known[text] for text in texts]

    def images(self, latents: Tensor) -> Tensor:
        """[n, 3, H, W] in [0, 1] of latents [n, C, H, W], by the host's VAE Decode."""
        with torch.inference_mode():  # as the host runs its nodes: a VAE's weights would ask for gradients
            decoded = decode(self.loaded.vae, {"samples": latents}).float().clamp(0.0, 1.0)
        return to_bchw(decoded.clone())


def measure_series(images: Tensor, backends: Backends, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    """(distances [K, M] in METRICS order to the last picture, L-SNR [K] in dB) of one series [K, 3, H, W]."""
    found = Series(images[-1:], backends, device=device).add(images)
    shortfall = torch.stack([found.distances[metric] for metric in METRICS], dim=-1)
    shortfall[-1] = 0.0  # the picture against itself; what is left is rounding
    return shortfall, found.decibel
