"""The command `noisy`: see noisy.py, which is imported on use."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from research.options import ROOT, WEIGHTS, add_host_option, run_folder, whole


def add_parser(subparsers: Any) -> None:
    """Adds `noisy`; `args.run(args)` returns the exit code."""
    text = "which samplers that draw noise settle with more steps; writes a table, resumable"
    parser = subparsers.add_parser("noisy", help=text, description=text[0].upper() + text[1:] + ".")
    add_host_option(parser)
    checkpoint = WEIGHTS / "checkpoints" / "tiny_scenes.safetensors"
    parser.add_argument("--checkpoint", type=Path, default=checkpoint, help="model file (Tiny Scenes)")
    parser.add_argument("--prompts", type=whole(1, 10_000), default=48, help="one picture each (%(default)s)")
    parser.add_argument("--work", type=Path, default=run_folder() / "noisy", help="where finished parts are kept")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "noisy_samplers.md", help="whose table to rewrite")
    parser.add_argument("--table-only", action="store_true", help="of what is finished; renders nothing")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Renders what is missing and writes the table."""
    from .noisy import run as study

    return study(args)
