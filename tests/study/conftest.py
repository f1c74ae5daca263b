"""Sweep data with a known law: each prompt's need depends on its conditioning, and each seed adds its own spread."""

from __future__ import annotations

import numpy as np
import pytest

from budgetfusion_nodes.core.curves import DEFAULT_GRID, METRICS
from budgetfusion_nodes.core.setting import Setting
from budgetfusion_nodes.study.dataset import SweepDataset

SETTING = Setting("fingerprint", "dpmpp_2m", "karras", 3.0, 64, 64, model_name="synthetic")
METRIC_SIZE = np.array([6.0, 0.4, 0.2])  # dB, 1 - similarity, 1 - cosine
TOKENS, WIDTH, POOLED = 12, 24, 16


def make_dataset(
    train: int = 80,
    calibration: int = 40,
    test: int = 40,
    seed: int = 0,
    noise: float = 0.2,
    counts: tuple[int, ...] = DEFAULT_GRID,
) -> SweepDataset:
    """e_m(n) = size_m * ((2 / n)^rate - (2 / T)^rate), with log rate linear in the prompt's tokens plus seed noise."""
    rng = np.random.default_rng(seed)
    count = train + calibration + test
    split = ("train",) * train + ("calibration",) * calibration + ("test",) * test
    tokens = rng.normal(size=(count, TOKENS, WIDTH))
    difficulty = rng.normal(size=count)
    tokens[:, :, 0] += 1.5 * difficulty[:, None]
    pooled = rng.normal(size=(count, POOLED))
    seeds = np.full((count, 4), -1, np.int64)
    seeds[:, :2] = rng.integers(0, 2**31, (count, 2))
    is_test = np.array(split) == "test"
    seeds[is_test, 2:] = rng.integers(0, 2**31, (int(is_test.sum()), 2))
    rate = np.exp(0.1 - 0.4 * difficulty[:, None] + noise * rng.normal(size=(count, 4)))  # [N, S]
    grid = np.array(counts, float)
    fall = (2.0 / grid) ** rate[..., None] - (2.0 / grid[-1]) ** rate[..., None]  # [N, S, K]
    height = np.exp(0.1 * rng.normal(size=(count, 4, 1, 3)))
    shortfall = np.where((seeds >= 0)[..., None, None], fall[..., None] * height * METRIC_SIZE, np.nan)
    return SweepDataset(
        prompts=tuple(f"prompt {i}" + " very" * (i % 7) for i in range(count)),
        split=split,
        tokens=tokens.astype(np.float16),
        pooled=pooled.astype(np.float32),
        seeds=seeds,
        shortfall=shortfall.astype(np.float32),
        l_snr=shortfall[..., 0].astype(np.float32),
        grid=counts,
        setting=SETTING,
        backends={metric: f"{metric}-synthetic" for metric in METRICS},
        provenance={"made": "synthetic"},
    )


@pytest.fixture(name="make_dataset", scope="session")
def _make_dataset():
    return make_dataset
