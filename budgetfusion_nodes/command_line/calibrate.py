"""`calibrate`: queues the node in a genuine server, so there is no second way to load a model."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..core.messages import Message
from .client import definitions, run_graph
from .comfyui import find_comfyui, running_server
from .graphs import around_checkpoint, read_graph, with_calibrate
from .options import INTERRUPTED, add_json, number, say, whole
from .page_format import Info

EVENT = "budgetfusion.calibration"


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "calibrate",
        help="make a planner for a model",
        description="Makes a planner for a model: ComfyUI renders calibration prompts at several step counts and "
        "measures them. It can be ended at any time (Ctrl-C) and goes on when it is started again.",
        epilog="The planner lies in models/budgetfusion of that ComfyUI, and nodes with planner 'auto' use it at the "
        "next queue.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--workflow", type=Path, metavar="GRAPH.json", help="a saved or exported graph: its sampler is calibrated"
    )
    what.add_argument("--checkpoint", metavar="FILE", help="a name in models/checkpoints")
    parser.add_argument(
        "--thoroughness", choices=("quick", "standard", "thorough"), help="28, up to 90 or 240 prompts (quick)"
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="your own prompts: txt, tsv, json, png, or a folder of png (built-in list)",
    )
    parser.add_argument("--name", help="of the planner file (from model, sampler and scheduler)")
    parser.add_argument(
        "--steps", type=whole(2, 1000), help="the count whose picture counts as full quality (50, or the graph's)"
    )
    parser.add_argument(
        "--schedule",
        help="nested: look for one; stock: the scheduler's own; or one that is known: 'nested 5@1.0' is 5 steps down "
        "to sigma 1 for every count (nested)",
    )
    group = parser.add_argument_group("with --checkpoint")
    group.add_argument("--sampler", default="euler", help="(%(default)s)")
    group.add_argument("--scheduler", default="normal", help="(%(default)s)")
    group.add_argument("--cfg", type=number(0.0, 100.0), default=7.0, help="(%(default)s)")
    group.add_argument("--width", type=whole(16, 16384), default=512, help="pixels (%(default)s)")
    group.add_argument("--height", type=whole(16, 16384), default=512, help="pixels (%(default)s)")
    group.add_argument("--negative", default="", help="negative prompt (empty)")
    _add_where(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def _add_where(parser: argparse.ArgumentParser) -> None:
    where = parser.add_argument_group("where it runs")
    where.add_argument(
        "--server", metavar="URL", help="a running ComfyUI (one is started from the ComfyUI around the pack)"
    )
    where.add_argument("--base-directory", type=Path, metavar="DIR", help="ComfyUI's --base-directory")
    where.add_argument(
        "--comfyui-option",
        action="append",
        default=[],
        metavar="OPTION",
        help="for its main.py, e.g. --comfyui-option=--lowvram; may be repeated",
    )
    many = parser.add_argument_group("on many GPUs or machines (docs/many_machines.md)")
    many.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="one ComfyUI for each GPU of a Ray cluster; without ADDRESS, of this machine",
    )
    many.add_argument("--workers", type=whole(1, 1000), help="how many (one a GPU)")


def run(args: argparse.Namespace) -> int:
    if args.ray is not None and args.server:
        raise InputError("--ray starts a ComfyUI for each worker, and --server names one that runs. Give one of them.")
    with contextlib.ExitStack() as stack:
        url = cache(lambda: args.server or stack.enter_context(_server(args)))  # started when it is needed
        graph, node = build(args, lambda: asyncio.run(definitions(url())))
        try:
            if args.ray is not None:
                stack.close()  # a graph in the page's format needed one
                return _with_ray(args, graph, node)
            shown = asyncio.run(_run(url(), graph, node, args.json))
        except KeyboardInterrupt:
            say("Ended. What was measured is kept; run the command again to go on.", sys.stderr)
            return INTERRUPTED
    text = "\n".join(shown.get("text", []))
    (details,) = shown.get("calibration") or [{}]
    say(json.dumps(details, indent=1) if args.json else text)
    return 0


def _server(args: argparse.Namespace) -> contextlib.AbstractContextManager[str]:
    return running_server(find_comfyui(args.base_directory), args.comfyui_option)


def _with_ray(args: argparse.Namespace, graph: Mapping[str, Any], node: str) -> int:
    from ..core.schedule import NESTED, STOCK
    from .ray_calibrate import calibrate, executor_of

    inputs = graph[node]["inputs"]
    if inputs.get("schedule", NESTED) == NESTED:
        if inputs["thoroughness"] != "quick":
            raise InputError(
                "--ray: looking for a nested schedule is the work of one ComfyUI. Add --schedule stock, or the one "
                "that a calibration without --ray has found, such as --schedule 'nested 5@1.0'."
            )
        inputs["schedule"] = STOCK  # quick looks for none
        say("quick with --ray: along the stock schedule. --schedule 'nested 5@1.0' names a nested one.", sys.stderr)
    comfyui = find_comfyui(args.base_directory)
    with executor_of(args.ray, args.workers, graph, node, comfyui, args.comfyui_option) as executor:
        result, throughput = calibrate(executor, comfyui, args.json)
    details = {**result.shown, "throughput": throughput.to_dict()}
    say(json.dumps(details, indent=1) if args.json else f"{result.text}\n{throughput.text()}")
    return 0


def build(args: argparse.Namespace, info: Callable[[], Info]) -> tuple[dict[str, Any], str]:
    """(graph, id of its Calibrate node), with what was given on the command line in place. info: see `read_graph`."""
    if args.workflow is not None:
        graph, node = with_calibrate(read_graph(args.workflow, info), args.steps)
    else:
        steps = args.steps or 50
        given = (args.negative, args.sampler, args.scheduler, args.cfg, steps, args.width, args.height)
        graph, node = with_calibrate(around_checkpoint(args.checkpoint, *given))
    inputs: dict[str, Any] = graph[node]["inputs"]
    given_here = {"thoroughness": args.thoroughness, "name": args.name, "max_steps": args.steps}
    given_here |= {"schedule": args.schedule}
    inputs |= {name: value for name, value in given_here.items() if value is not None}
    if args.prompts is not None:
        from ..calibration.prompts import from_file

        texts = [prompt.text for prompt in from_file(args.prompts)]
        inputs |= {"prompts": "text, one a line", "prompt_text": "\n".join(texts)}
    return graph, node


async def _run(url: str, graph: Mapping[str, Any], node: str, quiet: bool) -> dict[str, Any]:
    from tqdm import tqdm

    with tqdm(total=1, unit="step", file=sys.stderr, disable=quiet, dynamic_ncols=True) as bar:

        def follow(kind: str, data: Mapping[str, Any]) -> None:
            if kind == "progress" and str(data.get("node")) == node:
                bar.total, bar.n = int(data["max"]), int(data["value"])
                bar.refresh()
            elif kind == EVENT:
                said = [Message(one["code"], one["values"]).text() for one in data.get("messages", [])]
                bar.set_description_str(said[0] if said else "")
                bar.set_postfix_str(" ".join(said[1:3]))

        return await run_graph(url, graph, node, follow)
