"""When more prompts would not change the answer, without spoiling the guarantee.

Whoever looks at calibration prompts and stops when their count settles has chosen them: they can guarantee nothing
then. So the prompts of a long calibration are split in two: *guide* prompts decide when it is enough (and train the
predictor), *calibration* prompts alone set the thresholds and are never looked at for stopping. Given where it stopped,
they are still exchangeable with a new prompt, and split conformal holds as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..core.curves import tail_min

CHECKED = (0.80, 0.90, 0.95)
"""Qualities whose counts must have settled."""
RISK = 0.1
GUIDE_STEP = 5
"""Guide prompts of another ten prompts."""
LEAST_GUIDES = 15


def roles(count: int, alone: int) -> tuple[str, ...]:
    """The split of each prompt in the order of rendering: the first `alone` are calibration prompts, so that a planner
    exists early; then guide ("train") and calibration in turn."""
    return tuple("calibration" if i < alone or (i - alone) % 2 else "train" for i in range(count))


def guide_counts(counts: Sequence[int], true_quality: ArrayLike) -> tuple[int, ...]:
    """The count that 1 - RISK of the guide prompts' seeds are satisfied with, for each of CHECKED.

    true_quality: [N, S, C] at each of `counts`, NaN for absent seeds.
    """
    tail = tail_min(true_quality)
    found: list[int] = []
    for q in CHECKED:
        enough = tail[~np.isnan(tail[..., -1])] >= q  # [R, C]
        needs = np.sort(np.asarray(counts)[enough.argmax(axis=-1)])
        found.append(int(needs[min(len(needs) - 1, int(np.ceil((1.0 - RISK) * len(needs))) - 1)]))
    return tuple(found)


def is_settled(before: Sequence[int], now: Sequence[int]) -> bool:
    """Whether another ten prompts moved no count by more than one step."""
    return all(abs(a - b) <= 1 for a, b in zip(before, now, strict=True))
