"""How much is rendered: prompts x seeds x step counts, from one word and the model's own number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..core.curves import DEFAULT_GRID, validate_grid
from ..core.errors import InputError
from ..core.messages import message

FEW_STEPS = 12
"""A model that is rendered with at most this many (a distilled one) is measured at every count."""


@dataclass(frozen=True)
class Amount:
    """What one word of `thoroughness` means."""

    prompts: int
    seeds: int
    """Of each prompt."""
    counts: int
    """Step counts of the grid, at most; fewer are rendered where a trajectory settles earlier."""
    tolerance: float
    """Share of the crudest distance within which a count is as good as the target."""
    alone: int
    """The first prompts are all calibration prompts; later ones are split in two (`stopping`)."""
    may_stop: bool
    """Whether the job may end before all prompts are rendered."""


AMOUNTS: dict[str, Amount] = {
    "quick": Amount(prompts=28, seeds=1, counts=8, tolerance=0.08, alone=28, may_stop=False),
    "standard": Amount(prompts=90, seeds=1, counts=12, tolerance=0.05, alone=28, may_stop=True),
    "thorough": Amount(prompts=240, seeds=2, counts=12, tolerance=0.03, alone=28, may_stop=False),
}
"""quick at 20 steps is at most 97 ordinary renders; each is the beginning of the next, which goes on from there.
thorough does not end early: counts for all prompts settle after some 60 prompts, what a prompt tells does not."""
THOROUGHNESS = tuple(AMOUNTS)
SEARCHES: dict[str, tuple[int, int]] = {"standard": (24, 2), "thorough": (32, 2)}
"""Prompts and seeds of the search for a nested schedule: 16 prompts seldom show that a good prefix is good
(docs/calibration.md). quick has none: it would cost more than the calibration itself."""
CRUDEST = DEFAULT_GRID[0]
"""The least count of a model that is no distilled one."""
LEVEL_PROMPTS = 56
"""Of a sampler that does not settle, at least: 28 find no count in one case of five, these in one of thirty."""
EVERY_COUNT = -1.0
"""A tolerance within which no count is as good as the target, so that none is left out."""


def grid_for(target: int, counts: int, prefix_steps: int = 0) -> tuple[int, ...]:
    """Step counts for a model that is rendered with `target` steps: all for a distilled one, else spread in log n; with
    a nested schedule the steps of the tail are.

    Grids of fewer counts are parts of those of more, so that a thorough calibration uses what a quick one measured. The
    first count is as crude with every schedule, because its renders are the unit of quality.
    """
    if target < 2:
        raise InputError("max_steps must be 2 or more: a model of one step has nothing to plan.")
    if prefix_steps:
        if target <= prefix_steps + 1:
            raise InputError(message("schedule_no_room", max=target, prefix=prefix_steps))
        full = _nested(target, prefix_steps)
    elif target <= FEW_STEPS:
        return validate_grid(range(1, target + 1))
    else:
        full = _spread(CRUDEST, target, len(DEFAULT_GRID))
    if counts >= len(full):
        return full
    # the smallest counts cost nearly nothing and say most: thin out from the middle on
    kept = {round(i * (len(full) - 1) / (counts - 1)) for i in range(counts)}
    return tuple(full[i] for i in sorted(kept))


def _nested(target: int, prefix_steps: int) -> tuple[int, ...]:
    """The crudest count, and then the prefix with tails from 1 step on."""
    tails = _spread(1, target - prefix_steps, len(DEFAULT_GRID) - 1)
    return validate_grid([min(CRUDEST, prefix_steps), *(prefix_steps + tail for tail in tails)])


def _spread(least: int, target: int, counts: int) -> tuple[int, ...]:
    """At most `counts` whole numbers from `least` to `target`, about equally far apart in log n; 2 to 50 gives
    DEFAULT_GRID."""
    if (least, target) == (CRUDEST, DEFAULT_GRID[-1]):
        return DEFAULT_GRID
    found = [least]
    for index in range(1, counts):
        left = counts - index
        ratio = (target / found[-1]) ** (1.0 / left)
        found.append(max(found[-1] + 1, round(found[-1] * ratio)))
    found[-1] = target
    return validate_grid(sorted({n for n in found if n <= target}))


@dataclass(frozen=True)
class Spec:
    """What one job is asked for."""

    target: int
    thoroughness: str = "quick"
    keep_text: bool = False
    """Whether the prompts' texts are stored."""
    levels_only: bool = False
    """Of a sampler that does not settle: every count is rendered, and no curves are fitted."""
    prefix_steps: int = 0
    """Of a nested schedule: steps that every count but the crudest begins with."""

    def __post_init__(self) -> None:
        if self.thoroughness not in AMOUNTS:
            raise InputError(f"thoroughness is {self.thoroughness!r}; choose one of {', '.join(THOROUGHNESS)}.")

    @property
    def amount(self) -> Amount:
        amount = AMOUNTS[self.thoroughness]
        if not self.levels_only:
            return amount
        return replace(amount, prompts=max(amount.prompts, LEVEL_PROMPTS), tolerance=EVERY_COUNT, may_stop=False)

    @property
    def grid(self) -> tuple[int, ...]:
        return grid_for(self.target, self.amount.counts, self.prefix_steps)

    def most_evaluations(self, prompts: int) -> int:
        """Steps over all trajectories where none settles early; what samplers take per step comes on top."""
        return prompts * self.amount.seeds * self.computed_steps(self.grid)

    def computed_steps(self, counts: Sequence[int]) -> int:
        """Steps of one trajectory with these counts, those of a shared prefix counted once."""
        sharing = sum(n > self.prefix_steps for n in counts)
        return sum(counts) - self.prefix_steps * max(0, sharing - 1)
