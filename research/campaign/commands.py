"""`python -m research campaign`: tries to break what the pack promises; docs/reliability.md is the report."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from research.options import ROOT, add_host_option, run_folder, whole

from .part import LONG, QUICK
from .registry import NAMES


def add_parser(groups: Any) -> None:
    """Adds `campaign`; `args.run(args)` returns the exit status."""
    text = "kills, full disks, hostile files and more against what the pack promises; resumable by part"
    parser = groups.add_parser("campaign", help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    add_host_option(parser)
    anew = "separated by commas, run anew; without it, those of which no result of this amount is kept. One of "
    parser.add_argument("--parts", type=_names, metavar="NAMES", help=anew + ", ".join(NAMES))
    amounts = parser.add_mutually_exclusive_group()
    amounts.add_argument("--quick", dest="amount", action="store_const", const=QUICK, help="seconds a part (default)")
    amounts.add_argument("--long", dest="amount", action="store_const", const=LONG, help="minutes to an hour a part")
    parser.add_argument("--seed", type=whole(0, 2**31), default=1, help="of everything random (%(default)s)")
    parser.add_argument("--minutes", type=float, default=math.inf, help="a part of many attempts stops then")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="where to write (%(default)s)")
    parser.set_defaults(amount=QUICK)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(filter(None, text.split(",")))
    if unknown := [name for name in names if name not in NAMES]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is none of {', '.join(NAMES)}")
    return names


def run(args: argparse.Namespace) -> int:
    """1 where a promise broke or a part itself failed."""
    import json

    from .report import write_report
    from .results import broken, kept_file, run_part

    folder = run_folder() / "campaign"
    host = args.host.resolve() if (args.host / "nodes.py").is_file() else None
    fresh: dict[str, Any] = {}
    failed = False
    for name in NAMES if args.parts is None else args.parts:
        kept = kept_file(folder, name, args.amount)
        if args.parts is None and kept.is_file():
            found = json.loads(kept.read_text(encoding="utf-8"))
        else:
            found = run_part(name, folder, host, args.amount, args.seed, args.minutes)
        if found is None:
            failed = True
            continue
        fresh[name] = found
        _say(name, found, broken(found))
        write_report(args.out, fresh)  # after each, so that a stop loses nothing
    return int(failed or any(broken(found) for found in fresh.values()))


def _say(name: str, found: dict[str, Any], faults: list[str]) -> None:
    state = f"not run: {found['not_run']}" if found["not_run"] else f"{len(faults)} of {len(found['findings'])} broken"
    for line in (f"{name}: {state} ({found['seconds']:.0f} s)", *(f"    broken: {what}" for what in faults)):
        sys.stdout.write(line + "\n")
    sys.stdout.flush()
