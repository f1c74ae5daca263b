"""Sweep data: for each prompt and seed, how far the image at each step count is from the full-step image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.curves import METRICS, FloatArray, all_counts, interpolate_log_n, validate_grid, worst
from ..core.errors import InputError
from ..core.setting import Setting

SPLITS = ("train", "calibration", "test")
ABSENT = -1
ARRAYS = ("tokens", "lengths", "pooled", "seeds", "shortfall", "l_snr")


@dataclass(frozen=True)
class SweepDataset:
    """N prompts, up to S seeds each, K step counts, M metrics. Checked on construction (InputError)."""

    prompts: tuple[str, ...]
    """[N], each once."""
    split: tuple[str, ...]
    """[N] of "train", "calibration", "test"."""
    tokens: NDArray[Any]
    """[N, L, D] float16 or float32 conditioning, zero after a prompt's length."""
    pooled: NDArray[Any]
    """[N, P]; P = 0 for an encoder without pooled output."""
    seeds: NDArray[np.int64]
    """[N, S]; ABSENT where a prompt has fewer seeds."""
    shortfall: NDArray[np.float32]
    """[N, S, K, M] distance to the full-step image in each metric's unit, >= 0; NaN for absent seeds."""
    l_snr: NDArray[np.float32]
    """[N, S, K] dB of the image itself; NaN for absent seeds."""
    grid: tuple[int, ...]
    """[K]; the last is the target T."""
    setting: Setting
    backends: Mapping[str, str]
    """Metric -> the backend that measured it."""
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """[N] tokens of each prompt; left out, all have L."""
    metrics: tuple[str, ...] = METRICS
    """[M]"""
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))
        object.__setattr__(self, "split", tuple(self.split))
        object.__setattr__(self, "metrics", tuple(self.metrics))
        object.__setattr__(self, "grid", validate_grid(self.grid))
        if self.lengths.size == 0:
            object.__setattr__(self, "lengths", np.full(len(self.prompts), self.tokens.shape[1], np.int64))
        self._check_shapes()
        self._check_values()

    def _check_shapes(self) -> None:
        prompts, seeds = len(self.prompts), self.seeds.shape[1:]
        expected: dict[str, tuple[int | None, ...]] = {
            "tokens": (prompts, None, None),
            "lengths": (prompts,),
            "pooled": (prompts, None),
            "seeds": (prompts, None),
            "shortfall": (prompts, *seeds, len(self.grid), len(self.metrics)),
            "l_snr": (prompts, *seeds, len(self.grid)),
        }
        for name, shape in expected.items():
            found = getattr(self, name).shape
            if len(found) != len(shape) or any(e not in (None, f) for e, f in zip(shape, found, strict=True)):
                raise InputError(f"sweep data: {name} has shape {found}, expected {shape} for {prompts} prompts.")
        if len(self.split) != prompts or not set(self.split) <= set(SPLITS):
            raise InputError(f"sweep data: split needs one of {SPLITS} for each of {prompts} prompts.")

    def _check_values(self) -> None:
        if len(set(self.prompts)) != len(self.prompts):
            raise InputError("sweep data: a prompt occurs twice, so its seeds could land on both sides of a split.")
        missing = set(self.metrics) - set(self.backends)
        if missing:
            raise InputError(f"sweep data: no backend is named for {sorted(missing)}.")
        present = self.present
        if not present.any(axis=1).all():
            raise InputError("sweep data: a prompt has no seed at all. Leave it out or render it.")
        measured = self.shortfall[present]
        if not (np.isfinite(measured).all() and (measured >= 0).all()):
            raise InputError("sweep data: a shortfall is negative or not finite. Measure that prompt again.")
        if not np.isfinite(self.tokens.astype(np.float32)).all() or not np.isfinite(self.pooled).all():
            raise InputError("sweep data: conditioning holds values that are not finite.")
        if (self.lengths < 1).any() or (self.lengths > self.tokens.shape[1]).any():
            raise InputError(f"sweep data: lengths must lie between 1 and {self.tokens.shape[1]} tokens.")

    @property
    def present(self) -> NDArray[np.bool_]:
        """[N, S] True where a seed was rendered."""
        return self.seeds != ABSENT

    def rows(self, split: str) -> NDArray[np.int64]:
        """Indices of the prompts of one split."""
        return np.flatnonzero(np.array(self.split) == split).astype(np.int64)


def true_quality(dataset: SweepDataset, scale: tuple[float, ...]) -> FloatArray:
    """Q at every integer count from the measured curves, [N, S, C]; NaN for absent seeds."""
    return np.clip(1.0 - true_shortfall(dataset, scale), 0.0, 1.0)


def true_shortfall(dataset: SweepDataset, scale: tuple[float, ...]) -> FloatArray:
    """max_m e_m / s_m at every integer count, interpolated in log n, [N, S, C]; NaN for absent seeds."""
    present = dataset.present[..., None]
    measured = np.where(present, worst(np.nan_to_num(dataset.shortfall), scale), 0.0)
    return np.where(present, interpolate_log_n(dataset.grid, measured, all_counts(dataset.grid)), np.nan)


def select(dataset: SweepDataset, rows: NDArray[np.int64]) -> SweepDataset:
    """The data set with these prompts alone."""
    arrays = {name: getattr(dataset, name)[rows] for name in ARRAYS}
    words = {name: tuple(getattr(dataset, name)[i] for i in rows) for name in ("prompts", "split")}
    kept = {f.name: getattr(dataset, f.name) for f in fields(dataset) if f.name not in (*ARRAYS, *words)}
    return SweepDataset(**arrays, **words, **kept)
