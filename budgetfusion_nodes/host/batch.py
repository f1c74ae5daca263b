"""Renders several prompts in one sampler run, each picture as if it had been rendered alone.

For studies and benchmarks: on a small model most of a step is overhead, so a batch of different prompts is several
times faster. The host allows it because conditioning tensors carry a batch dimension; only the noise is made for each
picture from its own seed. Tests compare every picture with the stock KSampler's (difference at most 1e-4).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError
from .noise import noise_for_each
from .sampling import BROWNIAN, check_sampler, get_sigmas


def render_batch(
    model: Any,
    conditionings: Sequence[Any],
    negative: Any,
    seeds: Sequence[int],
    steps: int,
    *,
    sampler_name: str = "dpmpp_2m",
    scheduler: str = "karras",
    cfg: float = 3.0,
    width: int = 64,
    height: int = 64,
    sigmas: Tensor | None = None,
) -> Tensor:
    """Latents [B, C, H / ratio, W / ratio] of B prompts, picture i with conditioning i and seed i. Denoise is 1.

    `conditionings` are B CONDITIONINGs as CLIPTextEncode makes them, all with one number of tokens (group by
    `token_count` where they differ); `negative` is shared. UnsupportedError for samplers that no count can be planned
    for. sigmas: [steps + 1], in place of the scheduler's. For a model with the pixel VAE the latents are pixels in
    [-1, 1].
    """
    check_sampler(sampler_name)
    if len(seeds) != len(conditionings):
        raise InputError(f"seeds: one for each prompt is needed; got {len(seeds)} for {len(conditionings)} prompts.")
    positive = stack_conditionings(conditionings)
    sample = importlib.import_module("comfy.sample")
    latent = empty_latent(model, 1, width, height)
    if sigmas is None:
        sigmas = get_sigmas(model, sampler_name, scheduler, steps)
    with torch.inference_mode():
        noise = torch.cat([sample.prepare_noise(latent, int(seed)) for seed in seeds])
        samples = sample.sample_custom(
            model,
            noise,
            cfg,
            _sampler(sampler_name, latent.to(model.load_device), seeds, sigmas.to(model.load_device)),
            sigmas,
            positive,
            negative,
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=int(seeds[0]),
        )
    return samples.clone()  # outside inference mode, so that the caller may do anything with it


def _sampler(sampler_name: str, latent: Tensor, seeds: Sequence[int], sigmas: Tensor) -> Any:
    """The host's sampler object, as its KSampler makes it; SDE samplers draw each picture's noise from its own seed."""
    samplers = importlib.import_module("comfy.samplers")
    if sampler_name not in BROWNIAN:
        return samplers.sampler_object(sampler_name)
    return samplers.ksampler(sampler_name, {"noise_sampler": noise_for_each(sampler_name, latent, seeds, sigmas)})


def empty_latent(model: Any, batch: int, width: int, height: int) -> Tensor:
    """What EmptyLatentImage and the stock KSampler agree on for this model: zeros [B, C, H / ratio, W / ratio]."""
    latent_format = model.get_model_object("latent_format")
    ratio = getattr(latent_format, "spacial_downscale_ratio", 8)
    if width % ratio or height % ratio:
        raise InputError(f"width and height must be multiples of {ratio} for this model; got {width} x {height}.")
    return torch.zeros(batch, latent_format.latent_channels, height // ratio, width // ratio)


def token_count(conditioning: Any) -> int:
    """Tokens of a CONDITIONING with one entry."""
    return int(_only_entry(conditioning)[0].shape[1])


def stack_conditionings(conditionings: Sequence[Any]) -> list[Any]:
    """One CONDITIONING whose batch dimension holds all of them. Each must have one entry with one picture's tokens."""
    if not conditionings:
        raise InputError("conditionings: at least one prompt is needed.")
    entries = [_only_entry(conditioning) for conditioning in conditionings]
    first_tokens, first_extra = entries[0]
    for tokens, extra in entries:
        if tokens.shape != first_tokens.shape or set(extra) != set(first_extra):
            raise InputError(
                f"conditionings: prompts of one batch need equal shapes and keys; got {tuple(first_tokens.shape)} "
                f"{sorted(first_extra)} and {tuple(tokens.shape)} {sorted(extra)}. Group them by token_count."
            )
    tokens = torch.cat([tokens for tokens, _ in entries])
    return [[tokens, {key: _stack(key, [extra[key] for _, extra in entries]) for key in first_extra}]]


def encode_prompts(clip: Any, prompts: Sequence[str]) -> list[Any]:
    """A CONDITIONING for each prompt by the host's CLIPTextEncode."""
    encoder = importlib.import_module("nodes").CLIPTextEncode()
    with torch.inference_mode():
        return [encoder.encode(clip, prompt)[0] for prompt in prompts]


def _only_entry(conditioning: Any) -> tuple[Tensor, dict[str, Any]]:
    if len(conditioning) != 1:
        raise InputError(f"conditionings: each prompt needs exactly one entry; got {len(conditioning)}.")
    tokens, extra = conditioning[0]
    if tokens.ndim != 3 or tokens.shape[0] != 1:
        raise InputError(f"conditionings: expected tokens [1, L, D]; got {tuple(tokens.shape)}.")
    return tokens, extra


def _stack(key: str, values: list[Any]) -> Any:
    if key == "pooled_output" and all(isinstance(value, Tensor) for value in values):
        return torch.cat(values)
    # sizes, guidance and the like belong to the whole run in the host, so they must agree
    if any(isinstance(value, Tensor) for value in values) or any(value != values[0] for value in values):
        raise InputError(f"conditionings: '{key}' differs between the prompts of a batch or cannot be stacked.")
    return values[0]
