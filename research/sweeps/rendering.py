"""Renders prompts over a grid of step counts in a genuine ComfyUI inside this process, and measures them at once."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from budgetfusion_nodes.host.identity import model_fingerprint, model_precision
from budgetfusion_nodes.host.sampling import decode, nfe
from budgetfusion_nodes.metrics.i_clip import cosine
from budgetfusion_nodes.metrics.images import to_bchw
from budgetfusion_nodes.metrics.l_snr import l_snr
from budgetfusion_nodes.metrics.measure import CHUNK_PIXELS, Backends, from_values
from budgetfusion_nodes.tiny_scenes.host_model import register
from research.in_process_host import import_host, start_host

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
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

    def setting(self, fingerprint: str, name: str, precision: str) -> Setting:
        """precision: the model's own, which autocast overrules."""
        return Setting(
            fingerprint,
            self.sampler_name,
            self.scheduler,
            self.cfg,
            self.width,
            self.height,
            model_name=name,
            precision="bf16" if self.dtype == "bf16" else precision,
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
    return sampling.setting(*model_fingerprint(loaded.model), model_precision(loaded.model))


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
        model = with_first_evaluation_reused(self.loaded.model)
        for steps in grid:
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
        """Of latents [n, K, C, H, W] and their images [n, K, 3, H, W], as many trajectories at once as the device
        should hold. The result is on the CPU."""
        device = self.loaded.device
        at_once = max(1, CHUNK_PIXELS // images[0, :, 0].numel())
        parts = [
            measure_trajectories(some.to(device), seen.to(device), self.backends)
            for some, seen in zip(latents.split(at_once), images.split(at_once), strict=True)
        ]
        return Measured(*(torch.cat([getattr(p, f.name).cpu() for p in parts]) for f in fields(Measured)))


@torch.no_grad()
def measure_trajectories(latents: Tensor, images: Tensor, backends: Backends | None) -> Measured:
    """The same numbers as metrics.measure of each image against the last, each image looked at once."""
    if backends is None or backends.i_clip is None:
        raise InputError("study: the backends of d_sim and i_clip are needed to measure.")
    n, counts = images.shape[:2]
    flat, last = images.flatten(0, 1), images[:, -1:].expand_as(images).flatten(0, 1)
    decibel = l_snr(flat).reshape(n, counts)
    embedded = backends.i_clip.encode(flat).reshape(n, counts, -1)
    target = embedded[:, -1:].expand_as(embedded)
    distances: Mapping[str, Tensor] = from_values(
        l_snr=(decibel.flatten(), decibel[:, -1:].expand_as(decibel).flatten()),
        d_sim=backends.d_sim.similarity(flat, last),
        i_clip=cosine(embedded.flatten(0, 1), target.flatten(0, 1)),
    )
    shortfall = torch.stack([distances[metric].reshape(n, counts) for metric in METRICS], dim=-1)
    shortfall[:, -1] = 0.0  # the image against itself; what is left is rounding
    rmse = (latents - latents[:, -1:]).square().mean(dim=(2, 3, 4)).sqrt()
    seen = (_mdsi(flat, last), ms_ssim_distance(flat, last))
    judges = torch.stack([rmse, *(values.reshape(n, counts) for values in seen)], dim=-1)
    judges[:, -1] = 0.0
    return Measured(shortfall, decibel, judges)


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


def with_first_evaluation_reused(model: Any) -> Any:
    """A clone of the MODEL that evaluates the denoiser once for all runs that begin with equal noise at equal sigma.

    Every count of a trajectory starts that way, so a sweep over K counts saves K - 1 evaluations; results are the same
    bits. The wrapper goes around cond and uncond together.
    """
    kinds = importlib.import_module("comfy.patcher_extension").WrappersMP
    clone = model.clone()
    clone.add_wrapper_with_key(kinds.CALC_COND_BATCH, "budgetfusion_first_evaluation", _FirstEvaluation())
    return clone


class _FirstEvaluation:
    """CALC_COND_BATCH wrapper: remembers the evaluation at the highest sigma that it saw last."""

    def __init__(self) -> None:
        self.sigma = float("-inf")
        self.x: Tensor | None = None
        self.out: list[Tensor] = []

    def __call__(self, executor: Any, model: Any, conds: Any, x: Tensor, timestep: Tensor, options: Any) -> Any:
        sigma = float(timestep[0])
        if self.x is not None and sigma == self.sigma and torch.equal(x, self.x):
            return [tensor.clone() for tensor in self.out]
        out = executor(model, conds, x, timestep, options)
        if sigma >= self.sigma:
            self.sigma, self.x, self.out = sigma, x.clone(), [tensor.clone() for tensor in out]
        return out
