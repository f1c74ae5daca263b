"""`python -m research bench`: renders what is missing of the picture sets, measures them, writes docs/benchmark.md."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.options import ROOT, WEIGHTS, add_host_option, run_folder, whole

from .settings import PEER_PROMPTS, PROMPTS, SETTINGS, BenchSetting

if TYPE_CHECKING:
    from research.sweeps.picture_sets import PictureSets

log = logging.getLogger(__name__)

HOST_STAGES = ("catalogue", "render", "peers", "time")
"""The first is part of the others too."""
STAGES = (*HOST_STAGES, "measure", "report")


def add_parser(groups: Any) -> None:
    """Adds `bench`; `args.run(args)` returns the exit status."""
    text = "render held-out prompts with every method, measure them, write docs/benchmark.md; resumable"
    parser = groups.add_parser("bench", help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    add_host_option(parser)
    parser.add_argument("--pictures", type=Path, default=run_folder() / "pictures", help="picture sets (%(default)s)")
    parser.add_argument("--settings", default=",".join(SETTINGS), help="separated by commas (%(default)s)")
    parser.add_argument("--stages", default=",".join(STAGES), help="separated by commas (%(default)s)")
    parser.add_argument(
        "--prompts",
        action="append",
        type=_prompts,
        default=[],
        metavar="[SETTING=]N",
        help=f"the first N, of one setting or of all ({PROMPTS})",
    )
    parser.add_argument(
        "--peer-prompts", type=whole(2, 10_000), default=PEER_PROMPTS, help="of them for the peers (%(default)s)"
    )
    parser.add_argument(
        "--nested",
        action="append",
        default=[],
        metavar="SETTING=P@SIGMA",
        help="prefix and commit point (default: that of the setting's planner, else a fixed one)",
    )
    parser.add_argument("--planners", type=Path, default=WEIGHTS / "planners", help="folder (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="where to write (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of bootstrap and splits (%(default)s)")
    parser.add_argument("--threads", type=whole(1, 1000), default=1, help="CPU threads (%(default)s)")


def add_profile_parser(groups: Any) -> None:
    """Adds `gpu-profile`."""
    text = "seconds and joules of a UNet of SD 2.1's size on a GPU, at two step counts"
    parser = groups.add_parser("gpu-profile", help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run_profile)
    add_host_option(parser)
    parser.add_argument("--steps", type=whole(1, 1000), nargs=2, default=[50, 17], metavar="N", help="(%(default)s)")


def _prompts(text: str) -> tuple[str, int]:
    """(setting, or empty for all of them; number of prompts)."""
    name, _, count = text.rpartition("=")
    return name, whole(4, 10_000)(count)


def run_profile(args: argparse.Namespace) -> int:
    """Prints JSON."""
    from research.in_process_host import import_host

    from .gpu_profile import sd21_profile

    import_host(args.host, cpu=False)
    sys.stdout.write(json.dumps(sd21_profile(*args.steps), indent=1) + "\n")
    return 0


def run(args: argparse.Namespace) -> int:
    """Every stage for every setting, then the report."""
    import torch

    from budgetfusion_nodes.core.errors import InputError

    torch.set_num_threads(args.threads)
    stages, names = args.stages.split(","), args.settings.split(",")
    for option, given, known in (("--stages", stages, STAGES), ("--settings", names, SETTINGS)):
        if unknown := [name for name in given if name not in known]:
            raise InputError(f"{option}: {', '.join(unknown)} is none of {', '.join(known)}.")
    chosen = {name: SETTINGS[name] for name in names}
    sets = _sets(args, chosen)
    if any(stage in stages for stage in HOST_STAGES):
        _render(args, stages, chosen, sets)
    if "measure" in stages:
        from .measures import measure_all

        for name in chosen:
            measure_all(sets[name])
    if "report" in stages:
        from .report import write_report

        for line in write_report(chosen, sets, args.planners, args.out, args.seed):
            sys.stdout.write(line + "\n")
    return 0


def _sets(args: argparse.Namespace, chosen: Mapping[str, BenchSetting]) -> dict[str, PictureSets]:
    from research.sweeps.picture_sets import PictureSets
    from research.sweeps.prompts import PromptList

    from .catalogue import open_prompts

    wanted = dict(args.prompts)
    counts = {name: wanted.get(name, wanted.get("", PROMPTS)) for name in chosen}
    found = open_prompts(args.pictures, max(counts.values()))
    return {
        name: PictureSets(args.pictures / name, PromptList(found.prompts[:count], found.source))
        for name, count in counts.items()
    }


def _render(
    args: argparse.Namespace, stages: list[str], chosen: Mapping[str, BenchSetting], sets: Mapping[str, PictureSets]
) -> None:
    from .planners import planned_schedule
    from .renders import make_catalogue, nested_schedule, open_studio, render_peers, schedule_runs, time_methods

    given = dict(text.partition("=")[::2] for text in args.nested)
    with tempfile.TemporaryDirectory(prefix="budgetfusion-bench-", ignore_cleanup_errors=True) as base:
        for name, setting in chosen.items():
            log.info("%s", setting.words)
            studio = open_studio(setting, sets[name], args.host.resolve(), Path(base))
            text = given.get(name) or planned_schedule(args.planners, setting) or setting.nested
            nested = nested_schedule(text, studio.tail_end)
            unusable = make_catalogue(studio, setting, nested).unusable
            if "render" in stages:
                studio.prepare(list(schedule_runs(studio, nested).values()))
            if "peers" in stages:
                unusable = render_peers(
                    studio, setting, nested, min(args.peer_prompts, len(sets[name].prompts.prompts))
                )
            if "time" in stages:
                time_methods(studio, nested)
            make_catalogue(studio, setting, nested, unusable)
