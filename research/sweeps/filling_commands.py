"""`python -m research fill-calibration`: see filling.py, which is imported on use."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from research.options import DEVICES, WEIGHTS, add_host_option, number, whole


def add_parser(subparsers: Any) -> None:
    """Adds `fill-calibration`; `args.run(args)` returns the exit code."""
    text = "render what a calibration of a shipped model lacks in batches, into its store; resumable"
    parser = subparsers.add_parser("fill-calibration", help=text, description=text[0].upper() + text[1:] + ".")
    add_host_option(parser)
    parser.add_argument("--store", type=Path, required=True, help="calibration.sqlite3 of the ComfyUI that goes on")
    parser.add_argument("--prompts", type=Path, required=True, help="as of `budgetfusion_nodes calibrate`")
    parser.add_argument("--checkpoint", type=Path, default=WEIGHTS / "checkpoints" / "tiny_scenes.safetensors")
    parser.add_argument("--sampler", default="dpmpp_2m", help="(%(default)s)")
    parser.add_argument("--scheduler", default="karras", help="(%(default)s)")
    parser.add_argument("--cfg", type=number(0, 100), default=3.0, help="(%(default)s)")
    parser.add_argument("--steps", type=whole(2, 1000), default=50, help="(%(default)s)")
    parser.add_argument("--schedule", default="stock", help="stock, or as 'nested 5@1.0' (%(default)s)")
    parser.add_argument("--thoroughness", default="thorough", help="(%(default)s)")
    parser.add_argument("--threads", type=whole(1, 1000), default=1, help="CPU threads (%(default)s)")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="in full single precision (%(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints how much was rendered."""
    import torch

    from budgetfusion_nodes.calibration.host_job import Asked
    from budgetfusion_nodes.calibration.prompts import from_file
    from budgetfusion_nodes.calibration.spec import Spec
    from budgetfusion_nodes.calibration.store import Store

    from .filling import fill
    from .rendering import load_model

    torch.set_num_threads(args.threads)
    asked = Asked(Spec(args.steps, args.thoroughness), "filling", from_file(args.prompts), args.schedule)
    with tempfile.TemporaryDirectory(prefix="budgetfusion-fill-", ignore_cleanup_errors=True) as base:
        loaded = load_model(args.host.resolve(), Path(base), args.checkpoint.resolve(), args.device, fp32=True)
        with Store.at(args.store) as store:
            done = fill(store, loaded, asked, args.sampler, args.scheduler, args.cfg).progress()
    sys.stdout.write(f"{done.prompts} of {done.wanted} prompts, {done.renders} pictures rendered here\n")
    return 0
