"""Which planner serves a render, and which one made a plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ..core.errors import PlannerFileError, UnsupportedError
from ..core.messages import Message, message
from ..core.plan import Plan
from ..core.schedule import STOCK
from ..core.setting import Setting, differences, has_change, refusal
from ..host.identity import is_former
from ..host.paths import find_planner, is_shipped, planners_fingerprint, read_planner, search_planners
from ..predictor.planner import Planner
from ..predictor.planner_file import AnyPlanner

AUTO = "auto"

Former = Callable[[], str | None]
"""The model's fingerprint of before, which is read only where a planner of before is at hand."""


def planners_state(planner: str | None) -> str:
    """What a node's answer depends on besides its inputs, for the host's cache. planner: as on the node, None where it
    comes from another node."""
    return planners_fingerprint(None if planner in (AUTO, None) else planner)


def choose_planner(
    name: str, setting: Setting, notes: list[Message], former: Former = lambda: None, schedule: str = AUTO
) -> AnyPlanner:
    """The named planner, or with `auto` the one whose calibration is nearest to `setting`; of two that are equally
    near, the artist's own. notes: gets what could not be read, and that a shipped one would serve as well. schedule: as
    on the node; nested and stock say which come first.

    UnsupportedError if it was calibrated for another model, sampler or prediction: its curves would say nothing about
    this render.
    """
    found = _readable_planners(notes) if name == AUTO else {find_planner(name): read_planner(find_planner(name))}
    planners = _recognised(found, setting, former)
    chosen = _nearest(planners, setting, schedule, notes) if name == AUTO else next(iter(planners.values()))
    check_serves(chosen.name, chosen.setting, setting)
    return chosen


def check_serves(name: str, calibrated: Setting, setting: Setting) -> None:
    """UnsupportedError where a planner's curves would say nothing about this render."""
    reason = refusal(name, calibrated, setting)
    if reason is not None:
        raise UnsupportedError(reason)


def planner_of(plan: Plan) -> Planner:
    """The planner that made `plan`. PlannerFileError if it was a fallback, has no curves, or its file is gone."""
    if plan.fallback is not None or not plan.planner:
        raise PlannerFileError(message("plan_is_fallback"))
    for planner in _readable_planners([]).values():
        if planner.name == plan.planner and _made_for(planner.setting, plan.setting):
            if isinstance(planner, Planner):
                return planner
            raise PlannerFileError(message("plan_is_count", planner=plan.planner))
    raise PlannerFileError(message("planner_gone", planner=plan.planner))


def _nearest(planners: Mapping[Path, AnyPlanner], setting: Setting, schedule: str, notes: list[Message]) -> AnyPlanner:
    same = {path: planner for path, planner in planners.items() if planner.setting.model == setting.model}
    if not same:
        known = sorted({p.setting.model_name or p.name for p in planners.values()})
        model = setting.model_name or setting.model[:12]
        if model in known:
            raise UnsupportedError(message("no_planner_of_name", model=model))
        raise UnsupportedError(message("no_planner", model=model, known=", ".join(known) or "-"))
    chosen = min(same, key=lambda path: _distance(path, same[path], setting, schedule))
    if not is_shipped(chosen):
        notes.extend(_shipped_too(chosen, same, setting))
    return same[chosen]


def _distance(path: Path, planner: AnyPlanner, setting: Setting, schedule: str) -> tuple[int, ...]:
    """Compared in this order: whether it serves, the schedule that was asked for, the setting, whose it is."""
    refused = refusal(planner.name, planner.setting, setting) is not None
    other = (planner.setting.schedule == STOCK) == (schedule != STOCK)
    asked = schedule != AUTO and other
    return refused, asked, _steps_away(planner, setting), is_shipped(path), other, not isinstance(planner, Planner)


def _steps_away(planner: AnyPlanner, setting: Setting) -> int:
    """Differences from the setting besides the schedule. A change of the model that the planner lacks is one:
    the planner of this very LoRA is nearer than that of the plain model."""
    alone = sum(not has_change(planner.setting, change) for change in setting.changes)
    return alone + len(differences(replace(planner.setting, schedule=setting.schedule), setting))


def _shipped_too(chosen: Path, planners: Mapping[Path, AnyPlanner], setting: Setting) -> Iterator[Message]:
    """Says that the artist's own planner was taken, where a shipped one is as near."""
    own = planners[chosen]
    for path, planner in planners.items():
        as_near = _steps_away(planner, setting) <= _steps_away(own, setting)
        if is_shipped(path) and as_near and refusal(planner.name, planner.setting, setting) is None:
            yield message("planner_own", planner=own.name, other=path.name)
            return


def _recognised(planners: Mapping[Path, AnyPlanner], setting: Setting, former: Former) -> dict[Path, AnyPlanner]:
    """Planners of before that know this model by its former fingerprint are given the present one."""
    known = former() if any(is_former(planner.setting.model) for planner in planners.values()) else None
    present = {"model": setting.model, "sampling": setting.sampling}
    return {
        path: replace(planner, setting=replace(planner.setting, **present))
        if planner.setting.model == known
        else planner
        for path, planner in planners.items()
    }


def _readable_planners(notes: list[Message]) -> dict[Path, AnyPlanner]:
    planners: dict[Path, AnyPlanner] = {}
    found = search_planners()
    notes.extend(found.notes)
    for path in found.files.values():
        try:
            planners[path] = read_planner(path)
        except PlannerFileError as error:  # one bad file in the folder does not hide the good ones
            notes.append(error.message)
    return planners


def _made_for(calibrated: Setting, planned: Setting | None) -> bool:
    """Equal; a planner of before may know the model by its former fingerprint."""
    if planned is not None and is_former(calibrated.model):
        calibrated = replace(calibrated, model=planned.model, sampling=planned.sampling)
    return calibrated == planned
