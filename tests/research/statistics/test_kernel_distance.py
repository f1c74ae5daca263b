"""KID between sets of the same prompts."""

from __future__ import annotations

import numpy as np
import pytest

from research.statistics.bootstrap import draw_weights, draws
from research.statistics.kernel_distance import kernel_gap, pair_mean


def sets(prompts: int, shift: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of a prompt are alike in both sets, as with equal captions."""
    own = rng.normal(size=(prompts, 1, 6))
    x, y = (own + rng.normal(size=(prompts, seeds, 6)) for seeds in (2, 3))
    return x + shift, y


def double_loop(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1.0) ** 3)

    def between(u: np.ndarray, v: np.ndarray) -> float:
        values = [kernel(a, b) for p in range(len(u)) for q in range(len(v)) if p != q for a in u[p] for b in v[q]]
        return float(np.mean(values))

    return between(x, x) + between(y, y) - 2.0 * between(x, y)


def test_it_is_the_double_loop():
    x, y = sets(7, 0.3, np.random.default_rng(0))
    assert pair_mean(kernel_gap(x, y), np.ones(7)) == pytest.approx(double_loop(x, y))


def test_equal_distributions_are_zero_apart_on_average_and_others_are_not():
    rng = np.random.default_rng(1)
    for shift, low, high in ((0.0, -0.02, 0.02), (0.5, 0.1, 5.0)):
        found = [pair_mean(kernel_gap(*sets(30, shift, rng)), np.ones(30)) for _ in range(200)]
        assert low < np.mean(found) < high
    assert (
        min(pair_mean(kernel_gap(*sets(30, 0.0, rng)), np.ones(30)) for _ in range(50)) < 0.0
    )  # unbiased, so below 0 too


def test_a_drawn_prompt_never_meets_itself():
    """A bootstrap draw by weights is the mean over pairs of drawn rows of different prompts."""
    x, y = sets(6, 0.2, np.random.default_rng(2))
    gap, rows = kernel_gap(x, y), draws(6, 4, 20)
    found = pair_mean(gap, draw_weights(6, 4, 20))
    for row, value in zip(rows, found, strict=True):
        apart = row[:, None] != row[None, :]
        assert value == pytest.approx(gap[row][:, row][apart].mean())
