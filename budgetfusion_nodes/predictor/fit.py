"""Fit a planner to sweep data: projection, an ensemble of small BiLSTMs, conformal thresholds, and held-out figures."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.curves import FloatArray, all_counts, interpolate_log_n
from ..core.errors import InputError
from ..core.risk import calibrate
from .dataset import SPLITS, SweepDataset, true_quality
from .features import ConditioningFeatures, FeatureBatch, Projection, collate, fit_out_of_distribution, fit_projection
from .network import QUANTILES, CurvePredictor, PredictorSize, ensemble_quantiles, pinball
from .planner import Planner

logger = logging.getLogger(__name__)

Network = TypeVar("Network", bound=torch.nn.Module)

# of the scale: pinball in log(e + this), so that n = 38 weighs like n = 3; differences below it are invisible
LOG_OFFSET = 0.02
LEAST_PROMPTS = {"train": 10, "calibration": 10}


@dataclass(frozen=True)
class FitOptions:
    """Chosen on the validation split of synthetic and Tiny Scenes sweeps; all recorded in the planner's provenance."""

    networks: int = 3
    context: int = 32
    hidden: int = 32
    heads: int = 4
    epochs: int = 120
    patience: int = 15
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.02
    dropout: float = 0.15
    pooled_drop: float = 0.1
    """Share of training prompts whose pooled output is hidden, so that a missing one is nothing new."""
    validation_share: float = 0.15
    trust: float = 0.5
    """How far a trained network may leave the mean curve: its raw outputs are multiplied by this. Where the seed
    decides most of what a render needs, the guarantee is kept with fewest steps by curves nearer to the mean than those
    with the least quantile loss. Chosen on Tiny Scenes by five folds of the training prompts: mean steps at quality .9
    and 10 % violations are 19.8, 18.8, 18.8, 20.2 and 21.4 for 0, .25, .5, .75 and 1 (800 prompts in bf16), and
    16.4, 16.1, 16.0, 16.5 and 16.6 on the 793 in fp32 that the shipped planner is made from."""


@dataclass(frozen=True)
class TrainingData:
    """Training prompts, ready for the network."""

    batch: FeatureBatch
    targets: Tensor
    """[N, S, K, M] shortfall / scale, 0 for absent seeds."""
    weights: Tensor
    """[N, S] 1 / seeds of the prompt, 0 for absent seeds."""

    def __getitem__(self, rows: Tensor) -> TrainingData:
        return TrainingData(self.batch[rows], self.targets[rows], self.weights[rows])


Loss = Callable[[Tensor, TrainingData], Tensor]
"""(what the network gives for a batch, the batch) -> scalar."""


def fit_planner(
    dataset: SweepDataset, seed: int, *, name: str = "planner", options: FitOptions | None = None
) -> Planner:
    """The planner for the data's setting. Its provenance says what it was fitted on and how."""
    started = time.perf_counter()
    options = options or FitOptions()
    _check_splits(dataset)
    scale = fit_scale(dataset)
    projection = fit_token_projection(dataset, seed)
    features = project_prompts(dataset, projection)
    networks = train_ensemble(dataset, features, scale, seed, options)
    planner = _assemble(dataset, name, scale, projection, features, networks)
    logger.info("fitted %d networks in %.0f s", len(networks), time.perf_counter() - started)
    prompts = {split: len(dataset.rows(split)) for split in SPLITS}
    provenance = {"data": {**dataset.provenance, **prompts}, "fit": {"seed": seed, "options": asdict(options)}}
    return replace(planner, provenance=provenance)


def _check_splits(dataset: SweepDataset) -> None:
    for split, least in LEAST_PROMPTS.items():
        found = len(dataset.rows(split))
        if found < least:
            raise InputError(f"sweep data: {found} {split} prompts; at least {least} are needed. Sweep more prompts.")


def fit_scale(dataset: SweepDataset, split: str = "calibration") -> tuple[float, ...]:
    """s_m = median of e_m at the smallest count over the calibration prompts: a symmetric function of them."""
    rows = dataset.rows(split)
    crudest = dataset.shortfall[rows][dataset.present[rows]][:, 0]  # [R, M]
    scale = np.median(crudest.astype(np.float64), axis=0)
    for metric, value in zip(dataset.metrics, scale, strict=True):
        if not value > 0:
            raise InputError(
                f"sweep data: {metric} does not differ between {dataset.grid[0]} and {dataset.grid[-1]} steps. "
                "Start the grid lower or leave this metric out."
            )
    return tuple(scale.tolist())


def fit_token_projection(dataset: SweepDataset, seed: int) -> Projection:
    """PCA of the training prompts' conditioning."""
    rows = dataset.rows("train")
    words = np.concatenate([dataset.tokens[i, : dataset.lengths[i]] for i in rows])
    return fit_projection(torch.from_numpy(words), torch.from_numpy(dataset.pooled[rows]), seed=seed)


def project_prompts(dataset: SweepDataset, projection: Projection) -> list[ConditioningFeatures]:
    """Every prompt of the data set as the planner will see it."""
    return [
        projection(
            torch.from_numpy(dataset.tokens[i, : dataset.lengths[i]].astype(np.float32)),
            torch.from_numpy(dataset.pooled[i].astype(np.float32)) if dataset.pooled.shape[1] else None,
        )
        for i in range(len(dataset.prompts))
    ]


def train_ensemble(
    dataset: SweepDataset,
    features: list[ConditioningFeatures],
    scale: tuple[float, ...],
    seed: int,
    options: FitOptions,
) -> tuple[CurvePredictor, ...]:
    """Networks with different seeds, each stopped early on its own part of the training prompts."""
    data = training_data(dataset, dataset.rows("train"), features, scale)
    return train_curves(lambda part: new_network(dataset, part, options), data, seed, options)


def train_curves(
    make: Callable[[TrainingData], CurvePredictor], data: TrainingData, seed: int, options: FitOptions
) -> tuple[CurvePredictor, ...]:
    """The ensemble of any curve predictor that `make` builds, trusted as far as `options` say."""
    networks = train_members(make, curve_loss, data, seed, options)
    for network in networks:
        network.shrink(options.trust)
    return networks


def train_members(
    make: Callable[[TrainingData], Network],
    loss: Loss,
    data: TrainingData,
    seed: int,
    options: FitOptions,
) -> tuple[Network, ...]:
    """The ensemble of any network that `make` builds from its training part. Random state is left as it was."""
    networks = []
    for member, training, validation in fold_rows(len(data.targets), seed, options):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 1000 + member)
            network = make(data[training])
            networks.append(train_network(network, data[training], data[validation], options, loss))
    return tuple(networks)


def fold_rows(count: int, seed: int, options: FitOptions) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(member, training rows, validation rows) for each network of an ensemble."""
    folds = np.random.default_rng(seed).permutation(count)
    held = max(2, round(options.validation_share * count))
    for member in range(options.networks):
        rotated = np.roll(folds, -member * held)
        yield member, torch.from_numpy(rotated[held:]), torch.from_numpy(rotated[:held])


def training_data(
    dataset: SweepDataset, rows: NDArray[np.int64], features: list[ConditioningFeatures], scale: tuple[float, ...]
) -> TrainingData:
    present = dataset.present[rows]
    shortfall = np.where(present[..., None, None], dataset.shortfall[rows], 0.0) / np.asarray(scale)
    weights = present / present.sum(axis=1, keepdims=True)
    return TrainingData(
        collate([features[i] for i in rows]), torch.from_numpy(shortfall).float(), torch.from_numpy(weights).float()
    )


def new_network(dataset: SweepDataset, data: TrainingData, options: FitOptions) -> CurvePredictor:
    size = PredictorSize(
        token_width=data.batch.tokens.shape[2],
        pooled_width=data.batch.pooled.shape[1],
        heads=options.heads,
        context=options.context,
        hidden=options.hidden,
    )
    network = CurvePredictor(size, dataset.grid, dataset.metrics, options.dropout)
    rendered = data.targets[data.weights > 0].double()  # [R, K, M]
    levels = torch.tensor(QUANTILES, dtype=torch.float64)
    network.set_baseline(rendered.quantile(levels, dim=0).permute(1, 2, 0).float())
    return network


def train_network(
    network: Network, training: TrainingData, validation: TrainingData, options: FitOptions, loss: Loss
) -> Network:
    """AdamW with early stopping; returns the network of the best validation epoch, frozen."""
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs, options.learning_rate * 0.05)
    best, best_state, best_epoch = _evaluate(network, validation, loss), copy.deepcopy(network.state_dict()), 0
    for epoch in range(1, options.epochs + 1):
        _train_epoch(network, training, optimizer, options, loss)
        schedule.step()
        found = _evaluate(network, validation, loss)
        if found < best - 1e-4:
            best, best_state, best_epoch = found, copy.deepcopy(network.state_dict()), epoch
        if epoch - best_epoch >= options.patience:
            break
    logger.info("validation loss %.4f at epoch %d", best, best_epoch)
    network.load_state_dict(best_state)
    return network.eval().requires_grad_(False)


def _train_epoch(
    network: torch.nn.Module,
    training: TrainingData,
    optimizer: torch.optim.Optimizer,
    options: FitOptions,
    loss: Loss,
) -> None:
    network.train()
    for rows in _batches(len(training.targets), options.batch):
        part = training[rows]
        hidden = (torch.rand(len(rows), 1) < options.pooled_drop).float()
        value = loss(network(part.batch.without_pooled(hidden)), part)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()


def _batches(count: int, size: int) -> Iterator[Tensor]:
    yield from torch.randperm(count).split(size)


def _evaluate(network: torch.nn.Module, data: TrainingData, loss: Loss) -> float:
    network.eval()
    with torch.inference_mode():
        return float(loss(network(data.batch), data))


def curve_loss(predicted: Tensor, data: TrainingData) -> Tensor:
    """Pinball loss of each metric's curve and of their maximum, which is what decides. predicted: [B, K, M, 3]."""
    each = pinball(_log(predicted)[:, None], _log(data.targets))  # [B, S, K, M, 3]
    most = pinball(_log(predicted.amax(2))[:, None], _log(data.targets.amax(-1)))  # [B, S, K, 3]
    open_counts = slice(0, predicted.shape[1] - 1)  # e(T) = 0 has nothing to learn
    by_seed = each[:, :, open_counts].mean((2, 3, 4)) + most[:, :, open_counts].mean((2, 3))  # [B, S]
    return (by_seed * data.weights).sum(1).mean()


def _log(shortfall: Tensor) -> Tensor:
    return (shortfall + LOG_OFFSET).log()  # quantiles survive a monotone map


def _assemble(
    dataset: SweepDataset,
    name: str,
    scale: tuple[float, ...],
    projection: Projection,
    features: list[ConditioningFeatures],
    networks: tuple[CurvePredictor, ...],
) -> Planner:
    rows = dataset.rows("calibration")
    calibration = [features[i] for i in rows]
    upper = level_curves(networks, calibration, dataset.grid)
    return Planner(
        name=name,
        setting=dataset.setting,
        grid=dataset.grid,
        metrics=dataset.metrics,
        scale=scale,
        backends=dict(dataset.backends),
        projection=projection,
        networks=networks,
        risk_table=calibrate(upper, true_quality(dataset, scale)[rows]),
        out_of_distribution=fit_out_of_distribution(
            summaries([features[i] for i in dataset.rows("train")]), summaries(calibration)
        ),
    )


def upper_curves(planner: Planner, features: list[ConditioningFeatures]) -> FloatArray:
    """u at every integer count as Planner.plan computes it, [N, C]."""
    return level_curves(planner.networks, features, planner.grid)


def level_curves(
    networks: Sequence[CurvePredictor], features: list[ConditioningFeatures], grid: tuple[int, ...], level: int = 2
) -> FloatArray:
    """max_m of quantile `level` of the shortfall at every integer count, [N, C]."""
    curves = ensemble_quantiles(networks, collate(features))[..., level].double().numpy()
    return interpolate_log_n(grid, curves.max(axis=-1), all_counts(grid))


def summaries(features: Sequence[ConditioningFeatures]) -> Tensor:
    """[N, F] the space in which prompts are compared."""
    return torch.stack([f.summary() for f in features])
