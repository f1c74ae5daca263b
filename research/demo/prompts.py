"""What the demo renders: a fixed list from trivial to busy, or held-out captions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from budgetfusion_nodes.tiny_scenes.captions import describe
from budgetfusion_nodes.tiny_scenes.scenes import sample_scenes

TRIVIAL_TO_BUSY = (
    "a plain blue background",
    "a yellow to red gradient",
    "a large red circle in the centre on a plain white background",
    "a medium striped cyan heart at the top on a plain green background",
    "three small yellow circles on a green to blue gradient",
    "two medium green stars on a blue background with wide white dots",
    "a large striped purple heart on the left and three small yellow circles on the right on a plain black background",
    "five small outlined orange diamonds and two medium cyan rings on wide blue and white checks",
    "four tiny red crosses at the top, five small spotted green triangles on the left and two medium yellow stars "
    "on a wall of fine pink bricks with black joints",
    "six tiny white squares, six small striped cyan hearts and five small outlined red stars on a fine purple and "
    "yellow checked background",
)
"""Captions of the Tiny Scenes grammar, by rising number of edges in the picture."""

HELD_OUT_SEED = 20_260
"""Seed of the held-out scenes of this command; the study draws its own with others."""
PLANNERS = Path(__file__).resolve().parents[2] / "weights" / "planners"
STUDY_SEED = 1
"""What the study's prompt list is drawn with where a provenance file does not say."""


def held_out(count: int, planners: Path = PLANNERS) -> tuple[str, ...]:
    """`count` captions of different scenes that neither a model was trained on nor a shipped planner calibrated on."""
    seen = calibrated_scenes(planners.glob("*.json"))
    drawn = sample_scenes(count + len(seen), HELD_OUT_SEED, held_out=True)
    wording = np.random.default_rng(HELD_OUT_SEED)
    return tuple(describe(scene, wording) for scene in drawn if scene.key not in seen)[:count]


def calibrated_scenes(provenance: Iterable[Path]) -> frozenset[str]:
    """Keys of the held-out scenes that the planners of these files were calibrated on, drawn again from the prompt
    lists that the files name; the study's own list for a file that names none."""
    from research.sweeps.prompts import COUNTS, calibration_scenes

    usual = {"grammar": "tiny_scenes", "seed": STUDY_SEED, "prompts": dict(COUNTS)}
    lists = [found for file in provenance for found in _lists(file) or [usual]]
    different = {json.dumps(found, sort_keys=True): found for found in lists}
    return frozenset().union(*map(calibration_scenes, different.values()))


def _lists(file: Path) -> list[dict[str, Any]]:
    """Sources of the Tiny Scenes prompt lists that a provenance file names, wherever in it they stand."""

    def walk(value: Any) -> Iterator[dict[str, Any]]:
        if isinstance(value, dict):
            if value.get("grammar") == "tiny_scenes" and isinstance(value.get("seed"), int):
                yield value
            else:
                value = list(value.values())
        if isinstance(value, list):
            for item in value:
                yield from walk(item)

    try:
        return list(walk(json.loads(file.read_text(encoding="utf-8"))))
    except (OSError, ValueError):
        return []
