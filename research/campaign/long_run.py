"""Part `long_run`: thousands of renders through Adaptive KSampler in one genuine ComfyUI, each with other inputs.

After a warm-up, memory, open files and planning time are fitted with a line (Theil 1950 and Sen 1968: the median of all
slopes, which no single render moves) with its 95 % interval, over means of blocks: neighbouring renders are no
independent draws.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from research.in_process_host import HostSession

from .in_host import node, pack_module, run_in_host
from .memory_use import open_files, resident
from .part import Finding, Part, Work

WARM_UP = 0.3
"""Share of the renders: the host's cache of results and the prefix cache fill."""
EVERY = 10
"""Renders from one look at memory to the next."""
BLOCKS = 14
SMALL_MEGABYTES = 2.0
"""A growth per 1,000 renders below which a studio's month does not fill a machine."""
SMALL_SHARE = 0.1
"""Of the median planning time, per 1,000 renders."""
SHIPPED = (
    ("tiny_scenes.safetensors", "dpmpp_2m", "karras"),
    ("tiny_scenes.safetensors", "euler", "normal"),
    ("tiny_scenes_flow.safetensors", "euler", "simple"),
)
COLOURS = ("red", "green", "blue", "yellow", "white", "black", "pink", "brown")
SHAPES = ("circles", "squares", "stars", "crosses", "triangles", "rings")


@dataclass(frozen=True)
class Seen:
    """After one render."""

    plan_milliseconds: float
    planned: bool
    megabytes: float
    """NaN between two looks."""
    files: int
    cached: int
    """Bytes of the prefix cache."""


def run(work: Work) -> Sequence[Finding]:
    """Renders, and fits lines."""
    return run_in_host(__name__, work)


def inside(session: HostSession, work: Work) -> Sequence[Finding]:
    """The same, in the process of the host."""
    count = work.count(quick=12, long=2000)
    models = [*SHIPPED, *_random_models(session)]
    rng = random.Random(work.seed)
    seen: list[Seen] = []
    while len(seen) < count and not work.is_over():
        seen.append(_rendered(session, _graph(rng, models), len(seen)))
    return findings(seen, pack_module("host.prefix_cache").DRAFTS.limit)


def _random_models(session: HostSession) -> list[tuple[str, str, str]]:
    """Checkpoints that no planner knows: they render all steps."""
    from research.tiny_scenes_training.training_model import make_random_checkpoint

    names = ("campaign_a.safetensors", "campaign_b.safetensors")
    for seed, name in enumerate(names):
        make_random_checkpoint(session.base_dir / "models" / "checkpoints" / name, seed=seed)
    return [(name, "dpmpp_2m", "karras") for name in names]


def _graph(rng: random.Random, models: Sequence[tuple[str, str, str]]) -> dict[str, Any]:
    model, sampler_name, scheduler = rng.choice(models)
    text = f"{rng.randint(1, 9)} {rng.choice(COLOURS)} {rng.choice(SHAPES)} on a {rng.choice(COLOURS)} background"
    width, height = (rng.choice((32, 32, 48, 64)) for _ in range(2))
    sampled = {"cfg": rng.choice((1.0, 3.0)), "sampler_name": sampler_name, "scheduler": scheduler}
    sliders = {
        "quality": round(rng.uniform(0.5, 0.95), 2),
        "max_steps": rng.randint(3, 8),
        "denoise": rng.choice((1.0, 1.0, 1.0, 0.6)),
        "schedule": rng.choice(("auto", "auto", "stock", "nested")),
        "memory": rng.random() < 0.5,
    }
    linked = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name=model),
        "2": node("CLIPTextEncode", text=text, clip=["1", 1]),
        "3": node("CLIPTextEncode", text="", clip=["1", 1]),
        "4": node("EmptyLatentImage", width=width, height=height, batch_size=1),
        "5": node("BudgetFusion_AdaptiveKSampler", seed=rng.randrange(2**64), **linked, **sampled, **sliders),
        "6": node("PreviewAny", source=["5", 1]),
    }


def _rendered(session: HostSession, graph: dict[str, Any], number: int) -> Seen:
    run = session.execute(graph)
    (plan,) = run.ui["5"]["budget_plan"]
    if not 1 <= plan["steps"] <= graph["5"]["inputs"]["max_steps"]:
        raise RuntimeError(f"{plan['steps']} steps of at most {graph['5']['inputs']['max_steps']}")
    fallback = plan["fallback"]
    if fallback is not None and fallback["code"] == "unforeseen":
        raise RuntimeError(str(fallback))
    look = number % EVERY == 0
    return Seen(
        plan["seconds"] * 1000.0,
        fallback is None,
        resident() if look else float("nan"),
        open_files(),
        pack_module("host.prefix_cache").DRAFTS.size,
    )


def findings(seen: Sequence[Seen], cap: int) -> Sequence[Finding]:
    """What the renders say. cap: of the prefix cache, in bytes."""
    settled = seen[int(len(seen) * WARM_UP) :]
    files = np.array([one.files for one in settled], float)
    planned = [one.plan_milliseconds for one in settled if one.planned]
    largest = max(one.cached for one in seen)
    grown = files[-len(files) // 3 :].max() - files[: len(files) // 3].max()
    return [
        _line("memory", "MB", len(seen), [one.megabytes for one in settled], SMALL_MEGABYTES),
        _line("planning time", "ms", len(seen), planned, SMALL_SHARE * float(np.median(planned))),
        Finding(
            "flat",
            f"{len(seen)} renders: {files.min():.0f} to {files.max():.0f} open files",
            bool(grown <= 0),
            {"renders": len(seen), "least": float(files.min()), "most": float(files.max())},
        ),
        Finding(
            "flat",
            f"{len(seen)} renders: the prefix cache held at most {largest / 2**20:.1f} of {cap / 2**20:.0f} MB",
            largest <= cap,
            {"largest_mb": largest / 2**20, "cap_mb": cap / 2**20},
        ),
    ]


def _line(what: str, unit: str, count: int, values: Sequence[float], small: float) -> Finding:
    """Flat where the interval of the slope holds 0, or ends below `small` a thousand renders."""
    at = np.flatnonzero(np.isfinite(values))
    slope, low, high = slope_of(at, np.asarray(values)[at])
    level = float(np.nanmedian(values))
    told = f"{level:.3g} {unit}, {slope:+.2g} ({low:+.2g} to {high:+.2g}) {unit} per 1,000 renders"
    figures = {"renders": count, "level": level, "slope": slope, "low": low, "high": high, "small": small}
    return Finding("flat", f"{count} renders: {what} {told}", bool(low <= 0.0 or high < small), figures)


def slope_of(at: NDArray[Any], values: NDArray[Any]) -> tuple[float, float, float]:
    """(slope, low, high) per 1,000 of `at`, over medians of BLOCKS blocks."""
    from scipy.stats import theilslopes

    parts = np.array_split(np.arange(len(at)), min(BLOCKS, len(at)))
    x = [float(np.mean(at[part])) for part in parts]
    y = [float(np.median(values[part])) for part in parts]
    slope, _, low, high = (1000.0 * float(value) for value in np.asarray(theilslopes(y, x, 0.95)))
    return slope, low, high


PART = Part("long_run", "Thousands of renders", run)
