"""From a node's inputs to a Plan. Whatever goes wrong here ends in a plan for `max_steps` that says why."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from ..core.errors import BudgetFusionError, PlannerFileError, UnsupportedError
from ..core.messages import Message, message
from ..core.plan import DEFAULT_MAX_STEPS, DEFAULT_MIN_STEPS, DEFAULT_QUALITY, DEFAULT_RISK, Plan
from ..core.schedule import NESTED, STOCK
from ..core.setting import Setting, change_key, change_keys, differences, has_change
from ..core.stages import told
from ..host.conditioning import extract_all, frame_count, latent_extras, read_extras
from ..host.identity import Identity, former_fingerprint, read_identity
from ..host.sampling import get_sigmas, nfe, pixel_size
from ..predictor.count_planner import CountPlanner
from ..predictor.planner import Planner
from ..predictor.planner_file import AnyPlanner
from .choice import AUTO, check_serves, choose_planner
from .memory import recaller
from .nested import along, noted, plan_sigmas
from .special import (
    as_executed,
    check_can_be_calibrated,
    check_distilled,
    is_partial,
    limits_for,
    split_plan,
    unsettled,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What an artist set on a node."""

    sampler_name: str
    scheduler: str
    cfg: float
    quality: float = DEFAULT_QUALITY
    min_steps: int = DEFAULT_MIN_STEPS
    max_steps: int = DEFAULT_MAX_STEPS
    risk: float = DEFAULT_RISK
    planner: str = AUTO
    denoise: float = 1.0
    schedule: str = AUTO
    """auto: nested where the planner has it; nested: the same, and say so where it has not; stock."""
    files: tuple[str, ...] = ()
    """Model files that the graph names above this node, LoRAs among them."""
    memory: bool = True
    """Whether measured renders of before may correct the plan."""
    facts: Callable[[], Mapping[str, str]] = dict
    """What else moves the picture, where the node knows it: `memory.render_facts`. Called where there is a store."""
    seed: int | None = None
    """Of the render, where the node knows it and nothing but the seed draws its noise."""
    elsewhere: Callable[[], bool] = bool
    """Whether a node that spaces the steps itself takes the count, so that auto means the stock schedule."""

    @cached_property
    def is_elsewhere(self) -> bool:
        """`elsewhere`, asked once."""
        return self.elsewhere() is True

    @property
    def wanted(self) -> str:
        """The schedule to plan for."""
        return STOCK if self.schedule == AUTO and self.is_elsewhere else self.schedule

    def fallback(self, reason: Message, warnings: tuple[Message, ...] = ()) -> Plan:
        """All `max_steps`, with the reason."""
        return Plan.fallback_plan(
            self.max_steps,
            self.min_steps,
            self.quality,
            self.risk,
            reason,
            warnings=warnings,
            nfe=nfe(self.sampler_name, self.max_steps),
        )


def plan_render(model: Any, positive: Any, request: Request, latent_image: Mapping[str, Any] | None = None) -> Plan:
    """The plan for this prompt. Never raises for a planner's sake: see `Plan.fallback`."""
    started = time.perf_counter()
    notes: list[Message] = []
    try:
        plan = _plan(model, positive, request, latent_image, notes)
    except BudgetFusionError as error:
        log.warning("BudgetFusion renders all %d steps: %s", request.max_steps, error)
        plan = request.fallback(error.message)
    except Exception as error:  # an unforeseen fault of ours must not cost the artist a render
        log.exception("BudgetFusion could not plan and renders all %d steps", request.max_steps)
        plan = request.fallback(_unforeseen(error))
    return replace(plan, warnings=(*plan.warnings, *notes), seconds=time.perf_counter() - started)


def obey(plan: Any, model: Any, positive: Any, request: Request, latent_image: Mapping[str, Any] | None = None) -> Plan:
    """A plan that was made by another node, checked against the render at hand. It decides; `request` does not."""
    try:
        known = as_plan(plan)
    except BudgetFusionError as error:
        return request.fallback(error.message)
    except Exception as error:
        log.exception("BudgetFusion could not read the plan and renders all %d steps", request.max_steps)
        return request.fallback(_unforeseen(error))
    try:
        reason = unsettled(model, request.sampler_name, request.scheduler, request.denoise)
        if reason is not None and not known.is_count:
            raise UnsupportedError(reason)
        known = along(known, known.schedule, model, request)
        found = () if known.fallback else _checked(known, model, positive, request, latent_image)
        known, begin = as_executed(known, model, request, (known.min_steps, known.max_steps))
    except BudgetFusionError as error:
        return _all_steps(known, request, error.message)
    except Exception as error:
        log.exception("BudgetFusion could not check the plan and renders all %d steps", known.max_steps)
        return _all_steps(known, request, _unforeseen(error))
    said = (*found, *begin)
    warnings = known.warnings + tuple(note for note in said if note not in known.warnings)
    return replace(known, warnings=warnings, nfe=nfe(request.sampler_name, known.steps))


def with_sigmas(
    plan: Plan, model: Any, request: Request, elsewhere: Callable[[], bool] = bool
) -> tuple[Plan, Tensor | None]:
    """The plan, and its sigmas [steps + 1] on the CPU; None for the scheduler's own. A schedule that cannot be made
    costs the plan, and no render. elsewhere: whether a node that spaces the steps itself takes the count too, for which
    a nested one is too low."""
    if plan.schedule == STOCK:
        return plan, None
    try:
        sigmas = plan_sigmas(plan, model, request)
        if not bool(sigmas.isfinite().all()):
            raise ValueError("noise levels that are no numbers")
        if plan.prefix_steps and elsewhere() is True:
            plan = noted(plan, message("steps_elsewhere", planner=plan.planner))
        return plan, sigmas
    except Exception as error:
        log.exception("BudgetFusion could not make the schedule and renders all %d steps", plan.max_steps)
        return _all_steps(plan, request, _unforeseen(error)), None


def with_split(
    plan: Plan, sigmas: Tensor | None, model: Any, request: Request, at: int
) -> tuple[Plan, Tensor, int, tuple[Message, ...]]:
    """The plan, its sigmas [steps + 1], the step at which the graph's own step `at` lies, and what to say of it.
    Where that cannot be told it costs the plan: all max_steps are split where the graph says."""
    stock = lambda steps: get_sigmas(model, request.sampler_name, request.scheduler, steps, request.denoise)  # noqa: E731
    try:
        known = stock(plan.steps) if sigmas is None else sigmas
        return plan, known, *split_plan(model, request, known, at)
    except Exception as error:
        log.exception("BudgetFusion could not split the plan and renders all %d steps", plan.max_steps)
        whole = _all_steps(plan, request, _unforeseen(error))
        return whole, stock(whole.steps), min(at, whole.steps), ()


def _unforeseen(error: Exception) -> Message:
    return message("unforeseen", error=told(error))


def _checked(
    plan: Plan, model: Any, positive: Any, request: Request, latent_image: Mapping[str, Any] | None
) -> tuple[Message, ...]:
    """What differs at this node from what was planned for: a LoRA may lie between, or another prompt be connected."""
    identity = read_identity(model)
    if plan.setting is None:
        return identity.changes
    setting = render_setting(identity, model, positive, request, latent_image)
    setting = replace(setting, schedule=plan.schedule)
    check_serves(plan.planner, plan.setting, setting)
    return (*differences(plan.setting, setting), *_new_changes(identity, plan.setting))


def _new_changes(identity: Identity, calibrated: Setting) -> Iterator[Message]:
    """What was done to the model and had not been done at calibration. A patched sampling is told as a difference of
    the setting, where that knows its own."""
    for change in identity.changes:
        told = change.code == "model_sampling" and calibrated.sampling
        if not told and not has_change(calibrated, change_key(change)):
            yield change


def _all_steps(plan: Plan, request: Request, reason: Message) -> Plan:
    """The plan, overruled: its curves stay on show, its count does not."""
    steps = plan.max_steps
    cost = nfe(request.sampler_name, steps)
    stock = replace(plan, schedule=STOCK, prefix_steps=0)
    return replace(stock, steps=steps, fallback=reason, quality_predicted=None, limited_by=None, nfe=cost)


def render_setting(
    identity: Identity, model: Any, positive: Any, request: Request, latent_image: Mapping[str, Any] | None = None
) -> Setting:
    """The setting of the render at hand, to compare with a planner's."""
    latent = latent_image or {}
    width, height = pixel_size(model, latent) if latent else (None, None)
    extras, guidance = read_extras(positive)
    return Setting(
        model=identity.known(),
        sampler_name=request.sampler_name,
        scheduler=request.scheduler,
        cfg=request.cfg,
        width=width,
        height=height,
        denoise=request.denoise,
        model_name=identity.name,
        precision=identity.precision,
        frames=frame_count(model, latent) if latent else None,
        guidance=guidance,
        sampling=identity.sampling.text(),
        changes=change_keys(identity.changes),
        extras=(*extras, *latent_extras(latent)),
    )


def _plan(
    model: Any, positive: Any, request: Request, latent_image: Mapping[str, Any] | None, notes: list[Message]
) -> Plan:
    """notes: gets what is to be said whether or not there is a plan."""
    reason = unsettled(model, request.sampler_name, request.scheduler, request.denoise)
    identity = read_identity(model)
    setting = render_setting(identity, model, positive, request, latent_image)
    prompts, several = extract_all(positive)
    notes.extend(several)
    merges = [change for change in identity.changes if change.code == "model_merge"]
    notes.extend(merges)  # why there may be no planner
    planner = _choose(model, request, setting, notes, reason, latent_image)
    setting = replace(setting, schedule=STOCK if request.wanted == STOCK else planner.setting.schedule)
    if request.schedule == NESTED and planner.setting.schedule == STOCK:
        notes.append(message("schedule_not_calibrated", planner=planner.name))
    if request.is_elsewhere and request.schedule != STOCK and planner.setting.schedule != STOCK:
        notes.append(message("steps_elsewhere", planner=planner.name))
    notes.extend(change for change in _new_changes(identity, planner.setting) if change not in merges)
    least, most = limits_for(request.min_steps, request.max_steps, request.denoise, planner.setting)

    def slowest(recall: Callable[..., Any] | None) -> Plan:
        plans = [
            planner.plan(
                prompt.tokens,
                prompt.pooled,
                quality=request.quality,
                risk=request.risk,
                min_steps=least,
                max_steps=most,
                setting=setting,
                nfe_of=lambda steps: nfe(request.sampler_name, steps),
                **({} if recall is None else {"recall": recall(prompt.tokens, prompt.pooled)}),
            )
            for prompt in prompts
        ]
        return along(max(plans, key=lambda plan: plan.steps), setting.schedule, model, request)

    recall = _recaller(planner, setting, request, positive, notes)
    decided = slowest(recall)
    if recall is not None and decided.schedule != setting.schedule:  # memory is of another schedule
        decided = slowest(None)
    plan, begin = as_executed(decided, model, request, (request.min_steps, request.max_steps))
    notes.extend(begin)
    return plan


def _recaller(
    planner: AnyPlanner, setting: Setting, request: Request, positive: Any, notes: list[Message]
) -> Callable[..., Any] | None:
    """What memory makes of each prompt's prediction; None where it has no say. A render of a part of the schedule is
    planned by curves of full ones, which measured counts of its own do not fit."""
    if not (request.memory and isinstance(planner, Planner)) or is_partial(request.denoise, planner.setting):
        return None
    return recaller(planner, setting, request, positive, notes)


def _choose(
    model: Any,
    request: Request,
    setting: Setting,
    notes: list[Message],
    reason: Message | None,
    latent_image: Mapping[str, Any] | None,
) -> AnyPlanner:
    """`choose_planner`, unless the graph is one that keeps its own count. reason: why the sampler does not settle;
    then only a planner of one count serves."""
    chosen = request.planner != AUTO
    try:
        planner = choose_planner(request.planner, setting, notes, lambda: former_fingerprint(model), request.wanted)
        if reason is not None and not isinstance(planner, CountPlanner):
            raise UnsupportedError(reason)
    except UnsupportedError:
        if reason is not None:
            raise UnsupportedError(reason) from None
        check_distilled(model, request.files, request.cfg, request.max_steps, None, chosen)
        if request.planner == AUTO:
            check_can_be_calibrated(latent_image)
        raise
    check_distilled(model, request.files, request.cfg, request.max_steps, planner.setting, chosen)
    return planner


def as_plan(plan: Any) -> Plan:
    """What a `plan` input was given; PlannerFileError if that is no plan."""
    if isinstance(plan, Plan):
        return plan
    if hasattr(plan, "to_dict"):  # made by a second copy of this pack in custom_nodes
        return Plan.from_dict(plan.to_dict())
    raise PlannerFileError(message("not_a_plan", type=type(plan).__name__))
