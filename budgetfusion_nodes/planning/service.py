"""From a node's inputs to a Plan. Whatever goes wrong here ends in a plan for `max_steps` that says why."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..core.errors import BudgetFusionError, PlannerFileError, UnsupportedError
from ..core.plan import DEFAULT_MAX_STEPS, DEFAULT_MIN_STEPS, DEFAULT_QUALITY, DEFAULT_RISK, Plan
from ..core.setting import Setting, differences
from ..host.conditioning import extract_all
from ..host.identity import model_fingerprint, model_notes, model_precision
from ..host.paths import find_planner, list_planners, read_planner
from ..host.sampling import check_sampler, nfe, pixel_size
from ..predictor.planner import Planner
from .special import as_executed, check_distilled, check_path, limits_for

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
    files: tuple[str, ...] = ()
    """Model files that the graph names above this node, LoRAs among them."""

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
        check_path(model, request.sampler_name, request.scheduler, request.denoise)
        found = _checked_differences(known, render_setting(model, request, latent_image))
        found += () if known.fallback else model_notes(model)  # a LoRA may lie between the planner and this node
    except BudgetFusionError as error:
        return _all_steps(known, request, str(error))
    except Exception as error:
        log.exception("BudgetFusion could not check the plan and renders all %d steps", known.max_steps)
        return _all_steps(known, request, _unforeseen(error))
    known = replace(known, nfe=nfe(request.sampler_name, known.steps))
    known, begin = as_executed(
        known, model, request.sampler_name, request.scheduler, request.denoise, (known.min_steps, known.max_steps)
    )
    said = (*found, *(note.text() for note in begin))
    return replace(known, warnings=known.warnings + tuple(note for note in said if note not in known.warnings))


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


def render_setting(model: Any, request: Request, latent_image: Mapping[str, Any] | None = None) -> Setting:
    """The setting of the render at hand, to compare with a planner's."""
    fingerprint, name = model_fingerprint(model)
    width, height = (None, None) if latent_image is None else pixel_size(model, latent_image)
    return Setting(
        model=fingerprint,
        sampler_name=request.sampler_name,
        scheduler=request.scheduler,
        cfg=request.cfg,
        width=width,
        height=height,
        denoise=request.denoise,
        model_name=name,
        precision=model_precision(model),
    )


def _plan(model: Any, positive: Any, request: Request, latent_image: Mapping[str, Any] | None) -> Plan:
    check_sampler(request.sampler_name)
    check_path(model, request.sampler_name, request.scheduler, request.denoise)
    setting = render_setting(model, request, latent_image)
    planner, notes = _choose(model, request, setting)
    least, most = limits_for(request.min_steps, request.max_steps, request.denoise, planner.setting)
    prompts, prompt_notes = extract_all(positive)
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
        )
        for prompt in prompts
    ]
    slowest = max(plans, key=lambda plan: plan.steps)
    limits = (request.min_steps, request.max_steps)
    plan, begin = as_executed(slowest, model, request.sampler_name, request.scheduler, request.denoise, limits)
    said = (note.text() for note in begin)
    return replace(plan, warnings=(*plan.warnings, *model_notes(model), *prompt_notes, *notes, *said))


def _choose(model: Any, request: Request, setting: Setting) -> tuple[Planner, tuple[str, ...]]:
    """`choose_planner`, unless the graph is one that keeps its own count."""
    chosen = request.planner != AUTO
    try:
        found = choose_planner(request.planner, setting)
    except UnsupportedError:
        check_distilled(model, request.files, request.cfg, request.max_steps, None, chosen)
        raise
    check_distilled(model, request.files, request.cfg, request.max_steps, found[0].setting, chosen)
    return found


def choose_planner(name: str, setting: Setting) -> tuple[Planner, tuple[str, ...]]:
    """The named planner, or with `auto` the one whose calibration is nearest to `setting`; and notes for the artist.

    UnsupportedError if it was calibrated for another model or sampler: its curves would say nothing about this render.
    """
    if name == AUTO:
        return _automatic(setting)
    planner = read_planner(find_planner(name))
    _check_serves(planner.name, planner.setting, setting)
    return planner, ()


def _automatic(setting: Setting) -> tuple[Planner, tuple[str, ...]]:
    planners, notes = _readable_planners()
    own = [planner for planner in planners if planner.setting.model == setting.model]
    if not own:
        known = ", ".join(sorted({p.setting.model_name or p.name for p in planners})) or "none"
        raise UnsupportedError(
            f"no planner was calibrated for {setting.model_name or 'this model'} (there are planners for: {known}). "
            "Calibrate one with 'python -m research study', or choose a file in planner."
            + "".join(f" {note}" for note in notes)
        )
    nearest = min(
        own, key=lambda p: (p.setting.sampler_name != setting.sampler_name, len(differences(p.setting, setting)))
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
    if calibrated.sampler_name != setting.sampler_name:
        raise UnsupportedError(
            f"planner {name} was calibrated for the sampler {calibrated.sampler_name}, and {setting.sampler_name} "
            f"needs other step counts. Set sampler_name to {calibrated.sampler_name}, or calibrate a planner for it."
        )


def _as_plan(plan: Any) -> Plan:
    if isinstance(plan, Plan):
        return plan
    if hasattr(plan, "to_dict"):  # made by a second copy of this pack in custom_nodes
        return Plan.from_dict(plan.to_dict())
    raise PlannerFileError(
        f"plan: this is no plan but {type(plan).__name__}. Connect the plan output of Budget Planner."
    )


def planner_of(plan: Plan) -> Planner:
    """The planner that made `plan`. PlannerFileError if it was a fallback or the planner's file is gone."""
    if plan.fallback is not None or not plan.planner:
        raise PlannerFileError("the plan is a fallback and no planner stands behind it.")
    for planner in _readable_planners()[0]:
        if planner.name == plan.planner and planner.setting == plan.setting:
            return planner
    raise PlannerFileError(f"the planner {plan.planner} that made this plan is no longer among the planner files.")
