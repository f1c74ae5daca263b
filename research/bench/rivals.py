"""Rivals of the planner that need training or a rule of their own. Each gives scores [N, C] like an upper curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from budgetfusion_nodes.core.curves import FloatArray, all_counts, interpolate_log_n
from budgetfusion_nodes.predictor.dataset import SweepDataset
from budgetfusion_nodes.predictor.features import ConditioningFeatures, FeatureBatch, collate
from budgetfusion_nodes.predictor.fit import (
    FitOptions,
    TrainingData,
    level_curves,
    new_network,
    train_curves,
    train_members,
    training_data,
)
from budgetfusion_nodes.predictor.network import CurvePredictor
from research.statistics.allocation import IndexArray

# ------------------------------------------------------------------------------------------ other bodies, same size


class PointwiseBody(nn.Module):
    """In the LSTM's place: each step count by itself, with as many parameters. [B, K, I] -> ([B, K, O], None)."""

    def __init__(self, inputs: int, outputs: int, parameters: int) -> None:
        super().__init__()
        width = max(1, round((parameters - outputs) / (inputs + 1 + outputs)))
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, outputs))

    def forward(self, inputs: Tensor) -> tuple[Tensor, None]:
        return self.layers(inputs), None


class OneWayBody(nn.Module):
    """In the LSTM's place: an LSTM that runs from few steps to many only (or back), with about as many parameters."""

    def __init__(self, inputs: int, outputs: int, parameters: int, backward: bool = False) -> None:
        super().__init__()
        # 4 h (inputs + h + 2) + (h + 1) outputs = parameters, solved for h
        half = (4 * (inputs + 2) + outputs) / 8
        hidden = max(1, round(-half + (half**2 + (parameters - outputs) / 4) ** 0.5))
        self.lstm = nn.LSTM(inputs, hidden, batch_first=True)
        self.out = nn.Linear(hidden, outputs)
        self.backward_in_n = backward

    def forward(self, inputs: Tensor) -> tuple[Tensor, None]:
        ordered = inputs.flip(1) if self.backward_in_n else inputs
        found = self.out(self.lstm(ordered)[0])
        return (found.flip(1) if self.backward_in_n else found), None


BODIES = ("bilstm", "plain", "forward", "backward")


def with_body(network: CurvePredictor, kind: str) -> CurvePredictor:
    """The same network with another body in place of its bidirectional LSTM."""
    if kind == "bilstm":
        return network
    size = network.size
    sizes = (size.context + 2, 2 * size.hidden, sum(p.numel() for p in network.lstm.parameters()))
    body = PointwiseBody(*sizes) if kind == "plain" else OneWayBody(*sizes, backward=kind == "backward")
    network.add_module("lstm", body)
    return network


def network_scores(
    dataset: SweepDataset,
    features: list[ConditioningFeatures],
    scale: tuple[float, ...],
    seed: int,
    options: FitOptions,
    kind: str = "bilstm",
    level: int = 2,
) -> FloatArray:
    """Upper curves [N, C] of an ensemble trained on the training split, with the body that is named."""
    data = training_data(dataset, dataset.rows("train"), features, scale)
    networks = train_curves(lambda part: with_body(new_network(dataset, part, options), kind), data, seed, options)
    return level_curves(networks, features, dataset.grid, level)


# ----------------------------------------------------------------------------------------------- StepSaver's kind


class StepClassifier(nn.Module):
    """Prompt -> logits [B, K]: which step count of the grid is the least that suffices.

    StepSaver (arXiv 2408.02054) trains a text classifier of step counts; here it reads the same projected conditioning
    with the same pooling as our predictor.
    """

    def __init__(self, network: CurvePredictor, counts: int) -> None:
        super().__init__()
        removed = sum(p.numel() for part in (network.lstm, network.head) for p in part.parameters())
        network.add_module("lstm", nn.Identity())
        network.add_module("head", nn.Identity())
        self.reader = network
        width = network.size.context
        hidden = max(1, round((removed - counts) / (width + 1 + counts)))
        self.answer = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, counts))

    def forward(self, batch: FeatureBatch) -> Tensor:
        return self.answer(self.reader.pool(batch))


@dataclass(frozen=True)
class ClassifierLoss:
    """Cross entropy of the least sufficient grid count at quality q."""

    q: float

    def __call__(self, logits: Tensor, data: TrainingData) -> Tensor:
        wanted = least_sufficient_class(data.targets, self.q)  # [B, S]
        each = F.cross_entropy(
            logits[:, None].expand(-1, wanted.shape[1], -1).flatten(0, 1), wanted.flatten(), reduction="none"
        )
        return (each.reshape(wanted.shape) * data.weights).sum(1).mean()


def least_sufficient_class(targets: Tensor, q: float) -> Tensor:
    """Index of the least grid count from which on the quality stays at q. [B, S, K, M] -> [B, S]."""
    worst = targets.amax(-1)  # [B, S, K]
    later = worst.flip(-1).cummax(-1).values.flip(-1)
    return (later <= 1.0 - q + 1e-9).float().argmax(-1)


def step_classifier_scores(
    dataset: SweepDataset,
    features: list[ConditioningFeatures],
    scale: tuple[float, ...],
    q: float,
    seed: int,
    options: FitOptions,
) -> FloatArray:
    """P(t* > n) at every integer count, [N, C]: a threshold on it takes the least n that suffices often enough."""
    data = training_data(dataset, dataset.rows("train"), features, scale)
    networks = train_members(
        lambda part: StepClassifier(new_network(dataset, part, options), len(dataset.grid)),
        ClassifierLoss(q),
        data,
        seed,
        options,
    )
    return exceedance(_mean_shares(networks, features), dataset.grid)


def _mean_shares(networks: Sequence[StepClassifier], features: list[ConditioningFeatures]) -> FloatArray:
    with torch.inference_mode():
        batch = collate(features)
        return torch.stack([network(batch).softmax(-1) for network in networks]).mean(0).double().numpy()


def exceedance(shares: FloatArray, grid: tuple[int, ...]) -> FloatArray:
    """Shares [N, K] of the classes -> P(t* > n) at every integer count, [N, C]; 0 at the target."""
    above = np.clip(1.0 - shares.cumsum(axis=-1), 0.0, 1.0)
    above[:, -1] = 0.0
    return interpolate_log_n(grid, above, all_counts(grid))


# ------------------------------------------------------------------------------------------------- the paper's rule


def plateau_scores(median: FloatArray, grid: tuple[int, ...]) -> FloatArray:
    """How steep the predicted median curves still are: max_m |e_m(n) - e_m(n + 1)| / s_m, [N, C]; 0 at the target.

    arXiv 2412.05780 stops where the predicted metric curves flatten and does not publish its threshold; here the
    threshold is set by the cost at which rules are compared. median: [N, K, M].
    """
    curves = interpolate_log_n(grid, np.moveaxis(median, -1, 1), all_counts(grid))  # [N, M, C]
    slope = np.abs(np.diff(curves, axis=-1)).max(axis=1)
    return np.concatenate([slope, np.zeros((len(slope), 1))], axis=-1)


def knee_index(median: FloatArray, grid: tuple[int, ...]) -> IndexArray:
    """Knee of each predicted metric curve (Kneedle, Satopaa et al. 2011: farthest below the chord, in n), the latest of
    the metrics. median: [N, K, M]. Returns [N] into the integer counts. It has no slider: it costs what it costs."""
    curves = interpolate_log_n(grid, np.moveaxis(median, -1, 1), all_counts(grid))  # [N, M, C]
    span = curves[..., :1] - curves[..., -1:]
    height = (curves - curves[..., -1:]) / np.where(np.abs(span) > 1e-12, span, 1.0)
    along = np.linspace(0.0, 1.0, curves.shape[-1])
    return (1.0 - along - height).argmax(axis=-1).max(axis=1)
