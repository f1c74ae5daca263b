"""The long amount of `two_servers`: genuine ComfyUI servers that calibrate, sweep and render on one store."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from budgetfusion_nodes.command_line.client import run_graph
from budgetfusion_nodes.command_line.comfyui import ComfyUI, ServerError, running_server
from budgetfusion_nodes.command_line.graphs import NODE, Graph, around_checkpoint
from research.options import ROOT

from .part import Finding, NotRunError, Work
from .sharing import FORGOTTEN, LASTING, SHORT_LIVED, Shell, findings, watched
from .watching import Watch

log = logging.getLogger(__name__)

CHECKPOINT, SAMPLER, SCHEDULER, STEPS = "tiny_scenes.safetensors", "euler", "normal", 4
COUNTS = ("two", "three", "four", "five")
COLOURS = ("red", "green", "white", "yellow")
CAPTIONS = [f"{n} small {c} circles on a blue background" for n in COUNTS for c in COLOURS]
PROMPTS = 10
PAUSE = 10.0
"""Seconds between two commands of the shell: each starts a Python of its own."""


@dataclass
class _Server:
    """Queues graphs in one server, one after the other."""

    url: str
    rng: random.Random
    done: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    said: int = 0
    """Calibrations that ended with the sentence that their setting was deleted."""
    longest: float = 0.0
    """Seconds of a graph."""
    planned: float = 0.0
    """The longest planning, seconds."""

    def work(self, until: float) -> None:
        """Until the time is over; the last graph is let end."""
        while time.monotonic() < until:
            kind, graph, node = self._next()
            started = time.monotonic()
            try:
                shown = asyncio.run(run_graph(self.url, graph, node, lambda *_: None))
                self._see(kind, shown)
            except ServerError as error:
                self._failed(kind, str(error))
            self.longest = max(self.longest, time.monotonic() - started)

    def _see(self, kind: str, shown: dict[str, Any]) -> None:
        self.done[kind] = self.done.get(kind, 0) + 1
        if kind == "render":
            self.planned = max(self.planned, float(shown["budget_plan"][0].get("seconds") or 0.0))

    def _failed(self, kind: str, reason: str) -> None:
        if kind == "calibrate" and FORGOTTEN in reason:
            self.said += 1
        else:
            self.faults.append(f"{kind}: {reason}")
            log.warning("two_servers: %s: %s", kind, reason)

    def _next(self) -> tuple[str, Graph, str]:
        kind = self.rng.choice(("calibrate", "sweep", "render", "render"))
        graph = around_checkpoint(CHECKPOINT, "", SAMPLER, SCHEDULER, self._cfg(), STEPS, 64, 64)
        if kind == "calibrate":
            own = self.rng.sample(CAPTIONS, PROMPTS)
            graph[NODE]["inputs"] |= {
                "prompts": "text, one a line",
                "prompt_text": "\n".join(sorted(own)),
                "name": f"shared {graph[NODE]['inputs']['cfg']}",
                "schedule": "stock",
            }
            return kind, graph, NODE
        return kind, *self._of(kind, graph)

    def _cfg(self) -> float:
        return self.rng.choice((SHORT_LIVED, *LASTING))

    def _of(self, kind: str, graph: Graph) -> tuple[Graph, str]:
        """A sweep that is measured and remembered, or a planned render."""
        calibrate = graph.pop(NODE)["inputs"]
        kept = {name: calibrate[name] for name in ("model", "negative", "sampler_name", "scheduler", "cfg")}
        kept |= {"positive": ["3", 0], "latent_image": ["4", 0], "seed": self.rng.randrange(2**32)}
        graph["3"] = _node("CLIPTextEncode", text=self.rng.choice(CAPTIONS), clip=["1", 1])
        graph["4"] = _node("EmptyLatentImage", width=64, height=64, batch_size=1)
        if kind == "sweep":
            graph["5"] = _node("BudgetFusion_StepSweep", **kept, vae=["1", 2], step_counts="2 3 4")
            counts = ["5", 1]
            graph["6"] = _node("BudgetFusion_PerceptualMetricProbe", images=["5", 0], step_counts=counts)
            return graph, "6"
        planning = {"quality": 0.9, "max_steps": STEPS, "min_steps": 2, "risk": 0.1, "denoise": 1.0, "planner": "auto"}
        graph["5"] = _node("BudgetFusion_AdaptiveKSampler", **kept, **planning)
        graph["6"] = _node("VAEDecode", samples=["5", 0], vae=["1", 2])
        graph["7"] = _node("PreviewImage", images=["6", 0])
        return graph, "5"


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def _bases(folder: Path) -> list[Path]:
    """Two base directories that share the folder of the store and that of the planners."""
    bases = [folder / name for name in ("one", "two")]
    for base in bases:
        for name in ("custom_nodes", "models", "user", "page"):
            (base / name).mkdir(parents=True)
        (base / "custom_nodes" / "budgetfusion").symlink_to(ROOT, target_is_directory=True)
    for shared in (Path("user", "budgetfusion"), Path("models", "budgetfusion")):
        (bases[0] / shared).mkdir()
        (bases[1] / shared).symlink_to(bases[0] / shared, target_is_directory=True)
    return bases


def _typed(host: Path, base: Path, *arguments: str) -> int:
    """A command in a process of its own, as in a shell."""
    environment = {**os.environ, "COMFYUI_PATH": str(host), "PWD": str(ROOT)}
    command = [sys.executable, "-m", "budgetfusion_nodes", *arguments, "--base-directory", str(base)]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        log.warning("two_servers: %s said: %s", " ".join(arguments[:2]), done.stderr.strip())
    return done.returncode


def run_servers(work: Work, seconds: float) -> list[Finding]:
    """NotRunError without a host."""
    if work.host is None:
        raise NotRunError("Two servers need a ComfyUI, and there is none.")
    host = work.host
    bases = _bases(work.folder)
    places = [ComfyUI(host, base) for base in bases]
    options = ("--cpu", "--disable-api-nodes", "--database-url=sqlite:///:memory:")
    with ExitStack() as stack:
        urls = [
            stack.enter_context(running_server(place, (*options, f"--front-end-root={place.base / 'page'}")))
            for place in places
        ]
        servers = [_Server(url, random.Random(work.seed + n)) for n, url in enumerate(urls)]
        watch = Watch(places[0].store)
        typed = Shell(watch, lambda *arguments: _typed(host, bases[0], *arguments), work.folder, work.seed)
        until = time.monotonic() + seconds
        threads = [threading.Thread(target=server.work, args=(until,)) for server in servers]
        for thread in threads:
            thread.start()
        watched(watch, typed, seconds, PAUSE)
        for thread in threads:
            thread.join()
        watch.look()
    figures: dict[str, float | int | str] = {
        kind: sum(server.done.get(kind, 0) for server in servers) for kind in ("calibrate", "sweep", "render")
    }
    figures |= {
        "said_deleted": sum(server.said for server in servers),
        "longest_graph_s": round(max(server.longest for server in servers), 1),
        "longest_plan_ms": round(1000 * max(server.planned for server in servers)),
    }
    faults = [fault for server in servers for fault in server.faults]
    return findings(watch, typed, f"Two servers and a shell for {seconds / 60:.0f} min", faults, **figures)
