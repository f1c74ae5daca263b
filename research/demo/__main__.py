"""`python -m research.demo --server http://127.0.0.1:8188` on a ComfyUI that runs with the pack."""

from __future__ import annotations

import argparse
import asyncio
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from budgetfusion_nodes.core.messages import Message
from research.shipped_models import MODELS

from . import prompts as lists
from .client import Client, Finished
from .errors import DemoError
from .graph import DemoGraph, Graph, build, load_base
from .report import Report, Row
from .sheet import Pair, draw_sheet, save_sheet

WARM_UP_PROMPT = "a medium white square on a plain black background"
BAR = "{l_bar}{bar}| {n:.1f}/{total} renders [{elapsed}<{remaining}]"
REDRAW_SECONDS = (0.1, 10.0)
"""On a terminal, and in a log file, where each redraw is a line of its own."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    try:
        asyncio.run(_demo(options))
    except DemoError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"Error: {error.strerror or error} ({options.out}). Choose another folder with --out.\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m research.demo", description=__doc__)
    parser.add_argument("--server", required=True, help="address of a running ComfyUI that has the pack")
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="where to write (default: %(default)s)")
    parser.add_argument("--model", choices=sorted(MODELS), default="eps", help="which shipped model (%(default)s)")
    parser.add_argument("--quality", type=float, default=0.90, help="the quality slider (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the first prompt (default: %(default)s)")
    parser.add_argument("--prompt", action="append", default=[], help="your own prompt; may be given several times")
    parser.add_argument("--held-out", type=int, default=0, help="this many held-out captions in place of the list")
    return parser.parse_args(arguments)


def chosen_prompts(own: Sequence[str], held_out: int) -> tuple[str, ...]:
    if own:
        return tuple(own)
    return lists.held_out(held_out) if held_out else lists.TRIVIAL_TO_BUSY


async def _demo(options: argparse.Namespace) -> None:
    images = _prepare_folder(options.out)
    model = MODELS[options.model]
    base = load_base(model=model)
    prompts = chosen_prompts(options.prompt, options.held_out)
    pairs: list[Pair] = []
    async with Client(options.server) as client:
        # A seed of its own: the host would take an equal graph from its cache, and a cached node shows no receipt.
        await _warm_up(client, base, options.seed + len(prompts), options.quality)
        graph = build(base, "", 0, options.quality)
        pause = REDRAW_SECONDS[0 if sys.stdout.isatty() else 1]
        with tqdm(total=2 * len(prompts), bar_format=BAR, desc="Rendering", file=sys.stdout, mininterval=pause) as bar:
            for number, prompt in enumerate(prompts):
                bar.set_description(_short(prompt), refresh=False)
                graph = build(base, prompt, options.seed + number, options.quality)
                show = _Steps(graph, bar, 2 * number)
                finished = await client.run(graph.nodes, show)
                show.done()
                row = to_row(graph, finished, prompt, options.seed + number)
                adaptive, full = [
                    await _fetch(client, finished, node, images / f"{number + 1:02d}_{name}.png")
                    for node, name in ((graph.save_adaptive, "adaptive"), (graph.save_full, "full"))
                ]
                pairs.append(Pair(adaptive, full, row))
        rows = tuple(pair.row for pair in pairs)
        report = Report(await client.host_version(), graph.target_steps, rows, model)
    report.save(options.out / "report.json")
    save_sheet(draw_sheet(pairs, report, options.quality), options.out / "contact_sheet.png")
    print(report.summary(options.quality))
    print(f"Look at {options.out / 'contact_sheet.png'}; the numbers are in {options.out / 'report.json'}.")


def _prepare_folder(out: Path) -> Path:
    """The folder for images, without those of an earlier run; nothing else in it is touched."""
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name in ("adaptive", "full"):
        for old in images.glob(f"[0-9]*_{name}.png"):
            old.unlink()
    return images


async def _warm_up(client: Client, base: Graph, seed: int, quality: float) -> None:
    """Renders one picture that is not counted, so that loading weighs on no prompt's time."""
    print("Warming up: loads the model and renders one picture that is not counted.", flush=True)
    graph = build(base, WARM_UP_PROMPT, seed, quality)
    fallback = _shown(await client.run(graph.nodes), graph.planner, "budget_plan")["fallback"]
    if fallback:
        print(f"No plan could be made: {Message.from_dict(fallback).text()}")


class _Steps:
    """Moves the bar with the sampling steps of a graph's two renders."""

    def __init__(self, graph: DemoGraph, bar: Any, before: int) -> None:
        self._shares = dict.fromkeys(graph.samplers, 0.0)
        self._bar = bar
        self._before = before

    def __call__(self, node: str, share: float) -> None:
        if node in self._shares:
            self._shares[node] = share
            self._move_to(sum(self._shares.values()))

    def done(self) -> None:
        self._move_to(len(self._shares))

    def _move_to(self, renders: float) -> None:
        self._bar.update(self._before + renders - self._bar.n)


def to_row(graph: DemoGraph, finished: Finished, prompt: str, seed: int) -> Row:
    """The numbers of one prompt, from what the genuine nodes showed and when the host ran them."""
    plan = _shown(finished, graph.planner, "budget_plan")
    receipt = _shown(finished, graph.adaptive, "receipt")
    measured = _shown(finished, graph.probe, "probe")["quality"]
    planning = finished.seconds.get(graph.planner, 0.0)
    return Row(
        prompt=prompt,
        seed=seed,
        steps=int(receipt["steps"]),
        prefix_steps=int(receipt["prefix_steps"]),
        steps_stock=int(_shown(finished, graph.stock, "budget_plan")["steps"]),
        quality_predicted=plan["quality_predicted"],
        quality_measured=None if measured is None else float(measured[0]),
        set_by=plan["limited_by"],
        seconds=planning + _seconds(finished, graph.adaptive),
        seconds_target=_seconds(finished, graph.full),
        notes=tuple(Message.from_dict(said).text() for said in (plan["fallback"], *plan.get("warnings", ())) if said),
    )


def _seconds(finished: Finished, node: str) -> float:
    """Of a render; what it took from the other one's draft is added."""
    receipt = _shown(finished, node, "receipt")
    share = receipt["replayed"] / receipt["nfe"] if receipt["nfe"] else 0.0
    return finished.seconds[node] + share * receipt["seconds_per_step"] * receipt["steps"]


def _shown(finished: Finished, node: str, key: str) -> Any:
    try:
        return finished.ui[node][key][0]
    except (KeyError, IndexError) as error:
        raise DemoError(
            f"The node {node} of the demo's graph showed no {key}. Run it again with the pinned ComfyUI (without "
            "COMFYUI_PATH); if it works there, another pack of yours stands in for one of the graph's nodes."
        ) from error


async def _fetch(client: Client, finished: Finished, node: str, path: Path) -> Image.Image:
    """Writes the file as the host saved it (with its workflow inside) and returns the picture."""
    content = await client.image(_shown(finished, node, "images"))
    path.write_bytes(content)
    return Image.open(io.BytesIO(content))


def _short(prompt: str, length: int = 28) -> str:
    return prompt if len(prompt) <= length else prompt[: length - 3] + "..."


if __name__ == "__main__":
    sys.exit(main())
