"""`python -m research transfer`: planners of two models, each on the other's test prompts; writes docs/transfer.md."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import ROOT, number, whole

if TYPE_CHECKING:
    from .statistics.transfer import Side

VIOLATIONS = ("violation", "violation_controlled")
HEADER = """\
# A planner on another model

How far does a planner carry to a model that it was not made for? Each table takes the test prompts of one model and
plans them with the planner of the other, as it is; with the other's curves and a threshold calibrated anew on a few
prompts of this model; with this model's own mean curve and threshold from the same few prompts; and with this model's
own planner. Quality is that of the model's own planner. Violations: renders below the wanted quality at the planned
count, and, by the tolerance rule that the guarantee bounds, at it or at any higher count.

Intervals are 95 %: over the test prompts for finished planners, over random draws of the calibration prompts for the
few-shot rules. "Draws above the risk" counts draws whose violations (tolerance rule) exceed it on the test prompts.
All figures are of the stock schedule.
"""


def add_parser(groups: Any) -> None:
    """Adds the command to the subparsers of the command line."""
    text = "try each of two planners on the other's model, beside few-shot calibration"
    parser = groups.add_parser("transfer", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument(
        "--model",
        type=Path,
        nargs=2,
        action="append",
        required=True,
        metavar=("PICTURES", "PLANNER"),
        help="folder of a benchmark setting with measured stock pictures, and its planner; give it twice",
    )
    parser.add_argument("--quality", type=number(0.5, 0.99), default=0.9, help="the slider (%(default)s)")
    parser.add_argument("--risk", type=number(0.02, 0.3), default=0.1, help="chance of falling short (%(default)s)")
    parser.add_argument("--splits", type=whole(1, 100_000), default=200, help="random draws (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of draws and bootstrap (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "transfer.md", help="report (docs/transfer.md)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints and writes both directions."""
    from budgetfusion_nodes.core.errors import InputError

    from .statistics.transfer import transfer

    if len(options.model) != 2:
        raise InputError("--model: give it twice, each time with the folder of a setting and its planner.")
    one, two = (_load(data, planner, options.seed) for data, planner in options.model)
    given = (options.quality, options.risk, options.seed)
    found = [transfer(target, other, *given, splits=options.splits) for target, other in ((one, two), (two, one))]
    report = "\n".join([HEADER, *(section(figures) for figures in found), _made_with(one, two)])
    options.out.write_text(report, encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    sys.stdout.write(report)
    return 0


def _load(folder: Path, file: Path, seed: int) -> Side:
    """Half of the measured prompts are there to calibrate on, the others are the test."""
    from budgetfusion_nodes.core.errors import InputError
    from budgetfusion_nodes.core.setting import differences
    from budgetfusion_nodes.predictor.planner_file import load_planner

    from .bench.catalogue import STOCK, Catalogue, open_prompts
    from .bench.measures import as_dataset, load_curves, measured_prompts
    from .statistics.transfer import Side
    from .sweeps.picture_sets import PictureSets

    sets, catalogue = PictureSets(folder, open_prompts(folder.parent)), Catalogue.load(folder)
    methods = list(catalogue.family(STOCK).values())
    curves = load_curves(sets, methods, measured_prompts(sets, methods[-1].key))
    planner = load_planner(file)
    if differences(planner.setting, catalogue.setting):
        raise InputError(
            f"--model: {file.name} is for {planner.setting.describe()}, {folder.name} holds other pictures."
        )
    return Side(as_dataset(sets, curves, catalogue, seed), planner)


def _made_with(*sides: Side) -> str:
    """Which renders the figures are of."""
    made = [f"{side.dataset.setting.describe()}: {side.dataset.seeds.size} pictures a count" for side in sides]
    return f"Pictures: {'; '.join(made)}. Made by `python -m research transfer`.\n"


def section(figures: Mapping[str, Any]) -> str:
    """One direction as Markdown."""
    prompts = figures["prompts"]
    lines = [
        f"## {figures['target']}",
        "",
        f"The other model: {figures['other']}. Quality {figures['quality']:g}, risk {figures['risk']:g}, "
        f"{prompts['test']} test prompts, {figures['splits']} draws of the few prompts.",
        "",
        "| planned with | mean steps | violations | by the tolerance rule | draws above the risk |",
        "|---|---|---|---|---|",
        *(_row(name, rule) for name, rule in figures["rules"].items()),
        "",
    ]
    own, other = (_numbers(figures["scale"][side]) for side in ("target", "other"))
    own_scale = figures["other_on_its_own_scale"]
    at_count, controlled = (_interval(own_scale[name], ".1%") for name in VIOLATIONS)
    lines += [
        f"In the other planner's own unit of quality its plans violate {at_count} (tolerance rule {controlled}). Scale "
        f"of quality (L-SNR in dB, D-SIM, I-CLIP): {own} here, {other} there. The other planner calls "
        f"{figures['out_of_distribution']:.0%} of these prompts out of distribution.",
        "",
    ]
    return "\n".join(lines)


def _row(name: str, rule: Mapping[str, Any]) -> str:
    above = rule.get("splits_above_risk")
    cells: Sequence[str] = (
        _title(name),
        *(_interval(rule[name], form) for name, form in (("steps", ".1f"), *((v, ".1%") for v in VIOLATIONS))),
        "" if above is None or rule["steps"]["low"] == rule["steps"]["high"] else f"{above:.0%}",
    )
    return f"| {' | '.join(cells)} |"


def _title(name: str) -> str:
    kind, _, count = name.rpartition("_")
    if name in ("own", "other"):
        return {"own": "its own planner", "other": "the other's planner, as it is"}[name]
    titles = {"other_recalibrated": "the other's curves, threshold from", "mean_curve": "its own mean curve, from"}
    return f"{titles[kind]} {count} prompts"


def _interval(value: Mapping[str, float], form: str) -> str:
    """A value with its interval; alone where there was one draw."""
    if value["low"] == value["high"]:
        return f"{value['value']:{form}}"
    return f"{value['value']:{form}} ({value['low']:{form}} to {value['high']:{form}})"


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
