"""From a node's inputs to a Plan. Whatever goes wrong here ends in a plan for `max_steps` that says why."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..core.errors import BudgetFusionError, PlannerFileError, UnsupportedError
from ..core.messages import message
from ..core.plan import DEFAULT_MAX_STEPS, DEFAULT_MIN_STEPS, DEFAULT_QUALITY, DEFAULT_RISK, Plan
from ..core.planner import Planner
from ..core.setting import Setting, differences
from .conditioning import extract_all
from .identity import Identity, former_fingerprint, is_former, read_identity
from .paths import find_planner, list_planners, read_planner
from .sampling import check_sampler, nfe, pixel_size

log = logging.getLogger(__name__)

AUTO = "auto"


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

    def fallback(self, reason: str, warnings: tuple[str, ...] = ()) -> Plan:
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
    try:
        plan = _plan(model, positive, request, latent_image)
    except BudgetFusionError as error:
        log.warning("BudgetFusion renders all %d steps: %s", request.max_steps, error)
        plan = request.fallback(str(error))
    except Exception as error:  # an unforeseen fault of ours must not cost the artist a render
        log.exception("BudgetFusion could not plan and renders all %d steps", request.max_steps)
        plan = request.fallback(_unforeseen(error))
    return replace(plan, seconds=time.perf_counter() - started)


def obey(plan: Any, model: Any, request: Request, latent_image: Mapping[str, Any] | None = None) -> Plan:
    """A plan that was made by another node, checked against the render at hand. It decides; `request` does not."""
    try:
        known = _as_plan(plan)
    except BudgetFusionError as error:
        return request.fallback(str(error))
    except Exception as error:
        log.exception("BudgetFusion could not read the plan and renders all %d steps", request.max_steps)
        return request.fallback(_unforeseen(error))
    try:
        check_sampler(request.sampler_name)
        identity = read_identity(model)
        found = _checked_differences(known, render_setting(model, request, latent_image, identity))
        found += () if known.fallback else _notes(identity)  # a LoRA may lie between the planner and this node
    except BudgetFusionError as error:
        return _all_steps(known, request, str(error))
    except Exception as error:
        log.exception("BudgetFusion could not check the plan and renders all %d steps", known.max_steps)
        return _all_steps(known, request, _unforeseen(error))
    warnings = known.warnings + tuple(sentence for sentence in found if sentence not in known.warnings)
    return replace(known, warnings=warnings, nfe=nfe(request.sampler_name, known.steps))


def _unforeseen(error: Exception) -> str:
    return f"planning failed ({type(error).__name__}: {error}). The log has the details; please report it."


def _checked_differences(plan: Plan, setting: Setting) -> tuple[str, ...]:
    if plan.setting is None or plan.fallback is not None:
        return ()
    _check_serves(plan.planner, plan.setting, setting)
    return differences(plan.setting, setting)


def _all_steps(plan: Plan, request: Request, reason: str) -> Plan:
    """The plan, overruled: its curves stay on show, its count does not."""
    steps = plan.max_steps
    cost = nfe(request.sampler_name, steps)
    return replace(plan, steps=steps, fallback=reason, quality_predicted=None, set_by=None, nfe=cost)


def _notes(identity: Identity) -> tuple[str, ...]:
    return tuple(change.text() for change in identity.changes)


def render_setting(model: Any, request: Request, latent_image: Mapping[str, Any] | None, identity: Identity) -> Setting:
    """The setting of the render at hand, to compare with a planner's. UnsupportedError if the model is not known."""
    width, height = (None, None) if latent_image is None else pixel_size(model, latent_image)
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
        sampling=identity.sampling.text(),
    )


def _plan(model: Any, positive: Any, request: Request, latent_image: Mapping[str, Any] | None) -> Plan:
    check_sampler(request.sampler_name)
    identity = read_identity(model)
    setting = render_setting(model, request, latent_image, identity)
    try:
        planner, notes = choose_planner(request.planner, setting, lambda: former_fingerprint(model))
    except UnsupportedError as error:
        merged = [change.text() for change in identity.changes if change.code == "model_merge"]
        raise UnsupportedError(" ".join((str(error), *merged))) from error
    prompts, prompt_notes = extract_all(positive)
    plans = [
        planner.plan(
            prompt.tokens,
            prompt.pooled,
            quality=request.quality,
            risk=request.risk,
            min_steps=request.min_steps,
            max_steps=request.max_steps,
            setting=setting,
            nfe_of=lambda steps: nfe(request.sampler_name, steps),
        )
        for prompt in prompts
    ]
    slowest = max(plans, key=lambda plan: plan.steps)
    return replace(slowest, warnings=(*slowest.warnings, *_notes(identity), *prompt_notes, *notes))


Former = Callable[[], str | None]
"""The model's fingerprint of before, which is read only where a planner of before is at hand."""


def choose_planner(name: str, setting: Setting, former: Former = lambda: None) -> tuple[Planner, tuple[str, ...]]:
    """The named planner, or with `auto` the one whose calibration is nearest to `setting`; and notes for the artist.

    UnsupportedError if it was calibrated for another model or sampler: its curves would say nothing about this render.
    """
    if name == AUTO:
        return _automatic(setting, former)
    (planner,) = _recognised([read_planner(find_planner(name))], setting, former)
    _check_serves(planner.name, planner.setting, setting)
    return planner, ()


def _recognised(planners: list[Planner], setting: Setting, former: Former) -> list[Planner]:
    """Planners of before that know this model by its former fingerprint are given the present one."""
    known = former() if any(is_former(planner.setting.model) for planner in planners) else None
    present = {"model": setting.model, "sampling": setting.sampling}
    return [
        replace(planner, setting=replace(planner.setting, **present)) if planner.setting.model == known else planner
        for planner in planners
    ]


def _automatic(setting: Setting, former: Former = lambda: None) -> tuple[Planner, tuple[str, ...]]:
    planners, notes = _readable_planners()
    planners = _recognised(planners, setting, former)
    own = [planner for planner in planners if planner.setting.model == setting.model]
    if not own:
        known = ", ".join(sorted({p.setting.model_name or p.name for p in planners})) or "none"
        raise UnsupportedError(
            f"no planner was calibrated for {setting.model_name or 'this model'} (there are planners for: {known}). "
            "Calibrate one with 'python -m budgetfusion_nodes study', or choose a file in planner."
            + "".join(f" {note}" for note in notes)
        )
    nearest = min(
        own,
        key=lambda p: (
            _other_sampling(p.setting, setting),
            p.setting.sampler_name != setting.sampler_name,
            len(differences(p.setting, setting)),
        ),
    )
    _check_serves(nearest.name, nearest.setting, setting)
    return nearest, notes


def _readable_planners() -> tuple[list[Planner], tuple[str, ...]]:
    planners: list[Planner] = []
    notes: list[str] = []
    for name in list_planners():
        try:
            planners.append(read_planner(find_planner(name)))
        except PlannerFileError as error:  # one bad file in the folder does not hide the good ones
            notes.append(f"Left out: {error}")
    return planners, tuple(notes)


def _check_serves(name: str, calibrated: Setting, setting: Setting) -> None:
    """UnsupportedError where a planner's curves would say nothing about this render."""
    if calibrated.model != setting.model:
        raise UnsupportedError(
            f"planner {name} was calibrated for {calibrated.model_name or 'another model'}, and this is "
            f"{setting.model_name or 'a different one'}. Set planner to auto, or calibrate one for this model."
        )
    if _other_sampling(calibrated, setting):
        raise UnsupportedError(
            message("other_sampling", planner=name, was=calibrated.sampling or "?", now=setting.sampling).text()
        )
    if calibrated.sampler_name != setting.sampler_name:
        raise UnsupportedError(
            f"planner {name} was calibrated for the sampler {calibrated.sampler_name}, and {setting.sampler_name} "
            f"needs other step counts. Set sampler_name to {calibrated.sampler_name}, or calibrate a planner for it."
        )


def _other_sampling(calibrated: Setting, setting: Setting) -> bool:
    """A v-prediction or shift patch: the same weights, and other curves."""
    return calibrated.model == setting.model and calibrated.sampling != setting.sampling


def _as_plan(plan: Any) -> Plan:
    if isinstance(plan, Plan):
        return plan
    if hasattr(plan, "to_dict"):  # made by a second copy of this pack in custom_nodes
        return Plan.from_dict(plan.to_dict())
    raise PlannerFileError(
        f"plan: this is no plan but {type(plan).__name__}. Connect the plan output of Budget Planner."
    )


def _made_for(calibrated: Setting, planned: Setting | None) -> bool:
    """Equal; a planner of before may know the model by its former fingerprint."""
    if planned is not None and is_former(calibrated.model):
        calibrated = replace(calibrated, model=planned.model, sampling=planned.sampling)
    return calibrated == planned


def planner_of(plan: Plan) -> Planner:
    """The planner that made `plan`. PlannerFileError if it was a fallback or the planner's file is gone."""
    if plan.fallback is not None or not plan.planner:
        raise PlannerFileError("the plan is a fallback and no planner stands behind it.")
    for planner in _readable_planners()[0]:
        if planner.name == plan.planner and _made_for(planner.setting, plan.setting):
            return planner
    raise PlannerFileError(f"the planner {plan.planner} that made this plan is no longer among the planner files.")
