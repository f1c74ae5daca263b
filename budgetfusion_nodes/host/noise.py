"""The noise that SDE samplers draw while they sample: for each picture of a batch its own, and when it is one path.

comfy.k_diffusion.sampling draws it from a Brownian path of the seed between the lowest and the highest noise level of
the schedule, halving that span again and again. Where the span is the same for every step count (karras, exponential,
normal), every count follows one path and more steps approach one picture. Where an end moves by a small share of the
span (simple on SDXL's kind of model), the paths differ only at the lowest levels, which move the picture little; where
it moves far (simple on a flow model, linear_quadratic), they differ everywhere. docs/noisy_samplers.md has the
measurement.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..core.errors import UnsupportedError
from ..core.messages import message
from .sampling import BROWNIAN

END_MOVES = 0.02
"""Share of the span by which an end may move. simple on Tiny Scenes moves .016 from 8 to 40 steps and settles as karras
does; the same on a flow model moves .23."""


def check_settles(sampler_name: str, scheduler: str, few: Tensor, many: Tensor) -> None:
    """UnsupportedError where an SDE sampler would follow another noise path at each count.

    few, many: the schedules [steps + 1] of two step counts.
    """
    if sampler_name in BROWNIAN and not same_path(few, many):
        raise UnsupportedError(message("sampler_path", sampler=sampler_name, scheduler=scheduler))


def same_path(few: Tensor, many: Tensor) -> bool:
    """Whether two schedules span the same noise levels, but for END_MOVES."""
    (low, high), (low_many, high_many) = ((_lowest(sigmas), float(sigmas.max())) for sigmas in (few, many))
    return max(abs(low - low_many), abs(high - high_many)) <= END_MOVES * max(high, high_many)


def noise_for_each(
    sampler_name: str, latent: Tensor, seeds: Sequence[int], sigmas: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """The host's Brownian noise sampler for B pictures: picture i follows the path of seed i, as if rendered alone.

    latent: [1, C, H, W] and sigmas, its schedule: both on the device of the run. Returns the sampler's noise_sampler:
    two noise levels -> [B, C, H, W]. The _gpu variants draw on that device, so their path is another one on a GPU.
    """
    sampler_class = importlib.import_module("comfy.k_diffusion.sampling").BrownianTreeNoiseSampler
    lowest, highest = sigmas[sigmas > 0].min(), sigmas.max()
    on_cpu = not sampler_name.endswith("_gpu")
    each = [sampler_class(latent, lowest, highest, seed=int(seed), cpu=on_cpu) for seed in seeds]
    return lambda sigma, sigma_next: torch.cat([noise(sigma, sigma_next) for noise in each])


def _lowest(sigmas: Tensor) -> float:
    positive = sigmas[sigmas > 0]
    return float(positive.min()) if len(positive) else 0.0
