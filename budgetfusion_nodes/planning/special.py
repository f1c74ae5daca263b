"""What keeps a graph's own step count: distilled models, noise paths that move; and renders of a part of a schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from ..core.distilled import MOST_STEPS, FewSteps, looks_distilled
from ..core.errors import InputError, UnsupportedError
from ..core.messages import Message, message
from ..core.partial import FULL, for_denoise, full_count, split_step
from ..core.plan import Plan
from ..core.setting import Setting
from ..host.few_steps import few_steps_of, is_lora
from ..host.noise import check_settles
from ..host.sampling import BROWNIAN, check_has_count, check_pictures, check_sampler, get_sigmas, nfe
from .nested import plan_sigmas


class Request(Protocol):
    """What is read of service.Request here."""

    @property
    def sampler_name(self) -> str: ...
    @property
    def scheduler(self) -> str: ...
    @property
    def max_steps(self) -> int: ...
    @property
    def denoise(self) -> float: ...


PROBED = (8, 40)
"""Two counts whose schedules end alike exactly where those of all counts do."""


def check_path(model: Any, sampler_name: str, scheduler: str, denoise: float = 1.0) -> None:
    """UnsupportedError where an SDE sampler follows another noise path at each count of this schedule."""
    if sampler_name in BROWNIAN and denoise > 0:
        few, many = (get_sigmas(model, sampler_name, scheduler, steps, denoise) for steps in PROBED)
        check_settles(sampler_name, scheduler, few, many)


def unsettled(model: Any, sampler_name: str, scheduler: str, denoise: float = 1.0) -> Message | None:
    """Why more steps do not approach one picture with this sampler, so that only one count for all prompts can be
    planned; None where they do. UnsupportedError for dpm_adaptive, which has no count at all."""
    check_has_count(sampler_name)
    try:
        check_sampler(sampler_name)
        check_path(model, sampler_name, scheduler, denoise)
    except UnsupportedError as error:
        return error.message
    return None


def check_distilled(
    model: Any, files: Sequence[str], cfg: float, max_steps: int, planned: Setting | None, chosen: bool
) -> None:
    """UnsupportedError, with the evidence, where the graph's own count is to be kept.

    planned: the setting of the planner that would serve; None where there is none. chosen: whether the artist named
    that planner, which is their word that it fits. A planner that was calibrated for this very distilled model plans
    it; a distilled LoRA is nothing that a planner which was calibrated without any LoRA has seen.
    """
    found = few_steps_of(model, files)
    if found is not None and (planned is None or (is_lora(found, model) and not chosen and not _with_lora(planned))):
        raise UnsupportedError(distilled_message(found, max_steps))
    unlike = planned is None or planned.cfg > 1.0
    if found is None and not chosen and unlike and looks_distilled(cfg, max_steps):
        raise UnsupportedError(message("distilled_looks", cfg=cfg, steps=max_steps))


def check_can_be_calibrated(latent_image: Mapping[str, Any] | None) -> None:
    """UnsupportedError for a latent that becomes no pictures: then no advice to calibrate may be given."""
    if not latent_image:
        return
    try:
        check_pictures(latent_image)
    except InputError as error:
        shape = error.message.values.get("shape")
        if error.message.code == "latent_no_pictures" and shape is not None:
            raise UnsupportedError(message("no_planner_pictures", shape=shape)) from None


def _with_lora(planned: Setting) -> bool:
    return any("lora" in change for change in planned.changes)


def distilled_message(found: FewSteps, max_steps: int) -> Message:
    """Why the count is kept, and what to set where it is far above what such models are made for."""
    if max_steps <= (found.steps or MOST_STEPS):
        return message("distilled", file=found.name, word=found.word)
    if found.steps is None:
        return message("distilled_many", file=found.name, word=found.word, max=max_steps)
    return message("distilled_count", file=found.name, word=found.word, max=max_steps, steps=found.steps)


def split_plan(model: Any, request: Request, sigmas: Tensor, at: int) -> tuple[int, tuple[Message, ...]]:
    """Step `at` of the graph's own max_steps as a step of the planned schedule, and what to say of it. 0: no split.

    sigmas: [steps + 1] of the plan. The two parts meet at the noise level where they met before, whatever the count.
    """
    if at <= 0:
        return 0, ()
    full = get_sigmas(model, request.sampler_name, request.scheduler, request.max_steps)
    step = split_step(full.tolist(), at, sigmas.tolist())
    said = message("split", step=step, steps=len(sigmas) - 1, sigma=float(sigmas[step]), at=at, max=request.max_steps)
    return step, (said,)


def limits_for(min_steps: int, max_steps: int, denoise: float, planned: Setting) -> tuple[int, int]:
    """The limits in steps of the full schedule that a planner of full renders decides in."""
    if not is_partial(denoise, planned):
        return min_steps, max_steps
    return full_count(min_steps, denoise), full_count(max_steps, denoise)


def is_partial(denoise: float, planned: Setting | None) -> bool:
    """Whether a planner of full renders is asked about a render of a part."""
    return planned is not None and 0.0 < denoise <= FULL and planned.denoise > FULL


def as_executed(plan: Plan, model: Any, request: Request, limits: tuple[int, int]) -> tuple[Plan, tuple[Message, ...]]:
    """The plan with the counts that really run at the request's denoise, and what to say of the noise level where they
    begin. Plans of a planner of that denoise, and fallbacks, keep their counts.

    limits: min_steps and max_steps as they run.
    """
    denoise = request.denoise
    if is_partial(denoise, plan.setting) and plan.fallback is None:
        plan = for_denoise(replace(plan, min_steps=limits[0], max_steps=limits[1]), denoise)
        plan = replace(plan, nfe=nfe(request.sampler_name, plan.steps))
    if not 0.0 < denoise <= FULL:
        return plan, ()
    sigmas = plan_sigmas(plan, model, request)
    begin = message(
        "begins", steps=len(sigmas) - 1, full=full_count(plan.steps, denoise), denoise=denoise, sigma=float(sigmas[0])
    )
    return plan, (begin,)
