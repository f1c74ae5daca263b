"""What the commands share: option types, output, exit codes. Imports nothing heavy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

FAILED, INTERRUPTED = 1, 130
"""Exit codes beside 0 (done) and 2 (wrong options)."""


def say(text: str, to: TextIO | None = None) -> None:
    """One piece of output. What a file from elsewhere says of itself gives a terminal no commands, and no letter that
    the terminal lacks ends a command."""
    stream = to or sys.stdout
    shown = "".join(letter if letter.isprintable() or letter in "\n\t" else ascii(letter)[1:-1] for letter in text)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(shown.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON and no progress bar")


def add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base-directory", type=Path, metavar="DIR", help="ComfyUI's --base-directory (the ComfyUI around the pack)"
    )


def add_action(actions: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    """A command below a group, with what all of them take; its `run(args)` gives the exit status."""
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    add_places(parser)
    add_json(parser)
    parser.set_defaults(run=run)
    return parser


def add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", type=Path, help="the database (user/budgetfusion of the ComfyUI around the pack)")


def whole(low: int, high: int) -> Callable[[str], int]:
    """An argparse type: a whole number from `low` to `high`."""
    return lambda text: _between(int, text, low, high)


def number(low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a number from `low` to `high`."""
    return lambda text: _between(float, text, low, high)


def _between(kind: Any, text: str, low: float, high: float) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not low <= value <= high:  # NaN fails too
        raise argparse.ArgumentTypeError(f"expected a number from {low:g} to {high:g}, got {text!r}")
    return value
