"""Rendered training data: a folder of memory-mapped pictures with their captions, made once from a seed."""

from __future__ import annotations

import json
import logging
import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from budgetfusion_nodes.tiny_scenes import captions
from budgetfusion_nodes.tiny_scenes.scenes import (
    COLOURS,
    FILLS,
    PATTERN_SCALES,
    PATTERNS,
    SHAPES,
    SIZES,
    Scene,
    is_held_out,
    sample_scene,
)
from budgetfusion_nodes.tiny_scenes.tokenizer import WordTokenizer

from .renderer import SIZE, VERSION, render

log = logging.getLogger(__name__)

PHRASINGS = 4


@dataclass(frozen=True)
class RenderedScenes:
    """`images` [N, H, W, 3], `tokens` [N, PHRASINGS, 48] and `attributes` [N, A] of 0 and 1, all uint8."""

    images: NDArray[np.uint8]
    tokens: NDArray[np.uint8]
    attributes: NDArray[np.uint8]


def attribute_names() -> list[str]:
    """What a caption says, as yes-or-no questions: targets for the text encoder's head start."""
    names = [f"pattern {p}" for p in PATTERNS] + [f"base {c}" for c in COLOURS] + [f"second {c}" for c in COLOURS]
    names += [f"scale {s}" for s in PATTERN_SCALES]
    for values in (COLOURS, FILLS, SIZES, range(1, 7)):
        names += [f"{value} {shape}" for value in values for shape in SHAPES]
    return names


def attributes_of(scene: Scene) -> NDArray[np.uint8]:
    """[A] zeros and ones in the order of `attribute_names`."""
    background = scene.background
    true = {
        f"pattern {background.pattern}",
        f"base {background.colour}",
        f"second {background.second}",
        f"scale {background.scale}",
    }
    for group in scene.groups:
        true |= {f"{value} {group.shape}" for value in (group.colour, group.fill, group.size, group.count)}
    return np.asarray([name in true for name in attribute_names()], np.uint8)


def _make_chunk(task: tuple[int, int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    seed, count, size = task
    rng, tokenizer = np.random.default_rng(seed), WordTokenizer()
    images = np.empty((count, size, size, 3), np.uint8)
    tokens = np.empty((count, PHRASINGS, captions.MAX_TOKENS), np.uint8)
    attributes = []
    for index in range(count):
        scene = sample_scene(rng)
        while is_held_out(scene):
            scene = sample_scene(rng)
        images[index] = render(scene, rng, size)
        tokens[index] = [tokenizer.padded(captions.describe(scene, rng)) for _ in range(PHRASINGS)]
        attributes.append(attributes_of(scene))
    return images, tokens, np.stack(attributes)


def rendered_scenes(
    folder: Path, count: int, seed: int, workers: int = 2, chunk: int = 1000, size: int = SIZE
) -> RenderedScenes:
    """The data set of `count` scenes for `seed`, rendered into `folder` unless it is there. No held-out scene."""
    description = {
        "count": count,
        "seed": seed,
        "chunk": chunk,
        "phrasings": PHRASINGS,
        "attributes": len(attribute_names()),
        "renderer": VERSION,
        "size": size,
    }
    stamp = folder / "scenes.json"
    if not stamp.exists() or json.loads(stamp.read_text()) != description:
        folder.mkdir(parents=True, exist_ok=True)
        log.info("rendering %d scenes", count)
        tasks = [
            (seed * 1_000_003 + index, min(chunk, count - index * chunk), size)
            for index in range((count + chunk - 1) // chunk)
        ]
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            parts = list(zip(*pool.imap(_make_chunk, tasks), strict=True))
        for name, arrays in zip(("images", "tokens", "attributes"), parts, strict=True):
            np.save(folder / f"{name}.npy", np.concatenate(arrays), allow_pickle=False)
        stamp.write_text(json.dumps(description))
    return RenderedScenes(
        *(
            np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("images", "tokens", "attributes")
        )
    )
