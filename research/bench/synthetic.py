"""Sweep data with a known plateau: for each prompt it is known from which step count on nothing changes any more."""

from __future__ import annotations

from typing import Any

import numpy as np

from budgetfusion_nodes.core.curves import DEFAULT_GRID, METRICS, FloatArray
from budgetfusion_nodes.core.plan import DEFAULT_QUALITY, DEFAULT_RISK
from budgetfusion_nodes.core.setting import Setting
from budgetfusion_nodes.predictor.dataset import SPLITS, SweepDataset
from budgetfusion_nodes.predictor.fit import FitOptions, fit_planner
from research.statistics.allocation import planned_index

from .evidence import gather

SETTING = Setting("synthetic", "dpmpp_2m", "karras", 3.0, 64, 64, model_name="synthetic curves")
SIZES = (6.0, 0.4, 0.2)  # dB, 1 - similarity, 1 - cosine: about those of Tiny Scenes
TOKENS, WIDTH = 10, 16
LATEST = 40.0


def plateau_dataset(
    train: int, calibration: int, test: int, seed: int, noise: float = 0.0
) -> tuple[SweepDataset, FloatArray]:
    """The data and each prompt's plateau p [N]. e_m(n) = size_m max(0, log(p / n) / log(p / 2)): a straight line in
    log n down to 0 at p. log p follows one direction of the prompt's tokens; `noise` spreads it over the seeds."""
    rng = np.random.default_rng(seed)
    count = train + calibration + test
    hidden = rng.uniform(-1.0, 1.0, count)
    plateau = np.exp(np.log(5.0) + (hidden + 1.0) / 2.0 * np.log(LATEST / 5.0))
    tokens = rng.normal(size=(count, TOKENS, WIDTH))
    tokens[:, :, 0] += 3.0 * hidden[:, None]
    grid = np.array(DEFAULT_GRID, dtype=np.float64)
    moved = np.clip(plateau[:, None] * np.exp(noise * rng.normal(size=(count, 2))), 2.5, grid[-1])
    ratio = np.log(moved[..., None] / grid) / np.log(moved[..., None] / grid[0])
    shortfall = np.clip(ratio, 0.0, None)[..., None] * np.array(SIZES)
    sizes = dict(zip(SPLITS, (train, calibration, test), strict=True))
    dataset = SweepDataset(
        prompts=tuple(f"prompt {i}" for i in range(count)),
        split=tuple(split for split, size in sizes.items() for _ in range(size)),
        tokens=tokens.astype(np.float16),
        pooled=np.zeros((count, 0), np.float32),
        seeds=rng.integers(0, 2**31, (count, 2)),
        shortfall=shortfall.astype(np.float32),
        l_snr=np.zeros((count, 2, len(grid)), np.float32),
        grid=DEFAULT_GRID,
        setting=SETTING,
        backends=dict.fromkeys(METRICS, "synthetic"),
        provenance={"made": "plateau_dataset"},
    )
    return dataset, plateau


def known_steps(plateau: FloatArray, q: float) -> FloatArray:
    """t*(q) = the least whole n >= 2^(1 - q) p^q of the law above, where the scale is the size."""
    return np.ceil(DEFAULT_GRID[0] ** (1.0 - q) * plateau**q - 1e-9)


def plateau_experiment(
    seed: int, train: int = 300, noise: float = 0.0, options: FitOptions | None = None
) -> dict[str, Any]:
    """Fits a planner to such data and says how close its plans come to what is known. JSON-safe."""
    dataset, plateau = plateau_dataset(train, 100, 100, seed, noise)
    planner = fit_planner(dataset, seed, name="synthetic", options=options)
    evidence = gather(dataset, planner)
    rows = evidence.rows["test"]
    theta = evidence.threshold(DEFAULT_RISK, DEFAULT_QUALITY)
    steps = evidence.counts[planned_index(evidence.upper[rows], theta)].astype(np.float64)
    wanted = known_steps(plateau[rows], DEFAULT_QUALITY)
    error = np.log(steps / wanted)
    return {
        "train_prompts": train,
        "seed_noise": noise,
        "mean_planned": float(steps.mean()),
        "mean_known": float(wanted.mean()),
        "median_ratio": float(np.exp(np.median(error))),
        "typical_factor": float(np.exp(np.mean(np.abs(error)))),
        "correlation": float(np.corrcoef(np.log(steps), np.log(wanted))[0, 1]),
        "too_few": float((steps < wanted).mean()),
    }
