"""A studio whose law is known: prompts, what each needs, seeds, and an artist who repeats, rephrases and drifts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from budgetfusion_nodes.core.curves import DEFAULT_GRID, FloatArray, all_counts, interpolate_log_n
from budgetfusion_nodes.core.risk import RiskTable, calibrate
from budgetfusion_nodes.predictor.memory import Curves, Memory
from budgetfusion_nodes.predictor.memory_fit import fit_memory
from budgetfusion_nodes.predictor.memory_space import OFFSET, Z90
from budgetfusion_nodes.predictor.prediction import Prediction

GRID = DEFAULT_GRID
WIDTH = 24
"""Of a prompt's signature."""
ORDINARY = 6.0345
"""Length that 95 % of calibration prompts stay below: chi with WIDTH degrees of freedom."""
WAVES = 128
"""Random features of the law of needs (Rahimi & Recht 2007)."""
CALIBRATED = 100
"""Prompts that the planner was made from."""


@dataclass(frozen=True)
class Kind:
    """What an artist's next prompt is."""

    name: str
    near: float = 0.0
    """Distance from a prompt rendered before, in units of the spread of prompts; 0 with `again`: the very same."""
    again: bool = False


RECURRING, REPHRASED, NEW = Kind("recurring", again=True), Kind("rephrased", near=0.15), Kind("new")


@dataclass
class World:
    """One studio. What a render needs: log shortfall = the planner's median + spread (sqrt(h) prompt + sqrt(1-h) seed),
    where each part is smooth along the counts; seeds have heavier tails than normal ones."""

    seed: int
    share: float = 0.5
    """h"""
    length: float = 0.6
    """Over which needs change in the space of prompts, in the units of Space."""
    bias: float = 0.0
    """Of the style that the artist draws in now, in spreads: what the planner does not know."""
    centre: FloatArray = field(default_factory=lambda: np.zeros(WIDTH))
    """Of that style."""
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        steps = np.asarray(GRID, float)
        self.median = 1.1 * (steps / steps[0]) ** -1.25
        self.median[-1] = 0.0
        self.spread = np.full(len(GRID), 0.45)
        self.waves = self.rng.normal(0.0, 1.0 / (self.length * np.sqrt(WIDTH)), (WAVES, WIDTH))
        self.phases = self.rng.uniform(0.0, 2.0 * np.pi, WAVES)
        self.loads = self.rng.normal(0.0, np.sqrt(2.0 / WAVES), (2, WAVES))
        self.risk_table = self._calibrated()

    def prompt(self) -> FloatArray:
        """[WIDTH] a new prompt of today's style."""
        return self.centre + self.rng.normal(size=WIDTH)

    def near(self, prompt: FloatArray, distance: float) -> FloatArray:
        """[WIDTH] a rephrasing."""
        return prompt + distance * self.rng.normal(size=WIDTH)

    def levels(self, prompts: FloatArray) -> FloatArray:
        """[N, WIDTH] -> [N, K] measured worst shortfall over its scale of a render each, with a new seed."""
        tilt = np.linspace(-1.0, 1.0, len(GRID)) * 0.4
        needs = np.cos(prompts @ self.waves.T + self.phases) @ self.loads.T  # [N, 2]: whole and slope
        noise = self.rng.standard_t(6, needs.shape) / np.sqrt(1.5)
        both = np.sqrt(self.share) * needs + np.sqrt(1.0 - self.share) * noise
        z = (both[:, :1] + tilt * both[:, 1:]) / np.sqrt(1.0 + tilt**2)
        found = np.exp(np.log(self.median + OFFSET) + self.spread * (z + self.bias)) - OFFSET
        found[:, -1] = 0.0
        return np.maximum(found, 0.0)

    @property
    def high(self) -> FloatArray:
        """[K] the planner's upper curve."""
        found = np.exp(np.log(self.median + OFFSET) + Z90 * self.spread) - OFFSET
        found[-1] = 0.0
        return found

    @staticmethod
    def distance(prompt: FloatArray) -> float:
        """As features.OutOfDistribution scores it."""
        return float(np.linalg.norm(prompt)) / ORDINARY

    def prediction(self, prompt: FloatArray | None = None) -> Prediction:
        """The same curves for every prompt."""
        low = np.maximum(np.exp(np.log(self.median + OFFSET) - Z90 * self.spread) - OFFSET, 0.0)
        low[-1] = 0.0
        curves = np.stack([low, self.median, self.high], axis=-1)[:, None]
        return Prediction(GRID, ("d_sim",), (1.0,), curves, 0.0 if prompt is None else self.distance(prompt))

    def _calibrated(self) -> RiskTable:
        levels = self.levels(np.stack([self.prompt() for _ in range(CALIBRATED)]))
        counts = all_counts(GRID)
        upper = np.tile(interpolate_log_n(GRID, self.high, counts), (CALIBRATED, 1))
        return calibrate(upper, quality_of(levels)[:, None])


def quality_of(levels: FloatArray) -> FloatArray:
    """[N, K] shortfalls -> [N, C] quality at every count."""
    return np.clip(1.0 - interpolate_log_n(GRID, levels, all_counts(GRID)), 0.0, 1.0)


@dataclass
class Studio:
    """What an artist has rendered, and what was measured of it."""

    world: World
    prompts: list[FloatArray] = field(default_factory=list)
    """Each once."""
    which: list[int] = field(default_factory=list)
    """Render -> prompt."""
    levels: list[FloatArray] = field(default_factory=list)

    def draw(self, kind: Kind) -> tuple[FloatArray, int | None]:
        """(a prompt of this kind, its number where it was rendered before)."""
        rng = self.world.rng
        if kind is NEW or not self.which:
            return self.world.prompt(), None
        number = self.which[int(rng.integers(len(self.which)))]
        if kind.again:
            return self.prompts[number], number
        return self.world.near(self.prompts[number], kind.near), None

    def render(self, kind: Kind, renders: int = 1) -> None:
        """More remembered renders."""
        self._render([kind] * renders)

    def work(self, renders: int) -> None:
        """Two in five renders repeat a prompt, one in five rephrases one."""
        drawn = self.world.rng.random(renders)
        self._render([RECURRING if d < 0.4 else REPHRASED if d < 0.6 else NEW for d in drawn])

    def _render(self, of: list[Kind]) -> None:
        shown = []
        for kind in of:
            prompt, number = self.draw(kind)
            if number is None:
                self.prompts.append(prompt)
                number = len(self.prompts) - 1
            self.which.append(number)
            shown.append(prompt)
        self.levels += list(self.world.levels(np.stack(shown)))

    def curves(self) -> Curves:
        renders, world = len(self.which), self.world
        return Curves(
            grid=GRID,
            rows=np.arange(renders),
            prompts=np.array(self.which, np.int64),
            seeds=np.arange(renders, dtype=np.int64),
            level=np.stack(self.levels),
            median=np.tile(world.median, (renders, 1)),
            high=np.tile(world.high, (renders, 1)),
            distance=np.array([world.distance(self.prompts[number]) for number in self.which]),
            keys=np.array([str(index) for index in range(len(self.prompts))], np.bytes_),
        )

    def memory(self) -> Memory:
        """Fitted."""
        return fit_memory(self.curves(), signatures(self.prompts), self.world.risk_table)


def signatures(prompts: list[FloatArray]) -> NDArray[np.float16]:
    return np.stack(prompts).astype(np.float16)


def kinds() -> Iterator[Kind]:
    yield from (RECURRING, REPHRASED, NEW)
