"""The command line of the research tools: training and evaluating the shipped models, studies and the benchmark.

The demo, the tests, a server and the start-up cost are commands of run.py, which also sets everything up.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from . import foreign_checkpoint, host_symbols, shipping, transfer
from .bench import commands as bench_commands
from .bench import commit_commands
from .campaign import commands as campaign_commands
from .corpus import commands as corpus_commands
from .memory import commands as memory_commands
from .sweeps import caption_commands, filling_commands, nested_commands, noisy_commands
from .tiny_scenes_training import commands as tiny_scenes_commands


def build_parser() -> argparse.ArgumentParser:
    """Each command sets `run`: a function of the parsed options that returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m research", description="BudgetFusion's own tools.")
    parser.add_argument("--quiet", action="store_true", help="no progress, only results")
    groups = parser.add_subparsers(required=True, metavar="GROUP")
    tiny_scenes_commands.add_parser(groups)
    bench_commands.add_parser(groups)
    bench_commands.add_profile_parser(groups)
    campaign_commands.add_parser(groups)
    study = groups.add_parser("study", help="studies of schedules and memory")
    studies = study.add_subparsers(dest="study_command", required=True, metavar="COMMAND")
    nested_commands.add_parser(studies)
    commit_commands.add_parser(studies)
    memory_commands.add_parser(studies)
    noisy_commands.add_parser(groups)
    caption_commands.add_parser(groups)
    filling_commands.add_parser(groups)
    corpus_commands.add_parser(groups)
    host_symbols.add_parser(groups)
    transfer.add_parser(groups)
    foreign_checkpoint.add_parser(groups)
    shipping.add_parser(groups)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. What the user can mend is one sentence and status 2; 130 after Ctrl+C."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    level = logging.WARNING if options.quiet else logging.INFO
    for package in ("research", "budgetfusion_nodes"):
        logging.getLogger(package).setLevel(level)
    from budgetfusion_nodes.core.errors import BudgetFusionError

    from .in_process_host import HostStartError

    try:
        return int(options.run(options) or 0)
    except (BudgetFusionError, HostStartError, FileNotFoundError, ValueError) as error:
        logging.getLogger(__name__).debug("the command failed", exc_info=True)
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; what was saved so far is kept", file=sys.stderr)
        return 130
