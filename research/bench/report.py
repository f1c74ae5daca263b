"""Writes docs/benchmark.md, its pictures and bench.json from the picture sets of the settings. No host."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from budgetfusion_nodes.core.curves import METRICS
from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.files import in_one_piece
from research.sweeps.picture_sets import PictureSets

from .analysis import analyse
from .catalogue import NESTED, STOCK, Catalogue
from .comparison import NAMES, told
from .goals import Goal, all_goals
from .measures import load_curves, measured_prompts
from .own_target import HELD_OUT, LOW_QUALITY, QUALITIES, QUALITY, RISK, SPLITS, truth_of
from .plots import draw_metrics, draw_strips
from .settings import BenchSetting

log = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "templates"
IMAGES = Path("images") / "benchmark"
FEW_STEPS = 8
"""The count that the strips' compositions are compared at."""


def write_report(
    chosen: Mapping[str, BenchSetting], sets: Mapping[str, PictureSets], planners: Path, out: Path, seed: int
) -> list[str]:
    """Gives a line for each goal. A setting without measured pictures is left out, with the reason in the report."""
    found: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name, setting in chosen.items():
        try:
            found[name] = analyse(setting, sets[name], planners, seed)
        except InputError as error:
            missing[setting.words] = str(error)
            log.warning("%s", error)
    if not found:
        raise InputError("bench: nothing is rendered and measured yet. Run the stages render and measure first.")
    captions: list[str] = []
    for name, figures in found.items():
        draw_metrics(figures, out / IMAGES / f"{name}.png")
        if not captions and NESTED in figures["schedules"]:
            captions = _strips(sets[name], out / IMAGES / "composition.png")
    goals = all_goals(found)
    _write(out / "benchmark.md", page(found, goals, missing, captions))
    content = {"settings": found, "goals": [asdict(goal) for goal in goals], "missing": missing}
    _write(out / "bench.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    return [f"{g.verdict:<12} {g.setting}: {g.name}: {g.found} (wanted: {g.wanted})" for g in goals]


def _write(path: Path, text: str) -> None:
    with in_one_piece(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _strips(sets: PictureSets, file: Path) -> list[str]:
    """Of the first seeds whose composition at few stock steps is another than at the target; else of the first ones."""
    catalogue = Catalogue.load(sets.folder)
    methods = list(catalogue.family(STOCK).values())
    nested = list(catalogue.family(NESTED).values())
    prompts = min(measured_prompts(sets, family[-1].key) for family in (methods, nested))
    truth = truth_of(load_curves(sets, methods, prompts), (1.0,) * len(METRICS))
    at = truth.d_sim[..., int(np.searchsorted(truth.held.counts[:-1], FEW_STEPS))]  # [P, S]
    places = np.argsort(-at, axis=None)
    changed = [divmod(int(place), sets.seeds) for place in places]
    return draw_strips(sets, catalogue, changed, file)


def page(found: Mapping[str, Any], goals: list[Goal], missing: Mapping[str, str], captions: list[str]) -> str:
    """The report as Markdown."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, percent=percent, told=told)
    return environment.get_template("benchmark.md.j2").render(
        settings=found,
        goals=goals,
        missing=missing,
        captions=captions,
        names=NAMES,
        held_out=HELD_OUT,
        qualities=QUALITIES,
        quality=QUALITY,
        low_quality=LOW_QUALITY,
        risk=RISK,
        splits=SPLITS,
        metrics=METRICS,
        images=IMAGES.as_posix(),
        few_steps=FEW_STEPS,
    )


def number(value: Any, digits: int = 2) -> str:
    """A number, or one with its interval; empty for None."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        low, high = (f"{value[end]:.{digits}f}" for end in ("low", "high"))
        return f"{value['value']:.{digits}f} ({low} to {high})"
    return f"{value:.{digits}f}"


def percent(value: Any, digits: int = 1) -> str:
    """As `number`, in per cent."""
    if isinstance(value, Mapping):
        scaled = {end: 100.0 * value[end] for end in ("value", "low", "high")}
        return f"{number(scaled, digits)} %"
    return "" if value is None else f"{100.0 * value:.{digits}f} %"
