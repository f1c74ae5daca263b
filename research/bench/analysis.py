"""From the picture sets of a setting to every figure of the report, JSON-safe. No host."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from budgetfusion_nodes.core.curves import FloatArray
from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.schedule import STOCK as STOCK_SCHEDULE
from budgetfusion_nodes.predictor.planner import Planner
from research.demo.prompts import calibrated_scenes
from research.statistics.allocation import IndexArray, best_fixed
from research.statistics.bootstrap import bootstrap, interval, relative_difference
from research.sweeps.picture_sets import PictureSets

from .catalogue import NESTED, STOCK, Catalogue, Method, load_conditioning
from .comparison import MethodSet, Reference, compare, gathered, least_passing, worse_than
from .measures import Values, load_curves, load_truth, load_values, measured_prompts
from .own_target import (
    LOW_QUALITY,
    QUALITIES,
    QUALITY,
    RISK,
    RISKS,
    VIOLATION,
    Truth,
    at_equal_cost,
    composition,
    median_scale,
    needs,
    planned_row,
    random_splits,
    truth_of,
    upper_at,
)
from .planners import Plans, find_planner, make_plans
from .settings import BenchSetting

REQUESTS = (*((q, risk) for q in QUALITIES for risk in RISKS), (LOW_QUALITY, RISK))
FEWEST_PROMPTS = 4


@dataclass(frozen=True)
class Schedule:
    """One of the two schedules of a setting."""

    family: str
    text: str
    truth: Truth
    counts: tuple[int, ...]
    values: Mapping[int, Values]
    """Count -> pictures without a reference."""
    plans: Plans | None


@dataclass
class Material:
    """What is rendered and measured of a setting, for the prompts that its planners were not calibrated on."""

    setting: BenchSetting
    sets: PictureSets
    planners: Path
    seed: int

    @cached_property
    def catalogue(self) -> Catalogue:
        return Catalogue.load(self.sets.folder)

    @cached_property
    def targets(self) -> dict[str, Method]:
        """Family -> its target, of the schedules that have one."""
        found = {family: self.catalogue.family(family) for family in (STOCK, NESTED)}
        last = {family: methods[max(methods)] for family, methods in found.items() if methods}
        return {family: m for family, m in last.items() if measured_prompts(self.sets, m.key) >= FEWEST_PROMPTS}

    @cached_property
    def prompts(self) -> int:
        """Prompts from the first on that both targets have."""
        if STOCK not in self.targets:
            raise InputError(f"bench: {self.setting.name} has no measured pictures at the target count yet.")
        return min(measured_prompts(self.sets, target.key) for target in self.targets.values())

    def text(self, family: str) -> str:
        """The schedule, as a Setting holds it."""
        return STOCK_SCHEDULE if family == STOCK else self.catalogue.nested

    @cached_property
    def own_planners(self) -> dict[str, tuple[Path, Planner]]:
        """Family -> the planner for exactly this setting and schedule, of the families that have one."""
        own = self.catalogue.setting
        found = {family: find_planner(self.planners, own, self.text(family)) for family in self.targets}
        return {family: planner for family, planner in found.items() if planner is not None}

    @cached_property
    def rows(self) -> IndexArray:
        """Of the prompts that none of the setting's planners was calibrated on."""
        seen = calibrated_scenes(file.with_suffix(".json") for file, _ in self.own_planners.values())
        keys = [p.key for p in self.sets.prompts.prompts[: self.prompts]]
        return np.array([i for i, key in enumerate(keys) if key not in seen])

    @cached_property
    def truth(self) -> Values:
        return load_truth(self.sets, self.prompts).take(self.rows)

    @cached_property
    def seconds(self) -> dict[str, float]:
        try:
            return json.loads((self.sets.folder / "seconds.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def values(self, method: Method, prompts: int) -> Values:
        return load_values(self.sets, method.key, prompts).take(self.rows[self.rows < prompts])

    def schedule(self, family: str) -> Schedule:
        """Curves on the planner's scale; without a planner on that of the stock schedule's least count."""
        methods = list(self.catalogue.family(family).values())
        curves = load_curves(self.sets, methods, self.prompts).take(self.rows)
        plans, scale = None, self.stock_scale
        if family in self.own_planners:
            planner = self.own_planners[family][1]
            tokens, pooled = (values[self.rows] for values in load_conditioning(self.sets.folder))
            plans, scale = make_plans(planner, tokens, pooled, REQUESTS), planner.scale
        kept = [m for m in methods if m.steps in curves.counts]
        values = {m.steps: self.values(m, self.prompts) for m in kept}
        return Schedule(family, self.text(family), truth_of(curves, scale), curves.counts, values, plans)

    @cached_property
    def stock_scale(self) -> tuple[float, ...]:
        curves = load_curves(self.sets, list(self.catalogue.family(STOCK).values()), self.prompts)
        return median_scale(curves.take(self.rows))

    def seconds_at(self, evaluations: float, name: str) -> float | None:
        """One picture on one core: timed, or from a line through the timed stock counts."""
        timed = {int(key.split()[1]): s for key, s in self.seconds.items() if key.startswith(f"{STOCK} ")}
        if name in self.seconds and not name.startswith(f"{STOCK} "):
            return self.seconds[name]
        if len(timed) < 2:
            return None
        return float(np.polyval(np.polyfit(list(timed), list(timed.values()), 1), evaluations))

    def method_set(self, method: Method, prompts: int) -> MethodSet:
        values = self.values(method, prompts)
        if method.evaluations is None:
            evaluations = self.sets.evaluations(method.key, prompts)[self.rows[self.rows < prompts]]
        else:
            evaluations = np.full(len(values.wrong), method.evaluations)
        seconds = self.seconds_at(float(evaluations.mean()), method.name)
        return MethodSet(method.family, method.label, values, evaluations, seconds)


def analyse(setting: BenchSetting, sets: PictureSets, planners: Path, seed: int) -> dict[str, Any]:
    """Everything of one setting."""
    material = Material(setting, sets, planners, seed)
    schedules = {family: material.schedule(family) for family in material.targets}
    dense = material.method_set(material.targets[STOCK], material.prompts)
    reference = Reference(material.truth, seed)
    methods = [*_method_sets(material), *_planned_sets(material, schedules)]
    rows = compare(methods, dense, reference)
    return {
        "words": setting.words,
        "prompts": len(material.rows),
        "seeds": sets.seeds,
        "left_out": material.prompts - len(material.rows),
        "made_with": dict(material.catalogue.made_with),
        "unusable": dict(material.catalogue.unusable),
        "not_rendered": _not_rendered(material, methods),
        "truth": {"wrong": bootstrap(material.truth.wrong, seed), "level": bootstrap(material.truth.l_snr, seed)},
        "schedules": {family: _own(schedule, seed) for family, schedule in schedules.items()},
        "against_stock": _against_stock(schedules, seed),
        "methods": rows,
        "dense": dense.name,
        "least_stock": least_passing(rows, STOCK),
        "least_steady": least_passing(rows, STOCK, steady=True),
        "least_nested": least_passing(rows, NESTED),
        "at_equal_evaluations": _at_equal_evaluations(methods, reference),
    }


def _method_sets(material: Material) -> Iterator[MethodSet]:
    """Every rendered count of both schedules, and peers on as many of the prompts as they were rendered for."""
    for method in material.catalogue.methods:
        prompts = min(measured_prompts(material.sets, method.key), material.prompts)
        least = material.prompts if method.family in (STOCK, NESTED) else FEWEST_PROMPTS
        if prompts >= least:
            yield material.method_set(method, prompts)


def _not_rendered(material: Material, methods: Sequence[MethodSet]) -> list[str]:
    """Peers of the catalogue that run with this model and have no row."""
    known = {m.name for m in methods} | set(material.catalogue.unusable)
    peers = (m for m in material.catalogue.methods if m.family not in (STOCK, NESTED))
    return [m.name for m in peers if m.name not in known]


def _planned_sets(material: Material, schedules: Mapping[str, Schedule]) -> Iterator[MethodSet]:
    """Each prompt at its own planned count; without a planner at the one count that these prompts themselves need."""
    for family, schedule in schedules.items():
        for q in QUALITIES:
            steps, kind = planned_or_one(schedule, q)
            values, evaluations = gathered(schedule.values, steps)
            seconds = material.seconds_at(float(evaluations.mean()), "")
            yield MethodSet(f"{family}, {kind}", f"q {q:g}", values, evaluations, seconds)


def planned_or_one(schedule: Schedule, q: float) -> tuple[IndexArray, str]:
    """([P] counts, "planned" or "one count") at RISK."""
    if schedule.plans is not None:
        return schedule.plans.steps[q, RISK], "planned"
    held = schedule.truth.held
    return np.full(len(held.test), best_fixed(held, q, RISK, VIOLATION)), "one count"


def _own(schedule: Schedule, seed: int) -> dict[str, Any]:
    """One schedule against its own target."""
    truth, plans = schedule.truth, schedule.plans
    steps, kind = planned_or_one(schedule, QUALITY)
    low = plans.steps[LOW_QUALITY, RISK] if plans else planned_or_one(schedule, LOW_QUALITY)[0]
    found: dict[str, Any] = {
        "text": schedule.text,
        "counts": list(schedule.counts),
        "scale": list(truth.scale),
        "planner": plans.planner.name if plans else None,
        "needs": {f"{q:g}": needs(truth, q, seed) for q in QUALITIES},
        "kind": kind,
        "composition": {"steps": float(low.mean()), **composition(truth, low, seed)},
        "rows": [],
        "splits": [],
    }
    if plans is not None:
        upper = upper_at(truth.held, plans.upper, plans.counts)
        for q, risk in REQUESTS[:-1]:
            found["rows"].append(planned_row(truth, plans.steps[q, risk], q, risk, seed))
            split = random_splits(truth.held, upper, q, risk, seed)
            found["splits"].append({"quality": q, "risk": risk, **split})
        found["equal_cost"] = at_equal_cost(truth, steps, QUALITY, seed)
        found["planning_ms"] = 1000.0 * plans.seconds
    return found


def _against_stock(schedules: Mapping[str, Schedule], seed: int) -> list[dict[str, Any]]:
    """Nested plans beside the best fixed count of the stock schedule with as many violations of its own target, and
    beside the best fixed nested count."""
    if NESTED not in schedules:
        return []
    nested, stock = schedules[NESTED], schedules[STOCK]
    rows = []
    for q in QUALITIES:
        steps, kind = planned_or_one(nested, q)
        row = planned_row(nested.truth, steps, q, RISK, seed)
        fixed = best_fixed(stock.truth.held, q, max(row["violations"]["value"], 0.0), VIOLATION)
        saved = interval(relative_difference, seed, *_paired(steps, fixed))
        rows.append({**row, "kind": kind, "stock_count": fixed, "against_stock_count": saved})
    return rows


def _paired(steps: IndexArray, fixed: int) -> tuple[FloatArray, FloatArray]:
    return steps.astype(np.float64), np.full(len(steps), float(fixed))


def _at_equal_evaluations(methods: list[MethodSet], reference: Reference) -> list[dict[str, Any]]:
    """Nested plans less the rendered stock count whose evaluations are nearest."""
    stock = [m for m in methods if m.family == STOCK and m.prompts == len(reference.truth.wrong)]
    found = []
    for method in methods:
        if method.family.startswith(f"{NESTED},"):
            mean = float(method.evaluations.mean())
            other = min(stock, key=lambda m: abs(float(m.evaluations.mean()) - mean))
            found.append({"method": method.name, "mean": mean, **worse_than(method, other, reference)})
    return found
