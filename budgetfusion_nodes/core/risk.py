"""Conformal risk control (Angelopoulos et al. 2022, arXiv 2208.02814, Algorithm 1): what a slider guarantees.

A prompt's loss at threshold theta is the share of its seeds whose true quality at the planned count is below q. The
loss grows with theta, so the largest theta with (sum of losses + 1) / (N + 1) <= alpha bounds the expected loss on a
new prompt by alpha. With kappa = (1 - q) / theta this is a multiplicative inflation of the predicted upper shortfall.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .curves import FloatArray, tail_max, tail_min

ALPHAS: tuple[float, ...] = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
QUALITIES: tuple[float, ...] = tuple(round(0.50 + 0.01 * step, 2) for step in range(50))
KAPPA_MIN = 0.25  # never trust a prediction to be more than 4 times too high, whatever a small calibration set says
KNOT_GAP = 1e-6


@dataclass(frozen=True)
class RiskTable:
    """theta for each risk alpha and quality q, from N calibration prompts."""

    alphas: tuple[float, ...]
    qualities: tuple[float, ...]
    theta: tuple[tuple[float, ...], ...]
    """[A][Q], >= 0, non-increasing in q and non-decreasing in alpha. 0 means: only the full-step image will do."""
    prompts: int

    def row(self, alpha: float) -> tuple[float, ...]:
        """theta over q for the largest tabulated risk that does not exceed `alpha`: between two, the safer one."""
        below = [index for index, known in enumerate(self.alphas) if known <= alpha + 1e-9]
        return self.theta[below[-1] if below else 0]

    def thresholds(self, alpha: float) -> tuple[tuple[float, float], ...]:
        """Knots [q, theta] for linear interpolation. Between two tabulated q the stricter theta holds, because only
        tabulated q were calibrated: each step down sits within KNOT_GAP above its q."""
        row = self.row(alpha)
        knots = [(self.qualities[0], row[0])]
        for index in range(1, len(row)):
            knots.append((self.qualities[index - 1] + KNOT_GAP, row[index]))
            knots.append((self.qualities[index], row[index]))
        return tuple(knots)

    def enough_prompts(self, alpha: float) -> bool:
        """Whether N prompts are enough to guarantee alpha at all: alpha >= 1 / (N + 1)."""
        return alpha * (self.prompts + 1) >= 1.0 - 1e-9


def critical_thetas(upper: ArrayLike, true_quality: ArrayLike, q: float) -> FloatArray:
    """The theta from which on the planned count violates q.

    upper: [N, C] predicted u at every count, or [N, S, C] where each seed has its own; true_quality: [N, S, C] measured
    Q, NaN rows for absent seeds. Returns [N, S]: inf where even the smallest count has Q >= q from there on, NaN for
    absent seeds. A plan violates q exactly if it stops before t*, that is if u(n') <= theta for all n' >= t* - 1.
    """
    return _critical(tail_max(upper), tail_min(true_quality), q)


def _critical(peaks: FloatArray, tail: FloatArray, q: float) -> FloatArray:
    need = (tail >= q).argmax(axis=-1)  # index of t*; Q(T) = 1, so there is one
    peaks = np.broadcast_to(peaks if peaks.ndim == tail.ndim else peaks[:, None], tail.shape)  # [N, S, C]
    before = np.take_along_axis(peaks, np.maximum(need - 1, 0)[..., None], axis=-1)[..., 0]  # [N, S]
    critical = np.where(need == 0, np.inf, before)
    return np.where(np.isnan(tail[..., -1]), np.nan, critical)


def seed_weights(present: NDArray[np.bool_]) -> FloatArray:
    """[N, S]: 1 / (number of seeds of the prompt) where present, so seeds of one prompt stay together."""
    return present / np.maximum(present.sum(axis=1, keepdims=True), 1)


def controlled_theta(critical: ArrayLike, alpha: float) -> float:
    """The largest theta whose corrected mean loss is <= alpha; 0 if none, inf if any will do. critical: [N, S]."""
    return _controlled(critical, (alpha,))[0]


def _controlled(critical: ArrayLike, alphas: Sequence[float]) -> list[float]:
    """`controlled_theta` for each alpha."""
    values = np.asarray(critical, dtype=np.float64)
    present = ~np.isnan(values)
    order = np.argsort(values[present])
    loss, ranked = np.cumsum(seed_weights(present)[present][order]), values[present][order]
    found = []
    for alpha in alphas:
        budget = alpha * (len(values) + 1) - 1.0 + 1e-9
        at = int(np.searchsorted(loss, budget, side="right"))  # the first prompt too many
        if budget < 0:
            found.append(0.0)
        elif at == len(loss):
            found.append(np.inf)
        else:  # the loss jumps at the breakpoint: stay below it
            found.append(float(max(np.nextafter(ranked[at], -np.inf), 0.0)))
    return found


def capped_theta(critical: ArrayLike, q: float, alpha: float) -> float:
    """`controlled_theta`, at most (1 - q) / KAPPA_MIN. critical: [N, S]."""
    return min(controlled_theta(critical, alpha), (1.0 - q) / KAPPA_MIN)


def calibrate(
    upper: ArrayLike,
    true_quality: ArrayLike,
    alphas: Sequence[float] = ALPHAS,
    qualities: Sequence[float] = QUALITIES,
) -> RiskTable:
    """upper: [N, C] or [N, S, C]; true_quality: [N, S, C]; a column for each integer count. Prompts must be new to the
    predictor."""
    table = np.zeros((len(alphas), len(qualities)))
    peaks, tail = tail_max(upper), tail_min(true_quality)
    for column, q in enumerate(qualities):
        table[:, column] = np.minimum(_controlled(_critical(peaks, tail, q), alphas), (1.0 - q) / KAPPA_MIN)
    table = np.minimum.accumulate(table, axis=1)  # already so up to ties; the file format demands it
    table = np.maximum.accumulate(table, axis=0)
    rows = tuple(tuple(row) for row in table.tolist())
    return RiskTable(tuple(alphas), tuple(qualities), rows, len(np.asarray(upper)))
