"""`python -m research foreign-checkpoint`: the whole way of an artist with a checkpoint of their own.

A shipped model takes its place, copied under another name, its shipped planner taken away, in a genuine ComfyUI with
nothing but the pack. Calibrate (quick) is queued, the planner that appears is used at the next queue, and violations
are counted on prompts that it has not seen: others of the built-in list, like those of the calibration, and captions,
which are not.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import ROOT, number, whole
from .shipped_models import MODELS, ShippedModel

if TYPE_CHECKING:
    from .demo.graph import DemoGraph
    from .in_process_host import HostSession

FOREIGN = "foreign_"
FOLDERS = {"ckpt_name": "checkpoints", "unet_name": "diffusion_models", "clip_name": "text_encoders"}
ORDINARY = 25
"""Renders at the full count that are timed; `quick` is to take at most the time of 100."""
SEED = 20_000


def add_parser(groups: Any) -> None:
    """Adds the command to the subparsers of the command line."""
    text = "calibrate a shipped model as a foreign checkpoint, and count violations on fresh prompts"
    parser = groups.add_parser("foreign-checkpoint", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--host", type=Path, required=True, metavar="FOLDER", help="a ComfyUI")
    parser.add_argument(
        "--model", choices=sorted(MODELS), default="eps", help="eps: a checkpoint; flow: split files (%(default)s)"
    )
    parser.add_argument("--steps", type=whole(2, 1000), default=20, help="full count (%(default)s)")
    parser.add_argument("--fresh", type=whole(1, 400), default=60, help="prompts of each kind (%(default)s)")
    parser.add_argument("--quality", type=number(0.5, 0.99), default=0.9, help="the slider (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class Judged:
    """What fresh prompts said."""

    prompts: int
    violations: int
    """Renders whose measured quality is below the slider."""
    mean_steps: float
    fallbacks: int
    """Renders without a plan."""


@dataclass(frozen=True)
class Spent:
    """Of a block, or since an unknown moment."""

    seconds: float
    processor: float
    """Seconds of this process on a core: what they say of a CPU, no other program changes."""

    @classmethod
    def now(cls) -> Spent:
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, other: Spent) -> Spent:
        return Spent(round(self.seconds - other.seconds, 1), round(self.processor - other.processor, 1))


def run(options: argparse.Namespace) -> int:
    """Prints the figures."""
    from .demo.graph import load_base
    from .in_process_host import start_host

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        model = copied(MODELS[options.model], base / "models")
        session = start_host(options.host, base, [ROOT])
        only_own_planners(base / "models" / "budgetfusion")
        graph = load_base(model=model)
        for node in graph.values():
            node["inputs"] |= {key: options.steps for key in ("max_steps",) if key in node["inputs"]}
        figures = figures_of(session, graph, base, options)
    text = json.dumps({"model": model.describe(), "host": session.version, **figures}, indent=1)
    sys.stdout.write(text + "\n")
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")
    return 0


def figures_of(session: HostSession, graph: Any, base: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Ordinary renders, the calibration, and what both kinds of fresh prompts say of its planner."""
    from budgetfusion_nodes.calibration.prompts import built_in

    from .demo.prompts import held_out

    captions = held_out(options.fresh)
    ordinary = timed_renders(session, graph, [prompt.text for prompt in built_in()[:ORDINARY]])
    quick, shown = calibrate(session, graph)
    seen = rendered_texts(base)
    others = [prompt.text for prompt in built_in() if prompt.text not in seen]
    fresh = {"built-in": others[:: max(1, len(others) // options.fresh)][: options.fresh], "captions": captions}
    return {
        "ordinary_renders": ORDINARY,
        "ordinary": vars(ordinary),
        "quick": vars(quick),
        "quick_evaluations": evaluations(base),
        "quick_in_ordinary_renders_by_seconds": round(quick.seconds / ordinary.seconds * ORDINARY, 1),
        "quick_in_ordinary_renders_by_processor": round(quick.processor / ordinary.processor * ORDINARY, 1),
        "quick_in_ordinary_renders_by_evaluations": round(evaluations(base) / options.steps, 1),
        "planner": shown["file"],
        "calibration_prompts": shown["prompts"],
        **{kind: vars(judge(session, graph, texts, options.quality)) for kind, texts in fresh.items()},
    }


def copied(model: ShippedModel, models: Path) -> ShippedModel:
    """The model with its files under names that nobody knows."""
    loaders: dict[str, Any] = {}
    for kind, inputs in model.loaders.items():
        loaders[kind] = dict(inputs)
        for key, folder in FOLDERS.items():
            if key in inputs:
                (models / folder).mkdir(parents=True, exist_ok=True)
                source = next((ROOT / "weights").rglob(inputs[key]))
                shutil.copy(source, models / folder / f"{FOREIGN}{inputs[key]}")
                loaders[kind][key] = f"{FOREIGN}{inputs[key]}"
    return replace(model, loaders=loaders)


def only_own_planners(folder: Path) -> None:
    """The artist's planner folder, empty, and no shipped one."""
    known = sys.modules["folder_paths"].folder_names_and_paths
    known["budgetfusion"] = ([str(folder)], known["budgetfusion"][1])


def calibrate(session: HostSession, graph: Any) -> tuple[Spent, dict[str, Any]]:
    """(what it took, what the node showed) of Calibrate beside the graph's sampler, as the template has it."""
    from budgetfusion_nodes.command_line.graphs import with_calibrate

    own, node = with_calibrate(graph)
    own[node]["inputs"] |= {"keep_text": True, "schedule": "stock"}
    started = Spent.now()
    ui = session.execute(own).ui[node]
    return Spent.now() - started, ui["calibration"][0]


def rendered_texts(base: Path) -> set[str]:
    return {text for (text,) in asked_of_store(base, "SELECT text FROM prompts")}


def evaluations(base: Path) -> int:
    """Of the denoiser, in the whole calibration."""
    ((total,),) = asked_of_store(base, "SELECT sum(evaluations) FROM measurements")
    return int(total)


def asked_of_store(base: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(base / "user" / "budgetfusion" / "calibration.sqlite3")) as store:
        return store.execute(query).fetchall()


def timed_renders(session: HostSession, graph: Any, texts: Sequence[str]) -> Spent:
    """By the stock KSampler at the full count and VAE Decode, for each text; the model is loaded before."""
    from .demo.graph import build

    started = Spent.now()
    for seed, text in enumerate([texts[-1], *texts]):
        if seed == 1:
            started = Spent.now()
        session.execute(stock_render(build(graph, text, seed, 0.9)))
    return Spent.now() - started


def stock_render(made: DemoGraph) -> Any:
    """Of the demo's graph the full-step render alone, by the stock KSampler."""
    inputs = dict(made.nodes[made.full]["inputs"])
    limits = [inputs.pop(name) for name in ("quality", "min_steps", "max_steps")]
    nodes = {**made.nodes, made.full: {"class_type": "KSampler", "inputs": {**inputs, "steps": limits[-1]}}}
    wanted, waiting = {}, [made.save_full]
    while waiting:
        name = waiting.pop()
        wanted[name] = nodes[name]
        waiting += [value[0] for value in nodes[name]["inputs"].values() if isinstance(value, list)]
    return wanted


def judge(session: HostSession, graph: Any, texts: Sequence[str], quality: float) -> Judged:
    """Each text rendered by the plan and in full, and measured by the Probe."""
    from .demo.graph import build

    steps, violations, fallbacks = [], 0, 0
    for index, text in enumerate(texts):
        made = build(graph, text, SEED + index, quality)
        ui = session.execute(made.nodes).ui
        steps.append(int(ui[made.adaptive]["receipt"][0]["steps"]))
        fallbacks += ui[made.planner]["budget_plan"][0]["fallback"] is not None
        measured = ui[made.probe]["probe"][0]["quality"]
        violations += measured is None or measured[0] < quality
    return Judged(len(texts), violations, round(sum(steps) / len(steps), 2), fallbacks)
