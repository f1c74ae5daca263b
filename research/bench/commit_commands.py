"""`python -m research study commit`: a plan corrected at the commit point against plans from the prompt alone."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from research.options import WEIGHTS, add_host_option, number, run_folder, whole

from .settings import SETTINGS

QUALITIES = (0.9, 0.95)


def add_parser(commands: Any) -> None:
    """Adds `commit`."""
    text = "what the prediction at the commit point tells of the steps needed; on what the benchmark has measured"
    parser = commands.add_parser("commit", help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    add_host_option(parser)
    parser.add_argument("--setting", choices=tuple(SETTINGS), default="eps_karras", help="(%(default)s)")
    parser.add_argument("--prompts", type=whole(20, 10_000), default=300, help="held-out ones (%(default)s)")
    parser.add_argument("--risk", type=number(0.01, 0.5), default=0.1, help="chance of falling short (%(default)s)")
    parser.add_argument("--pictures", type=Path, default=run_folder() / "pictures", help="picture sets (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the bootstrap (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Prints the table."""
    import torch

    from budgetfusion_nodes.metrics.measure import Backends
    from research.sweeps.nested_study import Study
    from research.sweeps.picture_sets import PictureSets
    from research.tiny_scenes_training.classifier import load_classifier

    from .catalogue import NESTED, STOCK, Catalogue, open_prompts
    from .commit_level import commit_level
    from .measures import load_curves
    from .own_target import median_scale, truth_of
    from .renders import nested_schedule, open_studio

    torch.set_num_threads(1)
    setting = SETTINGS[args.setting]
    sets = PictureSets(args.pictures / setting.name, open_prompts(args.pictures, args.prompts))
    catalogue = Catalogue.load(sets.folder)
    nested, stock = (load_curves(sets, list(catalogue.family(f).values()), args.prompts) for f in (NESTED, STOCK))
    truth = truth_of(nested, median_scale(stock))
    classifier = load_classifier(WEIGHTS / "classifier" / "tiny_scenes_classifier.safetensors")
    with tempfile.TemporaryDirectory(prefix="budgetfusion-commit-", ignore_cleanup_errors=True) as base:
        opened = open_studio(setting, sets, args.host.resolve(), Path(base))
        study = Study(opened.renderer, sets, classifier, Backends.from_values("tiny_scenes", "shipped"))
        schedule = nested_schedule(catalogue.nested, study.tail_end)
        sys.stdout.write(
            f"{setting.words}, {schedule.to_text()}, {args.prompts} prompts x {sets.seeds} seeds, risk {args.risk:g}\n"
            "\n"
            "| quality | learner | explained by the prompt, with the prediction | one count | prompt | at the commit "
            "| saved over the prompt alone |\n|---|---|---|---|---|---|---|\n"
        )
        for q in QUALITIES:
            for row in commit_level(study, schedule, truth, q, args.risk, args.seed):
                saved, low, high = (100 * part for part in row.saved)
                sys.stdout.write(
                    f"| {q:g} | {row.learner} | {100 * row.explained_prompt:.0f}, {100 * row.explained_commit:.0f} % "
                    f"| {row.steps_one:.2f} | {row.steps_prompt:.2f} | {row.steps_commit:.2f} "
                    f"| {saved:.1f} ({low:.1f} to {high:.1f}) % |\n"
                )
                sys.stdout.flush()
    return 0
