"""`blind`: what was chosen in blind tests."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError
from .comfyui import find_comfyui
from .options import FAILED, add_action, add_store, say

if TYPE_CHECKING:
    from ..calibration.choices import ChoiceStore


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("blind", help="look at, export and forget the choices of blind tests")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _action(actions, "info", "what was chosen, for each label", run_info)
    export = _action(actions, "export", "all choices as a CSV file", run_export)
    export.add_argument("to", type=Path, help="a new file")
    forget = _action(actions, "forget", "delete the choices under a label", run_forget)
    forget.add_argument("label", help="as 'blind info' shows it")


def _action(actions: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    parser = add_action(actions, name, text, run)
    add_store(parser)
    return parser


def open_choices(args: argparse.Namespace) -> ChoiceStore:
    """InputError where there is no store."""
    from ..calibration.choices import ChoiceStore

    path = args.store or find_comfyui(args.base_directory).store
    if not path.is_file():
        raise InputError(f"There is no calibration store {path}. The Blind Test node makes one.")
    return ChoiceStore(path)


def run_info(args: argparse.Namespace) -> int:
    from ..calibration.blind_test import summarise
    from ..core.psychometrics import fit_threshold

    store = open_choices(args)
    found = [(label, question, store.tallies(label, question)) for label, question in store.tests()]
    if args.json:
        rows = [
            {
                "label": label,
                "question": question,
                "values": {q: {**asdict(one), "interval": one.interval} for q, one in sorted(tallies.items())},
                "threshold": asdict(fit_threshold(tallies)),
            }
            for label, question, tallies in found
        ]
        say(json.dumps(rows, indent=1))
        return 0
    for label, question, tallies in found:
        say(f"{label or '(no label)'}: {question}, {sum(one.n for one in tallies.values())} choices")
        lines = [line for quality in sorted(tallies) for line in summarise(tallies, quality)[:-1]]
        for line in [*lines, summarise(tallies, min(tallies))[-1]]:
            say(f"    {line.text()}")
    if not found:
        say("No choice yet. The Blind Test node asks for them.")
    return 0


def run_export(args: argparse.Namespace) -> int:
    store = open_choices(args)
    try:
        with args.to.open("x", encoding="utf-8", newline="") as file:
            count = store.write_csv(file)
    except FileExistsError:
        raise InputError(f"{args.to.name} is there already. Choose another name.") from None
    except OSError as error:
        raise InputError(f"{args.to} cannot be written ({os.strerror(error.errno or 0)}).") from error
    say(json.dumps({"file": str(args.to), "choices": count}) if args.json else f"Written: {args.to}, {count} choices")
    return 0


def run_forget(args: argparse.Namespace) -> int:
    count = open_choices(args).forget(args.label)
    say(json.dumps({"choices": count}) if args.json else f"{count} choices forgotten.")
    return 0 if count else FAILED
