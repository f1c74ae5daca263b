"""Types and defaults that the command line's options share. Imports nothing heavy."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The folder of the pack."""
WEIGHTS = ROOT / "weights"
PREFERRED_HOST = "0.30.0"
DEVICES = ("cpu", "gpu")


def run_folder() -> Path:
    """Where run.py keeps the virtual environment, the hosts and everything else that is not shipped."""
    return Path(os.environ.get("BUDGETFUSION_RUN_DIR") or ROOT / ".run").expanduser().absolute()


def default_host() -> Path:
    """COMFYUI_PATH if set, else the ComfyUI that run.py fetched."""
    named = os.environ.get("COMFYUI_PATH")
    return Path(named).expanduser() if named else run_folder() / "host" / PREFERRED_HOST


def whole(low: int, high: int) -> Callable[[str], int]:
    """An argparse type: a whole number from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}; got {text!r}") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}; got {value}")
        return value

    return parse


def number(low: float, high: float) -> Callable[[str], float]:
    """An argparse type: a number from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a number from {low:g} to {high:g}; got {text!r}") from None
        if not low <= value <= high:  # NaN fails too
            raise argparse.ArgumentTypeError(f"expected a number from {low:g} to {high:g}; got {text}")
        return value

    return parse


def add_host_option(parser: argparse.ArgumentParser) -> None:
    """`--host`, with its default."""
    parser.add_argument(
        "--host",
        type=Path,
        default=default_host(),
        metavar="FOLDER",
        help="a ComfyUI folder; COMFYUI_PATH or what run.py fetched (default: %(default)s)",
    )
