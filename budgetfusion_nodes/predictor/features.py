"""Conditioning of any text encoder, reduced to a fixed width by a projection that is stored with the planner.

Encoders are 64 to 4096 wide and give any number of tokens. Each token is projected to d <= 64 whitened principal
components of the training conditioning; the count of tokens stays free and the predictor pools it by attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import UnsupportedError
from ..core.messages import message

MAX_WIDTH = 64
MAX_TOKENS = 256  # T5 pads to 256; a 400-word prompt in 77-token chunks is about 540 and is averaged down to this
CLAMP = 8.0  # standard deviations; CLIP's start token lies far out and would otherwise drown the words
FIT_ROWS = 20_000
LEAST_SPREAD = 1e-3  # standard deviations: a number that never varied in training may vary a little
RANK_FLOOR = 1e-6  # of the largest variance; below it a direction is rounding noise of fp16 encoders


@dataclass(frozen=True)
class ConditioningFeatures:
    """One prompt after projection."""

    tokens: Tensor
    """[L, d] float32, L <= MAX_TOKENS."""
    pooled: Tensor
    """[p] float32; zeros where the encoder gave none."""
    has_pooled: bool

    def summary(self) -> Tensor:
        """[2 d + p]: mean and spread of the tokens, and the pooled output; the space in which prompts are compared."""
        return torch.cat([self.tokens.mean(0), self.tokens.std(0, correction=0), self.pooled])


@dataclass(frozen=True)
class FeatureBatch:
    """Prompts padded to one length."""

    tokens: Tensor
    """[B, L, d]"""
    mask: Tensor
    """[B, L] bool, True where there is a token."""
    pooled: Tensor
    """[B, p]"""
    has_pooled: Tensor
    """[B, 1] float, 1 or 0."""

    def __getitem__(self, rows: Tensor) -> FeatureBatch:
        return FeatureBatch(self.tokens[rows], self.mask[rows], self.pooled[rows], self.has_pooled[rows])

    def without_pooled(self, drop: Tensor) -> FeatureBatch:
        """The batch with the pooled output taken away where drop [B, 1] is 1, as a missing one would arrive."""
        keep = 1.0 - drop
        return FeatureBatch(self.tokens, self.mask, self.pooled * keep, self.has_pooled * keep)


@dataclass(frozen=True)
class Projection:
    """Affine maps to whitened principal components: y = (x - mean) @ weight."""

    token_mean: Tensor
    """[D]"""
    token_weight: Tensor
    """[D, d]"""
    pooled_mean: Tensor
    """[P]; P = 0 for an encoder without pooled output."""
    pooled_weight: Tensor
    """[P, p]"""

    def __call__(self, tokens: Tensor, pooled: Tensor | None) -> ConditioningFeatures:
        """tokens: [L, D] or [1, L, D]; pooled: [P], [1, P] or None. UnsupportedError for another encoder's output."""
        words = check_tokens(tokens, self.token_mean.shape[0])
        projected = ((words - self.token_mean) @ self.token_weight).clamp(-CLAMP, CLAMP)
        return ConditioningFeatures(shorten(projected), *self._pooled(pooled))

    def _pooled(self, pooled: Tensor | None) -> tuple[Tensor, bool]:
        width = self.pooled_mean.shape[0]
        if pooled is None or width == 0:
            return torch.zeros(self.pooled_weight.shape[1]), False
        vector = check_pooled(pooled, width)
        return ((vector - self.pooled_mean) @ self.pooled_weight).clamp(-CLAMP, CLAMP), True


def check_tokens(tokens: Tensor, width: int) -> Tensor:
    """[L, D] float32 on the CPU, or UnsupportedError."""
    if tokens.ndim == 3 and tokens.shape[0] == 1:
        tokens = tokens[0]
    if tokens.ndim != 2 or tokens.shape[0] < 1:
        raise UnsupportedError(message("tokens_shape", shape=str(tuple(tokens.shape)), width=width))
    if tokens.shape[1] != width:
        raise UnsupportedError(message("tokens_width", now=tokens.shape[1], was=width))
    return _finite(tokens)


def check_pooled(pooled: Tensor, width: int) -> Tensor:
    """[P] float32 on the CPU, or UnsupportedError."""
    if pooled.ndim == 2 and pooled.shape[0] == 1:
        pooled = pooled[0]
    if pooled.ndim != 1 or pooled.shape[0] != width:
        raise UnsupportedError(message("pooled_width", now=str(tuple(pooled.shape)), was=width))
    return _finite(pooled)


def _finite(values: Tensor) -> Tensor:
    values = values.detach().to("cpu", torch.float32)
    if not torch.isfinite(values).all():
        raise UnsupportedError(message("tokens_not_finite"))
    return values


def shorten(tokens: Tensor, limit: int = MAX_TOKENS) -> Tensor:
    """[L, d] -> [min(L, limit), d]: neighbouring tokens of a long prompt are averaged, none is cut off."""
    if tokens.shape[0] <= limit:
        return tokens
    return F.adaptive_avg_pool1d(tokens.T[None], limit)[0].T


def collate(features: Sequence[ConditioningFeatures]) -> FeatureBatch:
    """Pads prompts to the longest of them."""
    length = max(f.tokens.shape[0] for f in features)
    tokens = torch.stack([F.pad(f.tokens, (0, 0, 0, length - f.tokens.shape[0])) for f in features])
    counts = torch.tensor([f.tokens.shape[0] for f in features])
    return FeatureBatch(
        tokens=tokens,
        mask=torch.arange(length)[None] < counts[:, None],
        pooled=torch.stack([f.pooled for f in features]),
        has_pooled=torch.tensor([[float(f.has_pooled)] for f in features]),
    )


def fit_projection(tokens: Tensor, pooled: Tensor | None, width: int = MAX_WIDTH, seed: int = 0) -> Projection:
    """PCA of training conditioning. tokens: [R, D], one row a token; pooled: [N, P] or None."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(tokens.shape[0], generator=generator)[:FIT_ROWS]
    mean, weight = whitening(tokens[rows].float(), width)
    if pooled is None or pooled.shape[1] == 0:
        return Projection(mean, weight, torch.zeros(0), torch.zeros(0, 0))
    return Projection(mean, weight, *whitening(pooled.float(), width))


def whitening(rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Mean [D] and weight [D, d] such that (rows - mean) @ weight has unit variance in each direction kept."""
    data = rows.double()
    mean = data.mean(0)
    centred = (data - mean).numpy()
    # eigenvectors of the smaller Gram matrix: D reaches 4096 with few rows, or the other way round
    wide = centred.shape[1] > centred.shape[0]
    gram = (centred @ centred.T if wide else centred.T @ centred) / max(len(centred) - 1, 1)
    variance, vectors = np.linalg.eigh(gram)
    variance, vectors = variance[::-1][:width], vectors[:, ::-1][:, :width]
    keep = variance > max(variance[0], 1e-12) * RANK_FLOOR
    if not keep.any():
        keep[0], variance = True, np.maximum(variance, 1e-12)
    directions = centred.T @ vectors if wide else vectors
    directions = directions[:, keep] / np.maximum(np.linalg.norm(directions[:, keep], axis=0), 1e-12)
    weight = directions / np.sqrt(variance[keep])
    return mean.float(), torch.from_numpy(np.ascontiguousarray(weight)).float()


@dataclass(frozen=True)
class OutOfDistribution:
    """How far a prompt lies from the training prompts: Mahalanobis distance of its summary, over what is ordinary."""

    centre: Tensor
    """[F] mean summary of the training prompts."""
    whitening: Tensor
    """[F, F]: (summary - centre) @ whitening has about unit covariance over the training prompts."""
    limit: float
    """The distance that 95 % of the calibration prompts, which had no part in centre and whitening, stay below."""

    def score(self, features: ConditioningFeatures) -> float:
        """Distance over `limit`: above 1 the prompt is unlike the prompts that the risk was measured on.

        A pooled output that is missing is taken to be the most ordinary one beside these tokens: the distance is then
        that of the tokens alone.
        """
        summary = features.summary()
        known = len(summary) if features.has_pooled else len(summary) - len(features.pooled)
        whitened = (summary - self.centre)[:known] @ self.whitening[:known]
        free = self.whitening[known:].T
        if free.shape[1]:
            whitened = whitened - free @ torch.linalg.lstsq(free, whitened[:, None]).solution[:, 0]
        return float(whitened.norm()) / self.limit


def fit_out_of_distribution(training: Tensor, calibration: Tensor, share: float = 0.95) -> OutOfDistribution:
    """training: [R, F] and calibration: [N, F] summaries of prompts, R >= 2, N >= 1.

    The covariance is shrunk, because summaries have up to 192 numbers and there may be as few as 25 prompts. The
    distance to the nearest calibration prompt, which stood here before, is large for every prompt in so many
    dimensions: docs/benchmark.md has the figures of both on busier scenes.
    """
    centre = training.mean(0)
    spread = training.std(0).clamp_min(LEAST_SPREAD).double()
    variance, directions = torch.linalg.eigh(shrunk_covariance((training - centre).double() / spread))
    whitening = directions / variance.clamp_min(1e-12).sqrt() / spread[:, None]
    lengths = ((calibration - centre) @ whitening.float()).norm(dim=1)
    return OutOfDistribution(centre, whitening.float(), max(float(lengths.quantile(share)), 1e-6))


def shrunk_covariance(rows: Tensor) -> Tensor:
    """Covariance [F, F] of centred rows [R, F], drawn toward a multiple of the identity (Ledoit & Wolf 2004,
    "A well-conditioned estimator for large-dimensional covariance matrices", Theorem 3.2 and Lemma 3.2 to 3.5)."""
    count, width = rows.shape
    sample = rows.T @ rows / count
    target = sample.diagonal().mean() * torch.eye(width, dtype=rows.dtype)
    apart = (sample - target).square().sum()
    noise = ((rows.square().T @ rows.square()) / count - sample.square()).sum() / count
    share = float((noise / apart).clamp(0.0, 1.0)) if apart > 0 else 1.0
    return (1 - share) * sample + share * target
