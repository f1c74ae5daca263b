"""The prompt's share of a variance on simulated components."""

from __future__ import annotations

import numpy as np
import pytest

from research.statistics.variance import prompt_share, prompt_share_interval, variance_share


def simulated(share: float, prompts: int, seeds: int, rng: np.random.Generator) -> np.ndarray:
    prompt = np.sqrt(share) * rng.normal(size=(prompts, 1))
    return prompt + np.sqrt(1.0 - share) * rng.normal(size=(prompts, seeds))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("seeds", [2, 4])
def test_a_known_share_is_found_without_bias(share, seeds):
    rng = np.random.default_rng(3)
    found = variance_share(np.stack([simulated(share, 100, seeds, rng) for _ in range(300)]))
    assert found.mean() == pytest.approx(share, abs=0.02)


def test_the_interval_covers_the_truth():
    rng = np.random.default_rng(1)
    hits = [
        found["low"] <= 0.4 <= found["high"]
        for found in (prompt_share_interval(simulated(0.4, 150, 2, rng), trial) for trial in range(60))
    ]
    assert np.mean(hits) >= 0.88


def test_by_hand():
    """Means 1, 3 and 5 of prompts and no other difference: all of it is the prompt's."""
    values = np.array([[1.0, 1.0], [3.0, 3.0], [5.0, 5.0]])
    assert prompt_share(values) == pytest.approx(1.0)
    assert prompt_share(values.T) == 0.0  # prompts alike, their seeds differ
    assert np.isnan(variance_share(np.full((30, 7), np.log(13.0))))  # rounding is no variance
    assert prompt_share(np.ones((5, 2))) == 0.0
