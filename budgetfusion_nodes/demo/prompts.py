"""What the demo renders: a fixed list from trivial to busy, or held-out captions."""

from __future__ import annotations

import numpy as np

from ..tiny_scenes.captions import describe
from ..tiny_scenes.scenes import sample_scenes

TRIVIAL_TO_BUSY = (
    "a plain blue background",
    "a yellow to red gradient",
    "a large red circle in the centre on a plain white background",
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


def held_out(count: int) -> tuple[str, ...]:
    """`count` captions of different scenes from the side of the split that no model was trained on."""
    wording = np.random.default_rng(HELD_OUT_SEED)
    return tuple(describe(scene, wording) for scene in sample_scenes(count, HELD_OUT_SEED, held_out=True))
