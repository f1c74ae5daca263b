"""Between schedules and against peers: only metrics without a reference, because their targets are different pictures.

Less is better for the classifier's errors and for KID to the renderer's true scenes. L-SNR is compared by how far the
set's level lies from that of the true scenes. "Worse" means that the 95 % interval of the paired difference lies above
0; prompts are drawn anew with everything that belongs to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from budgetfusion_nodes.core.curves import FloatArray
from research.statistics.allocation import IndexArray
from research.statistics.bootstrap import draw_weights, with_levels
from research.statistics.kernel_distance import kernel_gap, pair_kernels, pair_mean

from .measures import Values

METRICS = ("wrong", "l_snr", "kid")
NAMES = {
    "wrong": "scene classifier's errors",
    "l_snr": "departure of the L-SNR level from the true scenes, dB",
    "kid": "KID to the true scenes",
}
UNITS = {"wrong": (100.0, 1, "%"), "l_snr": (1.0, 3, "dB"), "kid": (1000.0, 1, "/ 1000")}
"""Factor, digits and unit that a difference is told in."""


@dataclass(frozen=True)
class MethodSet:
    """One method on the first P prompts."""

    family: str
    label: str
    values: Values
    evaluations: FloatArray
    """[P]"""
    seconds: float | None

    @property
    def name(self) -> str:
        return f"{self.family} {self.label}"

    @property
    def prompts(self) -> int:
        return len(self.values.wrong)


@dataclass(frozen=True)
class Reference:
    """The true scenes of the same prompts, and the draws of prompts that all methods share."""

    truth: Values
    seed: int

    @cached_property
    def within(self) -> FloatArray:
        return pair_kernels(self.truth.features, self.truth.features)

    @cached_property
    def weights(self) -> FloatArray:
        """[1 + draws, P]; the first row is the sample itself."""
        prompts = len(self.truth.wrong)
        return np.concatenate([np.ones((1, prompts)), draw_weights(prompts, self.seed)])

    def first(self, prompts: int) -> Reference:
        return Reference(self.truth.take(np.arange(prompts)), self.seed)

    def statistics(self, values: Values) -> dict[str, FloatArray]:
        """Metric -> [1 + draws]; also the L-SNR level itself."""
        weights = self.weights / self.weights.sum(axis=1, keepdims=True)
        level, true_level = weights @ values.l_snr, weights @ self.truth.l_snr
        gap = kernel_gap(values.features, self.truth.features, self.within)
        return {
            "wrong": weights @ values.wrong,
            "l_snr": np.abs(level - true_level),
            "kid": pair_mean(gap, self.weights),
            "level": level,
        }


def gathered(sets: Mapping[int, Values], steps: IndexArray) -> tuple[Values, FloatArray]:
    """(each prompt's pictures at its own planned count, evaluations [P]); a count that was not rendered is rounded up
    to the next one that was, and costs what that costs. sets: count -> values of P prompts."""
    counts = np.array(sorted(sets))
    taken = counts[np.minimum(np.searchsorted(counts, steps), len(counts) - 1)]
    rows = [(sets[int(n)], p) for p, n in enumerate(taken)]
    values = Values(
        np.array([v.wrong[p] for v, p in rows]),
        np.array([v.l_snr[p] for v, p in rows]),
        np.stack([v.features[p] for v, p in rows]),
    )
    return values, taken.astype(np.float64)


def compare(methods: Sequence[MethodSet], dense: MethodSet, reference: Reference) -> list[dict[str, Any]]:
    """A row for each method: figures with intervals, and the difference to `dense` (stock at the target count) on the
    same prompts. JSON-safe."""
    known: dict[int, tuple[Reference, dict[str, FloatArray]]] = {}
    rows = []
    for method in methods:
        if method.prompts not in known:
            part = reference.first(method.prompts)
            known[method.prompts] = part, part.statistics(dense.values.take(np.arange(method.prompts)))
        part, base = known[method.prompts]
        found = part.statistics(method.values)
        differences = {m: _interval(found[m] - base[m]) for m in METRICS}
        mean = float(method.evaluations.mean())
        rows.append(
            {
                "family": method.family,
                "label": method.label,
                "prompts": method.prompts,
                "evaluations": mean,
                "seconds": method.seconds,
                **{name: _interval(values) for name, values in found.items()},
                "difference": differences,
                "worse": [m for m in METRICS if differences[m]["low"] > 0.0],
            }
        )
    return rows


def worse_than(method: MethodSet, other: MethodSet, reference: Reference) -> dict[str, Any]:
    """Differences method - other, with "worse" as in `compare`."""
    (row,) = compare([method], other, reference)
    evaluations = float(other.evaluations.mean())
    return {"other": other.name, "evaluations": evaluations, **row["difference"], "worse": row["worse"]}


def told(differences: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> str:
    """How large the differences of these metrics are, with their intervals; "none" for no metric."""
    parts = []
    for name in names:
        factor, digits, unit = UNITS[name]
        value, low, high = (f"{factor * differences[name][end]:.{digits}f}" for end in ("value", "low", "high"))
        parts.append(f"{name} {value} ({low} to {high}) {unit}")
    return ", ".join(parts) or "none"


def _interval(values: FloatArray) -> dict[str, float]:
    return with_levels(values[0], values[1:])


def least_passing(rows: Sequence[Mapping[str, Any]], family: str, *, steady: bool = False) -> float | None:
    """Evaluations of the cheapest method of a family that is worse than the dense set by no metric; steady: as are all
    dearer ones of the family."""
    own = sorted((row for row in rows if row["family"] == family), key=lambda row: row["evaluations"])
    failing = [i for i, row in enumerate(own) if row["worse"]]
    passing = own[failing[-1] + 1 :] if steady and failing else [row for row in own if not row["worse"]]
    return passing[0]["evaluations"] if passing else None
