"""The guarantee after 10, 100, 1,000 and 10,000 remembered curves, and when the artist changes style."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from budgetfusion_nodes.core.curves import FloatArray, all_counts
from budgetfusion_nodes.predictor.memory import Memory
from budgetfusion_nodes.predictor.planner import consider
from research.statistics.allocation import needed

from .judging import Tally
from .world import GRID, NEW, Kind, Studio, World, kinds, quality_of

COUNTS = np.array(all_counts(GRID))
BIAS = 0.6
"""Of another style, in spreads of what renders need."""
SHIFT = 1.0
"""Of its prompts, in each number of a signature, in units of their spread; 0: the words do not tell."""
OWN_SEEDS = 20
"""Renders of a prompt that tell what nine in ten of its renders need."""


def simulate(
    size: int, worlds: int, tests: int, q: float, risk: float, share: float, tell: Callable[[str], None]
) -> dict[str, Tally]:
    """Kind of prompt -> tally over `worlds` studios that remember `size` renders."""
    found = {kind.name: Tally() for kind in kinds()}
    for index in range(worlds):
        studio = Studio(World(1000 * size + index, share))
        studio.work(size)
        memory = studio.memory()
        for kind in kinds():
            _judge(studio, memory, kind, tests, q, risk, found[kind.name], index)
        tell(f"{size} remembered, world {index + 1} of {worlds}: {memory.kernel}")
    return found


def simulate_drift(
    size: int,
    after: int,
    worlds: int,
    tests: int,
    q: float,
    risk: float,
    share: float,
    tell: Callable[[str], None],
    bias: float = BIAS,
    shift: float = SHIFT,
) -> dict[str, Tally]:
    """`size` renders in one style and `after` more in another, which needs more than the planner knows."""
    found = {kind.name: Tally() for kind in kinds()}
    for index in range(worlds):
        studio = Studio(World(7_000_000 + 1000 * size + index, share))
        studio.work(size)
        studio.world.centre = np.full(len(studio.world.centre), shift)
        studio.world.bias = bias
        begun = replace(studio, prompts=[], which=[], levels=[])
        begun.work(after)
        studio.which += [n + len(studio.prompts) for n in begun.which]
        studio.prompts += begun.prompts
        studio.levels += begun.levels
        memory = studio.memory()
        for kind in kinds():
            _judge(begun, memory, kind, tests, q, risk, found[kind.name], index)
        tell(f"drift, {after} renders after it, world {index + 1} of {worlds}: new thresholds {memory.new is not None}")
    return found


def _judge(
    studio: Studio, memory: Memory, kind: Kind, tests: int, q: float, risk: float, tally: Tally, group: int
) -> None:
    world = studio.world
    prompts = np.stack([studio.draw(kind)[0] for _ in range(tests)])
    needs = needed(COUNTS, quality_of(world.levels(prompts)), q)
    own = _needs_of_prompts(world, prompts, q, risk) if kind is not NEW else np.full(tests, np.nan)
    for prompt, need, of_prompt in zip(prompts, needs.tolist(), own.tolist(), strict=True):
        recall = partial(memory.recall, signature=prompt.astype(np.float16), risk=risk)
        found = consider(world.prediction(prompt), world.risk_table, risk, recall)
        tally.add(*found.steps(q, 1, GRID[-1]), int(need), group, of_prompt)


def _needs_of_prompts(world: World, prompts: FloatArray, q: float, risk: float) -> FloatArray:
    """[N] what all but `risk` of each prompt's renders need."""
    renders = quality_of(world.levels(np.repeat(prompts, OWN_SEEDS, axis=0)))
    return np.quantile(needed(COUNTS, renders, q).reshape(len(prompts), OWN_SEEDS), 1.0 - risk, axis=1)
