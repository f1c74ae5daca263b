"""Samplers a plan can serve, what they cost, and rendering through the host's own `common_ksampler`."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError, UnsupportedError
from ..core.messages import message
from .conditioning import first_part
from .energy import watt_hours
from .prefix_cache import DRAFTS, PrefixCache, Replay, run_key, with_replay

log = logging.getLogger(__name__)

# Denoiser evaluations of a run of n >= 0 steps whose last sigma is 0, counted in the genuine hosts (tests/host counts
# them again). A cond + uncond batch is one evaluation.
ONE = "one"
TWO_LESS_ONE = "two, the last step one"
THREE_LESS_THREE = "three, the last two steps two and one"
_COST: Mapping[str, Callable[[int], int]] = MappingProxyType(
    {ONE: lambda n: n, TWO_LESS_ONE: lambda n: max(2 * n - 1, 0), THREE_LESS_THREE: lambda n: max(3 * n - 3, n)}
)

SUPPORTED: Mapping[str, str] = MappingProxyType(
    {
        "euler": ONE,
        "euler_cfg_pp": ONE,
        "heun": TWO_LESS_ONE,
        "heunpp2": THREE_LESS_THREE,
        "exp_heun_2_x0": TWO_LESS_ONE,
        "dpm_2": TWO_LESS_ONE,
        "lms": ONE,
        "dpm_fast": ONE,
        "dpmpp_2m": ONE,
        "dpmpp_2m_cfg_pp": ONE,
        "ipndm": ONE,
        "ipndm_v": ONE,
        "deis": ONE,
        "res_multistep": ONE,
        "res_multistep_cfg_pp": ONE,
        "gradient_estimation": ONE,
        "gradient_estimation_cfg_pp": ONE,
        "ddim": ONE,
        "uni_pc": ONE,
        "uni_pc_bh2": ONE,
    }
)
"""Deterministic samplers: more steps approach one image, so a step count has a quality. Value: cost of a step."""

EVALUATIONS: Mapping[str, int] = MappingProxyType({ONE: 1, TWO_LESS_ONE: 2, THREE_LESS_THREE: 3})
"""Of a step that is not among the last ones."""

BROWNIAN: Mapping[str, str] = MappingProxyType(
    {
        f"{name}{device}": cost
        for name, cost in (
            ("dpmpp_sde", TWO_LESS_ONE),
            ("dpmpp_2m_sde", ONE),
            ("dpmpp_2m_sde_heun", ONE),
            ("dpmpp_3m_sde", ONE),
        )
        for device in ("", "_gpu")
    }
)
"""Samplers whose noise is one Brownian path of the seed, looked up between two noise levels
(comfy.k_diffusion.sampling, BrownianTreeNoiseSampler). More steps approach one image as long as every count asks the
same path: see host/noise.py. Value: cost of a step."""

PLANNED: Mapping[str, str] = MappingProxyType({**SUPPORTED, **BROWNIAN})
"""All samplers that a count can be planned for."""

CLOCK = "budgetfusion_clock"
PROGRESS = "budgetfusion_progress"
SIGMAS = "budgetfusion_sigmas"


@dataclass(frozen=True)
class Render:
    """One finished run of the host's sampler."""

    latent: dict[str, Any]
    """What the host returned."""
    steps: int
    """Executed: 0 at denoise 0, and a step more or less than asked with the schedulers ddim_uniform and beta."""
    seconds: float
    """Of the sampling loop alone: without loading the model, encoding or decoding."""
    watt_hours: float | None = None
    """What the GPU took for it, other programs on it included; None where it does not tell."""
    evaluations: int = 0
    """Of the denoiser that `steps` steps need."""
    replayed: int = 0
    """Of these, taken from the draft: an earlier run with the same beginning."""
    key: str | None = None
    """prefix_cache.run_key; None where something that the picture depends on cannot be told."""

    @property
    def seconds_per_step(self) -> float:
        """Of the steps that were computed; 0 where none was."""
        if self.evaluations <= self.replayed:
            return 0.0 if self.replayed or not self.steps else self.seconds / self.steps
        return self.seconds / (self.steps * (1.0 - self.replayed / self.evaluations))


def check_sampler(sampler_name: str) -> None:
    """UnsupportedError unless the number of steps alone decides this sampler's image."""
    check_has_count(sampler_name)
    if sampler_name in PLANNED:
        return
    raise UnsupportedError(message("sampler_noisy", sampler=sampler_name))


def check_has_count(sampler_name: str) -> None:
    """UnsupportedError for the sampler that ignores the number of steps."""
    if sampler_name == "dpm_adaptive":
        raise UnsupportedError(message("sampler_adaptive"))


def nfe(sampler_name: str, steps: int) -> int:
    """Denoiser evaluations of `steps` steps; `steps` itself for a sampler that is not in PLANNED."""
    return _COST[PLANNED.get(sampler_name, ONE)](steps)


def shared_evaluations(sampler_name: str, prefix_steps: int) -> int:
    """Evaluations that runs with the same first `prefix_steps` steps have in common: theirs and the next one; of SDE
    samplers where both schedules end on the same sigma, else only the first. 0 for a sampler that is not in PLANNED."""
    cost = PLANNED.get(sampler_name)
    return 0 if cost is None else EVALUATIONS[cost] * prefix_steps + 1


def get_sigmas(model: Any, sampler_name: str, scheduler: str, steps: int, denoise: float = 1.0) -> Tensor:
    """The sigmas [steps + 1] that the stock KSampler would use, on the CPU.

    Asked from the host's own KSampler class: some samplers drop the last but one sigma there, and `ddim_uniform` and
    `beta` may give another number of steps.
    """
    sampler_class = importlib.import_module("comfy.samplers").KSampler
    sampler = sampler_class(
        model, steps, torch.device("cpu"), sampler_name, scheduler, denoise=denoise, model_options=model.model_options
    )
    return sampler.sigmas


def check_latent(latent: Any, name: str = "latent_image") -> Any:
    """The samples of a LATENT with at least one image: a tensor, or the host's own type for multi-part latents."""
    samples = latent.get("samples") if isinstance(latent, Mapping) else None
    if samples is None:
        raise InputError(message("latent_none", input=name))
    if isinstance(samples, Tensor) and 0 in samples.shape:
        raise InputError(message("latent_empty", input=name, shape=str(tuple(samples.shape))))
    return samples


def check_pictures(latent: Any, name: str = "latent_image") -> Tensor:
    """The samples [B, C, H, W] or [B, C, F, H, W] of a LATENT that becomes pictures; InputError for sound, 3-D and
    multi-part latents, before anything is rendered."""
    samples = check_latent(latent, name)
    if not isinstance(samples, Tensor) or samples.ndim not in (4, 5):
        shape = str(tuple(samples.shape)) if isinstance(samples, Tensor) else type(samples).__name__
        raise InputError(message("latent_no_pictures", input=name, shape=shape))
    return samples


def pixel_size(model: Any, latent: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """(width, height) in pixels of the image that this latent becomes; None where it cannot be told."""
    samples = first_part(check_latent(latent))
    if samples is None or samples.ndim < 4:
        return None, None
    model_ratio = getattr(model.get_model_object("latent_format"), "spacial_downscale_ratio", 8)
    # an empty latent states the ratio it was made for and the host rescales it; an encoded one is the model's own
    ratio = latent.get("downscale_ratio_spacial", model_ratio)
    return int(samples.shape[-1] * ratio), int(samples.shape[-2] * ratio)


def render(
    model: Any,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Any,
    negative: Any,
    latent_image: Mapping[str, Any],
    denoise: float = 1.0,
    *,
    sigmas: Tensor | None = None,
    prefix_steps: int = 0,
    cache: PrefixCache = DRAFTS,
) -> Render:
    """The stock KSampler's own call, once, with a clock around the sampling loop. Bit-identical to the stock node.

    sigmas: [steps + 1], to run in place of the scheduler's; everything else stays the host's. prefix_steps: how many
    steps other counts share; their evaluations and the next one are kept, and replayed where an earlier run with the
    same beginning kept them in `cache`.
    """
    check_latent(latent_image)
    laps: list[Lap] = []
    inputs = (seed, cfg, sampler_name, positive, negative, latent_image, prefix_steps, denoise)
    key, clocked, replay = _with_draft(model, shared_evaluations(sampler_name, prefix_steps), cache, inputs)
    clocked.add_wrapper_with_key(_wrappers().SAMPLER_SAMPLE, CLOCK, _clock(laps))
    if sigmas is not None:
        clocked.add_wrapper_with_key(_wrappers().OUTER_SAMPLE, SIGMAS, _along(sigmas))
    common_ksampler = importlib.import_module("nodes").common_ksampler
    (latent,) = common_ksampler(
        clocked, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise=denoise
    )
    # no lap at denoise 0, where the host samples nothing
    used = [lap.watt_hours for lap in laps if lap.watt_hours is not None]
    done = sum(lap.steps for lap in laps)
    return Render(
        latent=latent,
        steps=done,
        seconds=sum(lap.seconds for lap in laps),
        watt_hours=sum(used) if used and len(used) == len(laps) else None,
        evaluations=nfe(sampler_name, done),
        replayed=0 if replay is None else replay.replayed,
        key=key,
    )


def trajectory_key(
    model: Any,
    seed: int,
    cfg: float,
    sampler_name: str,
    positive: Any,
    negative: Any,
    latent_image: Mapping[str, Any],
    prefix_steps: int,
    denoise: float = 1.0,
) -> str | None:
    """Equal for renders that `prefix_steps` steps of one schedule are the same in."""
    return run_key(model, seed, cfg, sampler_name, prefix_steps, denoise, positive, negative, latent_image)


def _with_draft(
    model: Any, keep: int, cache: PrefixCache, inputs: tuple[Any, ...]
) -> tuple[str | None, Any, Replay | None]:
    """(`trajectory_key` of the inputs where anything is shared, a clone of the model, its replay). A fault costs the
    draft, and no render."""
    try:
        key = trajectory_key(model, *inputs) if keep > 0 else None
        return key, *with_replay(model.clone(), key, keep, cache)
    except Exception:
        log.warning("BudgetFusion renders without a draft", exc_info=True)
        return None, model.clone(), None


def sweep(
    model: Any,
    seed: int,
    counts: Sequence[int],
    cfg: float,
    sampler_name: str,
    scheduler: str,
    positive: Any,
    negative: Any,
    latent_image: Mapping[str, Any],
    sigmas_of: Callable[[int], tuple[Tensor | None, int]] = lambda _steps: (None, 0),
) -> Iterator[Render]:
    """One render for each count, from the same noise, with one progress bar over all of them. sigmas_of: count ->
    `sigmas` and `prefix_steps` of `render`; the beginning that counts share is evaluated once."""
    bar = importlib.import_module("comfy.utils").ProgressBar(sum(counts))
    done = 0
    for steps in counts:
        reporting = model.clone()
        reporting.add_wrapper_with_key(_wrappers().OUTER_SAMPLE, PROGRESS, report_steps(model, bar, done, sum(counts)))
        inputs = (reporting, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image)
        sigmas, prefix_steps = sigmas_of(steps)
        yield render(*inputs, sigmas=sigmas, prefix_steps=prefix_steps)
        done += steps
        bar.update_absolute(done, sum(counts))


def decode(vae: Any, latent: Mapping[str, Any]) -> Tensor:
    """BHWC float images in [0, 1], by the host's VAE Decode node."""
    (images,) = importlib.import_module("nodes").VAEDecode().decode(vae, latent)
    return images


def _wrappers() -> Any:
    return importlib.import_module("comfy.patcher_extension").WrappersMP


@dataclass(frozen=True)
class Lap:
    """One sampling loop."""

    steps: int
    seconds: float
    watt_hours: float | None


def _clock(laps: list[Lap]) -> Callable[..., Any]:
    """Wraps the sampling loop; appends a lap."""

    def timed(executor: Callable[..., Any], guider: Any, sigmas: Tensor, *args: Any, **kwargs: Any) -> Any:
        before = watt_hours(sigmas.device)
        started = time.perf_counter()
        out = executor(guider, sigmas, *args, **kwargs)
        if isinstance(out, Tensor) and out.is_cuda:
            torch.cuda.synchronize(out.device)  # the host waits for the result right after this anyway
        seconds = time.perf_counter() - started
        after = watt_hours(sigmas.device)
        used = None if before is None or after is None else after - before
        laps.append(Lap(len(sigmas) - 1, seconds, used))
        return out

    return timed


def _along(sigmas: Tensor) -> Callable[..., Any]:
    """Wraps the host's outer_sample(noise, latent_image, sampler, sigmas, ...): other sigmas go in."""

    def along(executor: Any, noise: Any, latent: Any, sampler: Any, own: Tensor, *args: Any, **kwargs: Any) -> Any:
        return executor(noise, latent, sampler, sigmas.to(own.device), *args, **kwargs)

    return along


def report_steps(model: Any, bar: Any, done: int, total: int) -> Callable[..., Any]:
    """Replaces the sampler's own progress callback, which would start again at 0 for each count."""
    previews = importlib.import_module("latent_preview")
    interrupted = importlib.import_module("comfy.model_management").throw_exception_if_processing_interrupted
    previewer = previews.get_previewer(model.load_device, model.get_model_object("latent_format"))

    def callback(step: int, denoised: Any, _x: Any, _total_steps: int) -> None:
        interrupted()
        if denoised.is_nested:
            denoised = denoised.tensors[0]
        shown = None if previewer is None else previewer.decode_latent_to_preview_image("JPEG", denoised)
        bar.update_absolute(done + step + 1, total, shown)

    def reporting(executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # outer_sample(noise, latent_image, sampler, sigmas, denoise_mask, callback, ...)
        if "callback" in kwargs:
            return executor(*args, **{**kwargs, "callback": callback})
        return executor(*args[:5], callback, *args[6:], **kwargs)

    return reporting
