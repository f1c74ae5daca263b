"""What the benchmark looks at: a sweep, the planner under test and what it predicts for every prompt of the sweep."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from budgetfusion_nodes.core.curves import FloatArray, all_counts, interpolate_log_n
from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.plan import threshold_at
from budgetfusion_nodes.core.setting import differences
from budgetfusion_nodes.predictor.dataset import SweepDataset, true_shortfall
from budgetfusion_nodes.predictor.features import ConditioningFeatures, collate
from budgetfusion_nodes.predictor.fit import project_prompts, summaries, upper_curves
from budgetfusion_nodes.predictor.network import ensemble_quantiles
from budgetfusion_nodes.predictor.planner import Planner
from research.statistics.allocation import HeldOut, IndexArray

SPLIT_NAMES = ("train", "calibration", "test")


@dataclass(frozen=True)
class Judges:
    """Distances that no plan is made with, row for row with the data set."""

    names: tuple[str, ...]
    values: NDArray[np.float32]
    """[N, S, K, J]; NaN for absent seeds."""

    def curve(self, name: str, grid: tuple[int, ...], rows: IndexArray) -> FloatArray:
        """One judge at every integer count, interpolated in log n: [n, S, C]; NaN for absent seeds."""
        return every_count(self.values[rows][..., self.names.index(name)], grid)


@dataclass(frozen=True)
class Evidence:
    """All arrays run over the prompts of the data set, in its order."""

    dataset: SweepDataset
    planner: Planner
    held: HeldOut
    rows: dict[str, IndexArray]
    """Split -> rows of the data set."""
    features: list[ConditioningFeatures]
    upper: FloatArray
    """[N, C] what the planner compares with its threshold."""
    median: FloatArray
    """[N, K, M] predicted median of shortfall / scale."""
    judges: Judges | None = None

    @property
    def scale(self) -> tuple[float, ...]:
        return self.planner.scale

    @property
    def summaries(self) -> FloatArray:
        return summaries(self.features).double().numpy()

    @property
    def counts(self) -> IndexArray:
        return self.held.counts

    def threshold(self, alpha: float, q: float) -> float:
        """theta that the shipped planner uses."""
        return threshold_at(self.planner.risk_table.thresholds(alpha), q)


def check_belongs(dataset: SweepDataset, planner: Planner) -> None:
    """InputError if the data are of another setting, grid or backend than the planner."""
    if differences(planner.setting, dataset.setting):
        raise InputError(
            f"sweep: it was rendered with {dataset.setting.describe()}, the planner is for "
            f"{planner.setting.describe()}. Sweep again, or name the planner that belongs to it."
        )
    if dataset.grid != planner.grid or dataset.metrics != planner.metrics:
        raise InputError(
            f"sweep: its step counts are {dataset.grid}, the planner's are {planner.grid}. Sweep again with those."
        )
    if dict(dataset.backends) != dict(planner.backends):
        raise InputError(
            f"sweep: it was measured with {dict(dataset.backends)}, the planner with {dict(planner.backends)}."
        )


def gather(dataset: SweepDataset, planner: Planner, judges: Judges | None = None) -> Evidence:
    """InputError if the data do not belong to the planner."""
    check_belongs(dataset, planner)
    features = project_prompts(dataset, planner.projection)
    truth = true_shortfall(dataset, planner.scale)
    rows = {split: dataset.rows(split) for split in SPLIT_NAMES}
    return Evidence(
        dataset=dataset,
        planner=planner,
        held=HeldOut(np.asarray(all_counts(dataset.grid)), truth[rows["test"]], truth[rows["calibration"]]),
        rows=rows,
        features=features,
        upper=upper_curves(planner, features),
        median=ensemble_quantiles(planner.networks, collate(features))[..., 1].double().numpy(),
        judges=judges,
    )


def every_count(values: NDArray[np.floating], grid: tuple[int, ...]) -> FloatArray:
    """[..., K] -> [..., C], interpolated in log n; NaN rows stay NaN."""
    known = ~np.isnan(values).any(axis=-1, keepdims=True)
    return np.where(known, interpolate_log_n(grid, np.where(known, values, 0.0), all_counts(grid)), np.nan)


def load_judges(path: Path) -> Judges:
    """Reads what `study sweep` writes beside its data."""
    try:
        with safe_open(path, framework="numpy") as opened:
            names = json.loads((opened.metadata() or {})["judges"])
            return Judges(tuple(names), opened.get_tensor("judges"))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{path.name} cannot be read as judges of a sweep ({error}). Run 'study merge'.") from error
