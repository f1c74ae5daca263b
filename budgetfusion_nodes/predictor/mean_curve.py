"""A planner without a predictor: one curve for all prompts, with its conformal margin. For few prompts, and for models
whose prompts do not tell what they need.

With one curve for all, a plan depends on the order of counts alone: any curve that falls gives the same thresholds'
counts. So the calibration prompts may make the curve themselves and nothing is lost to a training split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.curves import FloatArray, all_counts, interpolate_log_n, tail_max
from ..core.errors import InputError
from ..core.risk import calibrate, controlled_theta, critical_thetas
from ..core.schedule import least_steps
from .dataset import SweepDataset, select, true_quality
from .features import (
    LEAST_SPREAD,
    ConditioningFeatures,
    OutOfDistribution,
    fit_out_of_distribution,
    fit_projection,
    shrunk_covariance,
)
from .fit import (
    FitOptions,
    fit_scale,
    fit_token_projection,
    level_curves,
    new_network,
    project_prompts,
    summaries,
    train_curves,
    training_data,
)
from .network import QUANTILES, CurvePredictor, PredictorSize
from .planner import Planner

LEAST = 9
"""Prompts from which on a risk of 10 % can be guaranteed: alpha >= 1 / (N + 1)."""
FALL = 1e-4
"""Least fall of the curve from one grid count to the next, in units of the scale: no ties, no effect on the figures."""
FOLDS = 5
RESAMPLES = 400
INTERVAL = (0.05, 0.95)


def fit_mean_curve(dataset: SweepDataset, *, name: str = "planner") -> Planner:
    """A planner whose every answer is the mean curve. Calibrated on the calibration prompts alone (at least LEAST)."""
    rows = dataset.rows("calibration")
    if len(rows) < LEAST:
        raise InputError(f"{len(rows)} calibration prompts are too few for a planner; {LEAST} are needed.")
    scale = fit_scale(dataset)
    guides = dataset.rows("train")
    seen = guides if len(guides) >= LEAST else rows
    tokens = np.concatenate([dataset.tokens[i, : dataset.lengths[i]].astype(np.float32) for i in seen])
    projection = fit_projection(torch.from_numpy(tokens), torch.from_numpy(dataset.pooled[seen]))
    features = project_prompts(dataset, projection)
    network = constant_network(mean_levels(dataset, seen, scale), dataset, features[0])
    calibration = [features[i] for i in rows]
    upper = level_curves((network,), calibration, dataset.grid)
    return Planner(
        name=name,
        setting=dataset.setting,
        grid=dataset.grid,
        metrics=dataset.metrics,
        scale=scale,
        backends=dict(dataset.backends),
        projection=projection,
        networks=(network,),
        risk_table=calibrate(upper, true_quality(dataset, scale)[rows]),
        out_of_distribution=_scorer(
            summaries([features[i] for i in seen]), summaries(calibration), len(guides) >= LEAST
        ),
        provenance={"data": dict(dataset.provenance)},
    )


def mean_levels(dataset: SweepDataset, rows: NDArray[np.int64], scale: Sequence[float]) -> Tensor:
    """[K, M, 3] quantiles of shortfall / scale over the renders of `rows`, made to fall with the count."""
    present = dataset.present[rows]
    rendered = torch.from_numpy(dataset.shortfall[rows][present] / np.asarray(scale)).double()  # [R, K, M]
    levels = rendered.quantile(torch.tensor(QUANTILES, dtype=torch.float64), dim=0).permute(1, 2, 0)  # [K, M, 3]
    falling = levels.flip(0).cummax(0).values.flip(0)
    ramp = FALL * torch.arange(len(dataset.grid) - 1, -1, -1, dtype=torch.float64)
    return (falling + ramp[:, None, None]).float()


def constant_network(levels: Tensor, dataset: SweepDataset, example: ConditioningFeatures) -> CurvePredictor:
    """The smallest CurvePredictor that answers `levels` [K, M, 3] to every prompt."""
    size = PredictorSize(example.tokens.shape[1], example.pooled.shape[0], heads=1, context=1, hidden=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = CurvePredictor(size, dataset.grid, dataset.metrics)
    network.set_baseline(levels, floor=FALL)
    network.shrink(0.0)
    return network.eval().requires_grad_(False)


def _scorer(training: Tensor, calibration: Tensor, apart: bool) -> OutOfDistribution:
    """apart: whether the two are different prompts. Else each prompt's distance is taken from the others alone."""
    if apart:
        return fit_out_of_distribution(training, calibration)
    near = fit_out_of_distribution(training, training)
    left_out = [
        float(((row - part.mean(0)) @ _whitening(part)).norm())
        for i, row in enumerate(training)
        for part in [torch.cat([training[:i], training[i + 1 :]])]
    ]
    return OutOfDistribution(near.centre, near.whitening, max(float(np.quantile(left_out, 0.95)), 1e-6))


def _whitening(rows: Tensor) -> Tensor:
    spread = rows.std(0).clamp_min(LEAST_SPREAD).double()
    variance, directions = torch.linalg.eigh(shrunk_covariance((rows - rows.mean(0)).double() / spread))
    return (directions / variance.clamp_min(1e-12).sqrt() / spread[:, None]).float()


@dataclass(frozen=True)
class Comparison:
    """Mean planned steps under the same guarantee, by the mean curve and by the network, on prompts new to each."""

    mean_curve: float
    network: float
    saved: tuple[float, float, float]
    """Share of the mean curve's steps that the network saves: estimate, and the ends of its 90 % interval."""
    prompts: int

    @property
    def network_is_better(self) -> bool:
        """Whether the whole interval says so."""
        return self.saved[1] > 0.0

    def to_dict(self) -> dict[str, float | int | list[float]]:
        return {
            "mean_curve_steps": self.mean_curve,
            "network_steps": self.network,
            "saved": list(self.saved),
            "prompts": self.prompts,
        }


def compare_in_folds(
    dataset: SweepDataset,
    seed: int,
    options: FitOptions,
    quality: float = 0.9,
    risk: float = 0.1,
    before_fold: Callable[[], None] = lambda: None,
) -> Comparison:
    """Cross-validation on the training prompts alone, so that choosing by it leaves the calibration prompts new.

    before_fold: called before each fold's training; may raise, to cancel.
    """
    own = select(dataset, dataset.rows("train"))
    scale = fit_scale(dataset)
    truth = true_quality(own, scale)
    uppers = _out_of_fold(own, scale, seed, options, before_fold)
    needs = [critical_thetas(upper, truth, quality) for upper in uppers]
    counts = np.maximum(all_counts(own.grid), least_steps(own.setting.schedule))

    def steps(which: int, rows: NDArray[np.int64]) -> FloatArray:
        theta = controlled_theta(needs[which][rows], risk)
        enough = tail_max(uppers[which][rows]) <= theta
        return np.where(enough.any(axis=-1), counts[enough.argmax(axis=-1)], counts[-1]).astype(float)

    everyone = np.arange(len(own.prompts))
    mean, network = (float(steps(which, everyone).mean()) for which in (0, 1))
    rng = np.random.default_rng(seed)
    draws = [rng.integers(0, len(everyone), len(everyone)) for _ in range(RESAMPLES)]
    saved = [1.0 - steps(1, rows).mean() / steps(0, rows).mean() for rows in draws]
    low, high = (float(np.quantile(saved, level)) for level in INTERVAL)
    return Comparison(mean, network, (1.0 - network / mean, low, high), len(everyone))


def _out_of_fold(
    own: SweepDataset, scale: tuple[float, ...], seed: int, options: FitOptions, before_fold: Callable[[], None]
) -> tuple[FloatArray, FloatArray]:
    """([N, C], [N, C]): upper curves by the mean curve and by the network, of each prompt from the other folds."""
    counts = all_counts(own.grid)
    uppers = tuple(np.zeros((len(own.prompts), len(counts))) for _ in range(2))
    fold = np.random.default_rng(seed).permutation(len(own.prompts)) % FOLDS
    for held in range(FOLDS):
        before_fold()
        others, rows = np.flatnonzero(fold != held), np.flatnonzero(fold == held)
        part = select(own, others)
        features = project_prompts(own, fit_token_projection(part, seed))
        levels = mean_levels(own, others, scale)[..., 2].double().numpy().max(axis=-1)
        uppers[0][rows] = interpolate_log_n(own.grid, levels, counts)
        data = training_data(own, others, features, scale)
        networks = train_curves(lambda given: new_network(own, given, options), data, seed, options)
        uppers[1][rows] = level_curves(networks, [features[i] for i in rows], own.grid)
    return uppers[0], uppers[1]
