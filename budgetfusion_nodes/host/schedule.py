"""The host's schedulers as quantile functions, and the sigmas of a nested schedule for a model and sampler."""

from __future__ import annotations

import hashlib
import importlib
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UnsupportedError
from ..core.messages import message
from ..core.schedule import NestedSchedule, SigmaQuantile
from .sampling import check_sampler

DENSE_STEPS = 128
"""Asked of a scheduler for its quantile function. Between them log sigma is interpolated; `normal` takes some 10 ms."""
FEW_STEPS = 10
KNOWN = 16
"""Quantile functions that are remembered."""
IGNORES_SIGMAS = ("dpm_fast",)
"""Takes the first and last sigma and spaces the steps itself."""

_known: OrderedDict[str, SigmaQuantile] = OrderedDict()


def check_nestable(sampler_name: str) -> None:
    """UnsupportedError unless this sampler steps along the sigmas that it is given, without fresh noise."""
    check_sampler(sampler_name)
    if sampler_name in IGNORES_SIGMAS:
        raise UnsupportedError(message("schedule_ignored", sampler=sampler_name))


def scheduler_quantile(model: Any, scheduler: str) -> SigmaQuantile:
    """Q of this MODEL (with its shift) and scheduler. InputError where its sigmas are no falling sequence."""
    sampling = model.get_model_object("model_sampling")
    key = f"{scheduler} {_sampling_digest(sampling)}"
    if key not in _known:
        _known[key] = SigmaQuantile.from_sigmas(_sigmas(sampling, scheduler, DENSE_STEPS))
        if len(_known) > KNOWN:
            _known.popitem(last=False)
    _known.move_to_end(key)
    return _known[key]


def stock_tail_end(model: Any, scheduler: str) -> float:
    """`tail_end` as the scheduler itself has it: 1 where few steps end on the same last sigma as many, else 0."""
    sampling = model.get_model_object("model_sampling")
    few, many = (float(_sigmas(sampling, scheduler, steps)[-2]) for steps in (FEW_STEPS, DENSE_STEPS))
    return 1.0 if abs(few - many) <= 1e-3 * many else 0.0


def nested_sigmas(
    model: Any, sampler_name: str, scheduler: str, schedule: NestedSchedule, steps: int, denoise: float = 1.0
) -> Tensor:
    """[steps + 1] float32 on the CPU, the last 0; none at denoise 0. See `NestedSchedule.sigmas`."""
    check_nestable(sampler_name)
    quantile, discard = scheduler_quantile(model, scheduler), discards_penultimate(sampler_name)
    return torch.from_numpy(schedule.sigmas(steps, quantile, denoise=denoise, discard_penultimate=discard))


def shared_sigmas(
    model: Any, sampler_name: str, scheduler: str, schedule: NestedSchedule | None, steps: int
) -> tuple[Tensor | None, int]:
    """(what a run of `steps` steps goes along, None for the scheduler's own; how many of them other counts share)."""
    if schedule is None:
        return None, 0
    sigmas = nested_sigmas(model, sampler_name, scheduler, schedule, steps)
    return sigmas, schedule.prefix_steps if steps > schedule.prefix_steps else 0


def discards_penultimate(sampler_name: str) -> bool:
    """Whether KSampler asks the scheduler for one step more for this sampler and drops its last positive sigma."""
    return sampler_name in importlib.import_module("comfy.samplers").KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS


def _sigmas(sampling: Any, scheduler: str, steps: int) -> Tensor:
    return importlib.import_module("comfy.samplers").calculate_sigmas(sampling, scheduler, steps).cpu()


def _sampling_digest(sampling: Any) -> str:
    """Of what a scheduler reads: the class, its table of sigmas and its shift."""
    digest = hashlib.sha256(" ".join(c.__qualname__ for c in type(sampling).__mro__).encode())
    for name in ("sigma_min", "sigma_max", "shift"):
        value = getattr(sampling, name, None)
        digest.update(f"{name}={value if value is None else float(value)!r} ".encode())
    table = getattr(sampling, "sigmas", None)
    if isinstance(table, Tensor):
        digest.update(table.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
