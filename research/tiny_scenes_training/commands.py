"""`tiny-scenes ...`: trains, evaluates and draws. Each option is declared here once; heavy imports happen on use."""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from research.options import WEIGHTS, add_host_option, number, run_folder, whole

from .settings import ClassifierSettings, EncoderSettings
from .timed_commands import add_split, add_timed_train

CHECKPOINT = WEIGHTS / "checkpoints" / "tiny_scenes.safetensors"
CLASSIFIER = WEIGHTS / "classifier" / "tiny_scenes_classifier.safetensors"
ENCODER = WEIGHTS / "image_encoder" / "tiny_scenes_clip.safetensors"


def add_parser(groups: Any) -> None:
    """Adds the group to the subparsers of the command line."""
    parser = groups.add_parser("tiny-scenes", help="the embedded text-to-image model: train, evaluate, render")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    _add_evaluate(commands)
    _add_train_encoder(commands)
    _add_evaluate_encoder(commands)
    _add_train_classifier(commands)
    _add_render(commands)
    add_timed_train(_command(commands, "train-timed", train, "train a generator on a GPU for a given time; resumable"))
    add_split(_command(commands, "split", train, "write the split files of Tiny Scenes Flow into a models folder"))


def _command(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=function)
    return parser


def _add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--threads",
        type=whole(0, 256),
        default=0,
        metavar="N",
        help="CPU threads of PyTorch, 0 to 256; 0 leaves its choice, or OMP_NUM_THREADS (default: %(default)s)",
    )


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder",
        type=Path,
        default=run_folder() / "train",
        help="where rendered scenes and the state of a stopped training lie (default: %(default)s)",
    )


def _set_threads(options: argparse.Namespace) -> None:
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)


# ------------------------------------------------------------------------------------------------------- generator


def _add_train(commands: Any) -> None:
    parser = _command(commands, "train", train, "train the generator; goes on where a stopped run was")
    add_host_option(parser)
    _add_folder(parser)
    parser.add_argument(
        "--workers",
        type=whole(1, 64),
        default=min(2, os.cpu_count() or 1),
        metavar="N",
        help="processes that train together on the CPU, one thread each, 1 to 64 (default: %(default)s)",
    )
    parser.add_argument(
        "--settings",
        default="{}",
        metavar="JSON",
        help="changes to TrainSettings in tiny_scenes/train.py, such as '{\"steps\": 20000}' (default: %(default)s)",
    )
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda", help="where to train (default: %(default)s)")
    parser.add_argument("--start-from", type=Path, metavar="FILE", help="begin with the weights of this checkpoint")
    parser.add_argument(
        "--out", type=Path, default=CHECKPOINT, metavar="FILE", help="the finished checkpoint (default: %(default)s)"
    )


def train(options: argparse.Namespace) -> int:
    """Trains with the host's own classes, then copies checkpoint and provenance to `--out`."""
    from research.in_process_host import import_host

    prepare = functools.partial(import_host, options.host, cpu=options.device == "cpu")
    prepare()
    from . import train as training

    settings = training.read_settings(options.settings)
    if options.device == "cpu":
        made = training.train(
            options.folder, settings, workers=options.workers, prepare=prepare, start_from=options.start_from
        )
    else:
        made = training.Trainer(options.folder, settings, options.device, options.start_from).run()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".safetensors", ".json"):
        shutil.copyfile(made.with_suffix(suffix), options.out.with_suffix(suffix))
    _say(options.out.with_suffix(".json").read_text())
    return 0


def _add_evaluate(commands: Any) -> None:
    text = "render held-out captions through ComfyUI, classify them; exit status 1 if a figure is below what is asked"
    parser = _command(commands, "evaluate", evaluate, text)
    add_host_option(parser)
    _add_threads(parser)
    parser.add_argument("--steps", type=whole(1, 1000), default=50, help="sampler steps, 1 to 1000 (default: 50)")
    parser.add_argument(
        "--cfg",
        type=number(0, 30),
        nargs="+",
        default=[3.0],
        help="guidance scales, 0 to 30; several are judged one after the other (default: 3)",
    )
    parser.add_argument("--sampler-name", default="dpmpp_2m", help="of ComfyUI (default: %(default)s)")
    parser.add_argument("--scheduler", default="karras", help="of ComfyUI (default: %(default)s)")
    parser.add_argument(
        "--captions", type=whole(1, 5000), default=200, help="held-out captions, 1 to 5000 (default: %(default)s)"
    )
    parser.add_argument(
        "--lone-objects",
        type=whole(0, 5000),
        default=100,
        help="more captions with one medium or large object, for the object rows only, 0 to 5000 "
        "(default: %(default)s)",
    )
    parser.add_argument("--seed", type=whole(0, 10**6), default=11, help="of captions and noise (default: %(default)s)")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="(default: %(default)s)")
    parser.add_argument("--device", default="cpu", metavar="cpu|cuda", help="where ComfyUI runs (default: %(default)s)")
    parser.add_argument("--classifier", type=Path, default=CLASSIFIER, help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--grid", type=Path, metavar="PNG", help="write a sheet of pictures and captions there")


def evaluate(options: argparse.Namespace) -> int:
    """Prints a table for each cfg."""
    from . import evaluate as benchmark

    for path, remedy in ((options.checkpoint, "train"), (options.classifier, "train-classifier")):
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}; make it with 'tiny-scenes {remedy}', or name another.")
    _set_threads(options)
    results = benchmark.run(
        options.host,
        options.checkpoint,
        options.classifier,
        count=options.captions,
        lone_objects=options.lone_objects,
        seed=options.seed,
        steps=options.steps,
        cfgs=options.cfg,
        sampler_name=options.sampler_name,
        scheduler=options.scheduler,
        json_path=options.json,
        grid_path=options.grid,
        cpu=options.device == "cpu",
    )
    for found in results:
        _say(benchmark.table(found) + "\n")
    return 0 if any(all(row.met for row in found.scores) for found in results) else 1


# ---------------------------------------------------------------------------------------------- encoder and classifier


def _add_train_encoder(commands: Any) -> None:
    parser = _command(commands, "train-encoder", train_encoder, "train the image encoder of I-CLIP; resumable")
    _add_small_training(parser, EncoderSettings(), ENCODER)


def _add_train_classifier(commands: Any) -> None:
    parser = _command(commands, "train-classifier", train_classifier, "train the classifier of 'evaluate'; resumable")
    _add_small_training(parser, ClassifierSettings(), CLASSIFIER)


def _add_small_training(parser: argparse.ArgumentParser, defaults: EncoderSettings | ClassifierSettings, out: Path):
    _add_folder(parser)
    _add_threads(parser)
    parser.add_argument(
        "--steps",
        type=whole(1, 10**6),
        default=defaults.steps,
        help="optimiser steps, 1 to 1000000 (default: %(default)s)",
    )
    parser.add_argument(
        "--limit", type=whole(1, 10**6), metavar="N", help="stop after N more steps; the same command goes on later"
    )
    parser.add_argument(
        "--scenes",
        type=whole(100, 10**6),
        default=defaults.scenes,
        help="rendered scenes to learn from, 100 to 1000000 (default: %(default)s)",
    )
    parser.add_argument("--seed", type=whole(0, 10**6), default=defaults.seed, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=out, metavar="FILE", help="(default: %(default)s)")


def train_encoder(options: argparse.Namespace) -> int:
    """Trains, saves and measures the image encoder."""
    _set_threads(options)
    from .image_encoder import train_encoder as run

    settings = replace(EncoderSettings(), steps=options.steps, scenes=options.scenes, seed=options.seed)
    return _finish(run(options.folder, options.out, settings, options.limit))


def train_classifier(options: argparse.Namespace) -> int:
    """Trains, saves and measures the classifier."""
    _set_threads(options)
    from .classifier import train_classifier as run

    settings = replace(ClassifierSettings(), steps=options.steps, scenes=options.scenes, seed=options.seed)
    return _finish(run(options.folder, options.out, settings, options.limit))


def _finish(report: dict[str, Any] | None) -> int:
    _say("stopped at the limit; the same command goes on" if report is None else json.dumps(report, indent=1))
    return 0


def _add_evaluate_encoder(commands: Any) -> None:
    parser = _command(commands, "evaluate-encoder", evaluate_encoder, "retrieval accuracy on held-out scenes")
    _add_threads(parser)
    parser.add_argument(
        "--scenes", type=whole(5, 5000), default=200, help="candidates, 5 to 5000 (default: %(default)s)"
    )
    parser.add_argument("--seed", type=whole(0, 10**6), default=4, help="of the scenes (default: %(default)s)")
    parser.add_argument("--encoder", type=Path, default=ENCODER, metavar="FILE", help="(default: %(default)s)")


def evaluate_encoder(options: argparse.Namespace) -> int:
    """Prints how often the right caption is found for a picture, and the right picture for a caption."""
    _set_threads(options)
    from budgetfusion_nodes.metrics.open_clip_file import load_open_clip_checkpoint

    from .image_encoder import retrieval

    found = retrieval(load_open_clip_checkpoint(options.encoder).model, options.scenes, options.seed)
    _say(f"among {found.scenes} held-out scenes   first    first five")
    _say(f"caption of a picture          {found.image_to_text_top1:6.1%}   {found.image_to_text_top5:6.1%}")
    _say(f"picture of a caption          {found.text_to_image_top1:6.1%}   {found.text_to_image_top5:6.1%}")
    return 0


# -------------------------------------------------------------------------------------------------------- pictures


def _add_render(commands: Any) -> None:
    parser = _command(commands, "render", render, "draw scenes of the grammar (no model) with their captions")
    parser.add_argument(
        "--count", type=whole(1, 100_000), default=16, help="pictures, 1 to 100000 (default: %(default)s)"
    )
    parser.add_argument(
        "--size", type=whole(32, 1024), default=64, help="pixels a side, 32 to 1024 (default: %(default)s)"
    )
    parser.add_argument("--seed", type=whole(0, 10**6), default=0, help="(default: %(default)s)")
    parser.add_argument("--held-out", action="store_true", help="scenes that no training saw")
    parser.add_argument(
        "--out", type=Path, default=run_folder() / "scenes", metavar="FOLDER", help="(default: %(default)s)"
    )


def render(options: argparse.Namespace) -> int:
    """Writes 0000.png, ... and captions.json."""
    import numpy as np
    from PIL import Image

    from budgetfusion_nodes.tiny_scenes import captions, scenes

    from . import renderer

    rng = np.random.default_rng(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    listed = []
    for index, scene in enumerate(scenes.sample_scenes(options.count, options.seed, held_out=options.held_out)):
        name = f"{index:04d}.png"
        Image.fromarray(renderer.render(scene, rng, options.size)).save(options.out / name)
        listed.append({"file": name, "caption": captions.describe(scene, rng), "scene": asdict(scene)})
    (options.out / "captions.json").write_text(json.dumps(listed, indent=1) + "\n")
    _say(f"{len(listed)} pictures and captions.json in {options.out}")
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
