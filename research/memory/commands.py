"""`python -m research study memory`: whether memory keeps the promise, and what it saves and costs."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from research.options import number, whole


def add_parser(commands: Any) -> None:
    """Adds `memory`; `args.run(args)` returns the exit code."""
    text = "violations and savings after 10 to 10,000 remembered renders, in a simulated studio"
    parser = commands.add_parser("memory", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--sizes", default="10,100,1000,10000", help="remembered renders (%(default)s)")
    parser.add_argument("--after", default="30,200", help="renders after a change of style (%(default)s)")
    parser.add_argument("--worlds", type=whole(1, 10_000), default=10, help="studios of each size (%(default)s)")
    parser.add_argument("--tests", type=whole(1, 10_000), default=60, help="new renders of each kind (%(default)s)")
    parser.add_argument("--share", type=number(0.0, 0.95), default=0.5, help="the prompt's share (%(default)s)")
    parser.add_argument("--quality", type=number(0.5, 0.99), default=0.9, help="the slider (%(default)s)")
    parser.add_argument("--risk", type=number(0.02, 0.3), default=0.1, help="chance of falling short (%(default)s)")
    text = "renders in a real store whose size and planning time are measured; 0: none (%(default)s)"
    parser.add_argument("--cost", type=whole(0, 1_000_000), default=10_000, help=text)
    parser.set_defaults(run=run)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run(args: argparse.Namespace) -> int:
    """Prints the tables as they are ready."""
    import torch

    from .costs import costs
    from .judging import HEAD, row
    from .simulation import simulate, simulate_drift

    torch.set_num_threads(1)
    law = (args.worlds, args.tests, args.quality, args.risk, args.share, lambda _: None)
    _say(HEAD)
    for size in map(int, filter(None, args.sizes.split(","))):
        for kind, tally in simulate(size, *law).items():
            _say(row(f"{size} remembered, {kind}", tally))
    for after in map(int, filter(None, args.after.split(","))):
        for kind, tally in simulate_drift(1000, after, *law).items():
            _say(row(f"1000, then {after} in a new style, {kind}", tally))
    if args.cost:
        with tempfile.TemporaryDirectory(prefix="budgetfusion-memory-") as folder:
            _say(costs(Path(folder) / "calibration.sqlite3", args.cost))
    return 0
