"""The curve predictor: a bidirectional LSTM along the grid of step counts.

arXiv 2412.05780 predicts quality curves from the prompt with a BiLSTM and does not publish its size; this one is small
because a planner is fitted on about a thousand prompts and must answer within milliseconds on one CPU core.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .features import FeatureBatch

QUANTILES: tuple[float, ...] = (0.1, 0.5, 0.9)
MONOTONE_METRICS = frozenset({"d_sim", "i_clip"})
SOFTPLUS_ONE = math.log(math.e - 1.0)  # softplus(this) = 1: a raw output of 0 leaves the baseline curve as it is


@dataclass(frozen=True)
class PredictorSize:
    """Everything that fixes the shapes of a CurvePredictor."""

    token_width: int
    pooled_width: int
    heads: int = 4
    context: int = 32
    hidden: int = 32

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


class CurvePredictor(nn.Module):
    """Prompt -> low, median and high quantile of shortfall / scale for each step count and metric.

    By construction e(T) = 0, quantiles are ordered, and d_sim and i_clip never rise with the step count. The network
    scales the increments of a baseline (the training set's mean curve), so untrained it answers with that baseline.
    """

    log_counts: Tensor
    baseline: Tensor
    falling: Tensor

    def __init__(self, size: PredictorSize, grid: Sequence[int], metrics: Sequence[str], dropout: float = 0.0) -> None:
        super().__init__()
        self.size = size
        steps, outputs = len(grid), len(metrics)
        counts = torch.tensor([float(n) for n in grid])
        log_counts = torch.stack([counts.log(), (counts / counts[-1]).log()], dim=-1)
        self.register_buffer("log_counts", log_counts / 2.0, persistent=False)  # [K, 2], to about unit size
        self.register_buffer("baseline", torch.ones(steps, outputs, len(QUANTILES)))
        falls = torch.tensor([metric in MONOTONE_METRICS for metric in metrics])
        self.register_buffer("falling", falls[None, :, None], persistent=False)
        width = size.context
        self.embed = nn.Linear(size.token_width, width)
        self.attend = nn.Linear(width, size.heads)
        pooled_in = width * (size.heads + 2) + size.pooled_width + 1
        self.mix = nn.Sequential(nn.Dropout(dropout), nn.Linear(pooled_in, width), nn.GELU(), nn.Dropout(dropout))
        self.lstm = nn.LSTM(width + 2, size.hidden, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(2 * size.hidden, outputs * len(QUANTILES)))

    def forward(self, batch: FeatureBatch) -> Tensor:
        """[B, K, M, 3] shortfall / scale, >= 0."""
        context = self.pool(batch)  # [B, C]
        steps = self.log_counts.shape[0]
        inputs = torch.cat(
            [
                self.log_counts[None].expand(context.shape[0], -1, -1),
                context[:, None].expand(-1, steps, -1),
            ],
            dim=-1,
        )  # [B, K, C + 2]
        raw = self.head(self.lstm(inputs)[0])  # [B, K, M * 3]
        raw = raw.unflatten(-1, (-1, len(QUANTILES)))  # [B, K, M, 3]
        return self.assemble(self.baseline * F.softplus(raw + SOFTPLUS_ONE))

    def pool(self, batch: FeatureBatch) -> Tensor:
        """Attention, mean and max over tokens, with the pooled output: [B, C]."""
        words = F.gelu(self.embed(batch.tokens))  # [B, L, C]
        absent = ~batch.mask[..., None]  # [B, L, 1]
        share = self.attend(words).masked_fill(absent, -torch.inf).softmax(dim=1)  # [B, L, H]
        attended = torch.einsum("blh,blc->bhc", share, words).flatten(1)  # [B, H * C]
        mean = words.masked_fill(absent, 0.0).sum(1) / batch.mask.sum(1, keepdim=True)
        top = words.masked_fill(absent, -torch.inf).amax(1)
        return self.mix(torch.cat([attended, mean, top, batch.pooled, batch.has_pooled], dim=-1))

    def assemble(self, increments: Tensor) -> Tensor:
        """Non-negative increments [B, K, M, 3] -> ordered quantiles that end at 0 for the largest count."""
        open_end = torch.ones_like(self.baseline)
        open_end[-1] = 0.0  # e(T) = 0 exactly
        steps = increments * open_end
        falling = steps.flip(1).cumsum(1).flip(1)  # sums from T backwards never rise with n
        return torch.where(self.falling, falling, steps).cumsum(-1)  # low <= median <= high

    @torch.no_grad()
    def shrink(self, trust: float) -> None:
        """Multiplies the raw outputs by `trust` in [0, 1]: 0 answers with the baseline, 1 changes nothing."""
        if not 0.0 <= trust <= 1.0:
            raise ValueError(f"trust must lie between 0 and 1, and {trust} was given")
        for parameter in self.head[-1].parameters():
            parameter.mul_(trust)

    @torch.no_grad()
    def set_baseline(self, curves: Tensor, floor: float = 1e-3) -> None:
        """curves: [K, M, 3] quantiles over the training set. `floor` keeps every increment able to grow."""
        level = curves.clone()
        level[-1] = 0.0
        parts = torch.cat([level[..., :1], level.diff(dim=-1)], dim=-1)
        parts = torch.where(self.falling[0], parts - torch.cat([parts[1:], parts[-1:]]), parts)
        self.baseline.copy_(parts.clamp_min(floor))


def parameter_shapes(size: PredictorSize, steps: int, metrics: int) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in a CurvePredictor's state, known before one is built."""
    width, gates, outputs = size.context, 4 * size.hidden, metrics * len(QUANTILES)
    shapes: dict[str, tuple[int, ...]] = {
        "baseline": (steps, metrics, len(QUANTILES)),
        "embed.weight": (width, size.token_width),
        "attend.weight": (size.heads, width),
        "mix.1.weight": (width, width * (size.heads + 2) + size.pooled_width + 1),
        "head.1.weight": (outputs, 2 * size.hidden),
    }
    shapes |= {name.replace("weight", "bias"): (shape[0],) for name, shape in shapes.items() if "weight" in name}
    for direction in ("", "_reverse"):
        shapes[f"lstm.weight_ih_l0{direction}"] = (gates, width + 2)
        shapes[f"lstm.weight_hh_l0{direction}"] = (gates, size.hidden)
        shapes[f"lstm.bias_ih_l0{direction}"] = shapes[f"lstm.bias_hh_l0{direction}"] = (gates,)
    return shapes


def ensemble_quantiles(networks: Sequence[CurvePredictor], batch: FeatureBatch) -> Tensor:
    """Mean of the networks' quantile curves, [B, K, M, 3]; order and monotonicity survive the mean."""
    with torch.inference_mode():
        return torch.stack([network(batch) for network in networks]).mean(0)


def pinball(predicted: Tensor, measured: Tensor, quantiles: Sequence[float] = QUANTILES) -> Tensor:
    """Quantile loss (Koenker & Bassett 1978). predicted: [..., 3]; measured: [...]. Returns [..., 3]."""
    level = torch.tensor(list(quantiles), dtype=predicted.dtype, device=predicted.device)
    above = measured[..., None] - predicted
    return torch.maximum(level * above, (level - 1.0) * above)
