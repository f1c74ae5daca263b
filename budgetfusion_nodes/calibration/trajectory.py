"""One prompt and seed over the grid of step counts: what is rendered next, what is left out, what happens on failure.

A trajectory is measured from the ends inwards: first the target T, whose picture is the reference, then the smallest
counts, which cost least, upwards. Once two in a row are within `tolerance` of the target (in shares of the distance at
the crudest counts), the open counts between them and T are decided: their distance lies between that and 0, because
the curve is taken to be monotone from there on. Two and not one, because a picture may come close once by chance: on
Tiny Scenes one in a row plans 1.2 steps too few at quality .9, two in a row as many as the full grid.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..core.curves import METRICS, FloatArray
from .records import Encoded, Measurement

log = logging.getLogger(__name__)

NEAR_IN_A_ROW = 2
FLOOR = 1e-9
"""Distance at the crudest counts below which a metric tells nothing about this trajectory."""


class RenderError(Exception):
    """A render failed; the text is the reason. Tried once more, then the trajectory is set aside."""


class Reference(Protocol):
    """The target picture of one prompt and seed, with what is computed of it once."""

    @property
    def found(self) -> Measurement: ...

    def to_bytes(self) -> bytes:
        """Its latent, from which `Renderer.reference` makes it again without rendering."""
        ...


class Renderer(Protocol):
    """Renders and measures one count of one trajectory: the host's, or a test's."""

    def encode(self, text: str) -> Encoded: ...

    def reference(self, text: str, seed: int, steps: int, kept: bytes | None, careful: bool) -> Reference:
        """The target picture, from its kept latent where there is one. RenderError where it failed. careful: take as
        little memory as possible."""
        ...

    def measure(self, reference: Any, text: str, seed: int, steps: int, careful: bool) -> Measurement:
        """Renders `steps` steps and measures how far they are from the reference. RenderError where it failed."""
        ...


@dataclass(frozen=True)
class Work:
    """One trajectory to be measured."""

    trajectory_id: int
    prompt_id: int
    text: str
    seed: int
    grid: tuple[int, ...]
    """The last is the target."""
    tolerance: float
    known: Mapping[int, Measurement] = field(default_factory=dict)
    latent: bytes | None = None


@dataclass(frozen=True)
class Measured:
    """A count is done. latent: of the target, with the target alone."""

    found: Measurement
    latent: bytes | None = None


@dataclass(frozen=True)
class Failed:
    """The trajectory is left out."""

    steps: int
    reason: str


@dataclass(frozen=True)
class Finished:
    """Every count is measured or decided."""


Event = Measured | Failed | Finished


def run_trajectory(renderer: Renderer, work: Work) -> Iterator[Event]:
    """Measures what is open, one event a count, each before the next render starts."""
    known = dict(work.known)
    target = work.grid[-1]
    reference: Any = None
    while (steps := next_count(work.grid, known, work.tolerance)) is not None:
        try:
            if reference is None:
                reference = twice(renderer.reference, work.text, work.seed, target, work.latent)
                if target not in known:
                    known[target] = reference.found
                    yield Measured(reference.found, reference.to_bytes())
                    continue
            found = twice(renderer.measure, reference, work.text, work.seed, steps)
        except RenderError as error:
            yield Failed(target if reference is None else steps, str(error))
            return
        known[steps] = found
        yield Measured(found)
    yield Finished()


def twice(call: Any, *arguments: Any) -> Any:
    try:
        return call(*arguments, False)
    except RenderError as error:
        log.warning("BudgetFusion tries a failed calibration render once more: %s", error)
        return call(*arguments, True)


def next_count(grid: Sequence[int], known: Mapping[int, Measurement], tolerance: float) -> int | None:
    """The count to be rendered next; None where all are measured or decided. Depends on this trajectory alone, so a
    run that was cut off goes on as if it had not been."""
    if grid[-1] not in known:
        return grid[-1]
    near = 0
    for index, steps in enumerate(grid[:-1]):
        if steps not in known:
            return steps
        near = near + 1 if _share(grid, known, index) <= tolerance else 0
        if near == NEAR_IN_A_ROW:
            return None
    return None


def _share(grid: Sequence[int], known: Mapping[int, Measurement], index: int) -> float:
    """The worst metric's distance at grid[index], over the larger of those at the two smallest counts."""
    crude = [known[n].distances for n in grid[:2] if n in known]
    here = known[grid[index]].distances
    shares = [here[m] / largest for m in METRICS if m in here and (largest := max(c[m] for c in crude)) > FLOOR]
    return max(shares, default=0.0)


def filled(
    grid: Sequence[int], known: Mapping[int, Measurement], metrics: Sequence[str]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """([K, M] distances, [K] dB) over the whole grid. A count that was left out lies on the line, in log n, between
    its measured neighbours, so inside the bounds that decided it."""
    measured = sorted(known)
    at, wanted = np.log(np.array(measured, float)), np.log(np.array(grid, float))

    def line(values: Sequence[float]) -> FloatArray:
        return np.interp(wanted, at, np.array(values, float))

    distances = np.stack([line([known[n].distances[metric] for n in measured]) for metric in metrics], axis=-1)
    return distances.astype(np.float32), line([known[n].l_snr for n in measured]).astype(np.float32)
