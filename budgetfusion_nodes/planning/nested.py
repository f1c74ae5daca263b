"""Which schedule a plan is rendered along, and its sigmas. Where the nested one cannot be, the stock one is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from ..core.errors import BudgetFusionError
from ..core.messages import Message, message
from ..core.plan import Plan
from ..core.schedule import STOCK, NestedSchedule
from ..host.sampling import get_sigmas
from ..host.schedule import nested_sigmas, scheduler_quantile


class Sampling(Protocol):
    """What a Request says about the sampler."""

    @property
    def sampler_name(self) -> str: ...
    @property
    def scheduler(self) -> str: ...
    @property
    def denoise(self) -> float: ...


def along(plan: Plan, schedule: str, model: Any, sampling: Sampling) -> Plan:
    """`plan`, to be rendered along `schedule`; along the stock one, and saying why, where this render cannot be."""
    stock = replace(plan, schedule=STOCK, prefix_steps=0)
    if plan.fallback is not None:
        return stock
    try:
        nested = NestedSchedule.from_text(schedule)
        if nested is None:
            return stock
        if plan.max_steps <= nested.prefix_steps:
            return noted(stock, message("schedule_no_room", max=plan.max_steps, prefix=nested.prefix_steps))
        nested_sigmas(model, sampling.sampler_name, sampling.scheduler, nested, plan.max_steps, sampling.denoise)
        shared = nested.shared_steps(scheduler_quantile(model, sampling.scheduler), sampling.denoise)
    except BudgetFusionError as error:
        return noted(stock, error.message)
    return replace(plan, schedule=schedule, prefix_steps=shared)


def plan_sigmas(plan: Plan, model: Any, sampling: Sampling) -> Tensor:
    """[steps + 1] of the plan's schedule, on the CPU."""
    nested = NestedSchedule.from_text(plan.schedule)
    sampler_name, scheduler, denoise = sampling.sampler_name, sampling.scheduler, sampling.denoise
    if nested is None:
        return get_sigmas(model, sampler_name, scheduler, plan.steps, denoise)
    return nested_sigmas(model, sampler_name, scheduler, nested, plan.steps, denoise)


def noted(plan: Plan, said: Message) -> Plan:
    """`plan` with this warning, once."""
    return plan if said in plan.warnings else replace(plan, warnings=(*plan.warnings, said))
