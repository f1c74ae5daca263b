"""`python -m research study memory`: whether memory keeps the guarantee, and what it saves and costs."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.options import WEIGHTS, add_host_option, number, whole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .judging import Tally
    from .tiny import Renders


BEFORE = 1000
"""Renders before a change of style."""
AFTER = (5, 30)
"""Renders after it, on Tiny Scenes."""


def add_parser(commands: Any) -> None:
    """Adds `memory`; `args.run(args)` returns the exit code."""
    text = "violations and savings after 10 to 10,000 remembered renders, in a simulated studio"
    parser = commands.add_parser("memory", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--sizes", default="10,100,1000,10000", help="remembered renders (%(default)s)")
    parser.add_argument("--after", default="5,30,200", help="renders after a change of style (%(default)s)")
    parser.add_argument("--worlds", type=whole(1, 10_000), default=10, help="studios of each size (%(default)s)")
    parser.add_argument("--tests", type=whole(1, 10_000), default=60, help="new renders of each kind (%(default)s)")
    parser.add_argument("--share", type=number(0.0, 0.95), default=0.5, help="the prompt's share (%(default)s)")
    parser.add_argument("--quality", type=number(0.5, 0.99), default=0.9, help="the slider (%(default)s)")
    parser.add_argument("--risk", type=number(0.02, 0.3), default=0.1, help="chance of falling short (%(default)s)")
    text = "renders in a real store whose size and planning time are measured; 0: none (%(default)s)"
    parser.add_argument("--cost", type=whole(0, 1_000_000), default=10_000, help=text)
    parser.add_argument("--figure", type=Path, metavar="PNG", help="draws the simulated studio's table")
    _add_pictures(parser)
    parser.set_defaults(run=run)


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    """Real renders of Tiny Scenes; what is missing is rendered and kept."""
    add_host_option(parser)
    both = ("PROMPTS", "FOLDER")
    text = "prompt list and folder of Tiny Scenes pictures, as 'study nested' keeps them; left out: no real renders"
    parser.add_argument("--pictures", type=Path, nargs=2, metavar=both, help=text)
    text = "the same scenes in other words; drawn where the list is not there"
    parser.add_argument("--rephrased", type=Path, nargs=2, metavar=both, help=text)
    parser.add_argument("--prompts", type=whole(1, 10_000), default=300, help="of --pictures (%(default)s)")
    parser.add_argument("--qualities", default="0.85,0.9,0.95", help="sliders of --pictures (%(default)s)")
    parser.add_argument("--schedule", default="nested 5@1.0", help="of dpmpp_2m, karras (%(default)s)")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run(args: argparse.Namespace) -> int:
    """Prints the tables as they are ready."""
    import torch

    from .costs import costs
    from .judging import HEAD, row

    torch.set_num_threads(1)
    _say(HEAD)
    cases: dict[str, dict[str, Tally]] = {}
    for case, kinds in _simulated(args):
        cases[case] = kinds
        for kind, tally in kinds.items():
            _say(row(f"{case}, {kind}", tally))
    if args.figure and cases:
        from .figure import draw

        found = {case: {kind: tally.figures() for kind, tally in kinds.items()} for case, kinds in cases.items()}
        draw(found, args.risk, args.figure)
    if args.pictures and args.rephrased:
        for case, tally in _real(args):
            _say(row(f"Tiny Scenes {case}", tally))
    if args.cost:
        with tempfile.TemporaryDirectory(prefix="budgetfusion-memory-") as folder:
            _say(costs(Path(folder) / "calibration.sqlite3", args.cost))
    return 0


def _simulated(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Tally]]]:
    """(what is remembered, kind of prompt -> tally)."""
    from .simulation import simulate, simulate_drift

    law = (args.worlds, args.tests, args.quality, args.risk, args.share, lambda _: None)
    for size in map(int, filter(None, args.sizes.split(","))):
        yield f"{size:,}", simulate(size, *law)
    for shift, style in ((None, "a new style"), (0.0, "a style that the words do not tell")):
        for after in map(int, filter(None, args.after.split(","))):
            more = {} if shift is None else {"shift": shift}
            yield f"{BEFORE:,} + {after} in {style}", simulate_drift(BEFORE, after, *law, **more)


def _real(args: argparse.Namespace) -> Iterator[tuple[str, Tally]]:
    """(slider and kind of prompt, tally) on Tiny Scenes."""
    from .tiny import judge, judge_drift

    grid, renders, other = _measured(args)
    for q in map(float, args.qualities.split(",")):
        for kind, tally in judge(grid, renders, q, args.risk).items():
            yield f"{q:.2f}, {kind}", tally
        for after in AFTER:
            yield (
                f"{q:.2f}, {after} renders after a change of style",
                judge_drift(grid, renders, other, after, q, args.risk),
            )


def _measured(args: argparse.Namespace) -> tuple[tuple[int, ...], Renders, NDArray[np.bool_]]:
    """(grid, renders [J] in both wordings, which show a scene of another style)."""
    import numpy as np

    from budgetfusion_nodes.core.errors import InputError
    from budgetfusion_nodes.core.schedule import NestedSchedule
    from budgetfusion_nodes.metrics.measure import Backends
    from research.sweeps.nested_study import Study
    from research.sweeps.picture_sets import PictureSets
    from research.sweeps.prompts import PromptList
    from research.sweeps.rendering import Renderer, Sampling, load_model
    from research.tiny_scenes_training.classifier import load_classifier

    from .tiny import Renders, in_another_style, in_other_words, measured, scale_of

    schedule = NestedSchedule.from_text(args.schedule)
    if schedule is None:
        raise InputError("--schedule: memory is judged along a nested one, such as 'nested 5@1.0'.")
    (listed, folder), (anew, other_folder) = args.pictures, args.rephrased
    prompts = PromptList.load(listed)
    prompts = replace(prompts, prompts=prompts.prompts[: args.prompts])
    if not anew.is_file():
        in_other_words(prompts).save(anew)
    scenes = [prompt.key for prompt in prompts.prompts]
    classifier = load_classifier(WEIGHTS / "classifier" / "tiny_scenes_classifier.safetensors")
    checkpoint = WEIGHTS / "checkpoints" / "tiny_scenes.safetensors"
    with tempfile.TemporaryDirectory(prefix="budgetfusion-memory-", ignore_cleanup_errors=True) as base:
        loaded = load_model(args.host.resolve(), Path(base), checkpoint.resolve(), "cpu", fp32=True)
        renderer = Renderer(loaded, Sampling("dpmpp_2m", "karras", 3.0))
        backends = Backends.from_values("tiny_scenes", "shipped")
        lists = ((folder, prompts), (other_folder, PromptList.load(anew)))
        studies = [Study(renderer, PictureSets(place, words), classifier, backends) for place, words in lists]
        scale = scale_of(studies[0])
        along = replace(schedule, tail_end=studies[0].tail_end)
        parts = [measured(study, along, scale, wording, scenes) for wording, study in enumerate(studies)]
    renders = Renders.joined([part for _, part in parts])
    return parts[0][0], renders, np.array([in_another_style(key) for key in scenes])[renders.scene]
