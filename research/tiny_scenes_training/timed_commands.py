"""`tiny-scenes train-timed` and `split`: the GPU training of both generators, and the split files of Flow."""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from research.options import WEIGHTS, add_host_option, run_folder, whole

EPS_CHECKPOINT = WEIGHTS / "checkpoints" / "tiny_scenes.safetensors"
FLOW_CHECKPOINT = WEIGHTS / "checkpoints" / "tiny_scenes_flow.safetensors"


def add_timed_train(parser: argparse.ArgumentParser) -> None:
    """Options of `tiny-scenes train-timed`."""
    add_host_option(parser)
    parser.set_defaults(run=train_timed)
    parser.add_argument("--model", choices=("flow", "eps"), default="flow", help="(default: %(default)s)")
    parser.add_argument(
        "--folder",
        type=Path,
        default=run_folder() / "timed",
        help="where rendered scenes and the state of a stopped training lie (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=whole(1, 256),
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that render the scenes, 1 to 256 (default: %(default)s)",
    )
    parser.add_argument("--device", default="cuda", metavar="cuda|cpu", help="(default: %(default)s)")
    parser.add_argument(
        "--settings",
        default="{}",
        metavar="JSON",
        help="changes to TimedSettings in tiny_scenes/timed_train.py: '{\"seconds\": 60}' (default: %(default)s)",
    )
    parser.add_argument(
        "--start-from", type=Path, metavar="FILE", help="begin with these weights (default for eps: the shipped ones)"
    )
    parser.add_argument("--data-only", action="store_true", help="render the scenes and stop")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the finished checkpoint (default: the shipped one)")


def train_timed(options: argparse.Namespace) -> int:
    """Renders, trains for the given time and writes checkpoint and provenance."""
    from .timed_train import TimedSettings, prepare_data, read_timed_settings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    defaults = TimedSettings()
    if options.model == "eps":
        defaults = replace(defaults, large_every=0, uniform_share=0.15, learning_rate=7e-4, seed=3)
    settings = read_timed_settings(options.settings, defaults)
    data = prepare_data(options.folder, settings, options.workers)
    if not options.data_only:
        _train(options, settings, data)
    return 0


def _train(options: argparse.Namespace, settings: Any, data: Any) -> None:
    from research.in_process_host import import_host

    import_host(options.host, cpu=options.device == "cpu")
    import torch

    from . import flow_model, timed_train, training_model

    torch.manual_seed(settings.seed)
    torch.set_float32_matmul_precision("high")
    device = torch.device(options.device)
    if options.model == "eps":
        model = training_model.load_checkpoint(options.start_from or EPS_CHECKPOINT)
        loss, save = timed_train.eps_objective(settings, device), training_model.save_checkpoint
    else:
        model = flow_model.load_checkpoint(options.start_from) if options.start_from else flow_model.FlowTrainingModel()
        if not options.start_from:
            flow_model.load_text(model.text, EPS_CHECKPOINT)
        loss, save = timed_train.flow_objective(settings), flow_model.save_checkpoint
    trainer = timed_train.TimedTrainer(options.folder / options.model, settings, model, loss, data, device)
    finished: Any = trainer.run()
    provenance = {
        "model": f"Tiny Scenes generator ({options.model})",
        "command": "python -m research tiny-scenes train-timed",
        "start_from": str(options.start_from.name) if options.start_from else None,
        "text_encoder_from": EPS_CHECKPOINT.name,
        **trainer.provenance(),
    }
    default = EPS_CHECKPOINT if options.model == "eps" else FLOW_CHECKPOINT
    save(finished, options.out or default, provenance)


def add_split(parser: argparse.ArgumentParser) -> None:
    """Options of `tiny-scenes split`."""
    parser.set_defaults(run=split)
    parser.add_argument("--checkpoint", type=Path, default=FLOW_CHECKPOINT, help="(default: %(default)s)")
    parser.add_argument("--models", type=Path, required=True, metavar="FOLDER", help="the models folder of a ComfyUI")


def split(options: argparse.Namespace) -> int:
    """Writes the split files for UNETLoader, CLIPLoader and VAELoader."""
    import sys

    from .flow_model import split_checkpoint

    for path in split_checkpoint(options.checkpoint, options.models).values():
        sys.stdout.write(f"{path}\n")
    return 0
