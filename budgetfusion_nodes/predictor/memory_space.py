"""Where prompts lie for memory, and the Gaussian process over that space: see memory.py."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.curves import FloatArray
from .features import check_tokens

SIGNATURE = 256
"""Numbers that are kept of a prompt: 512 bytes."""
OFFSET = 0.02
"""Of the scale, as in fit.LOG_OFFSET: differences below it are invisible."""
LEAST_SPREAD = 0.05
"""Of log shortfall: no planner's quantiles are believed to lie closer."""
Z90 = 1.2815515655446004
"""Standard normal quantile of the planner's outer quantiles, .1 and .9."""
CLIP = 4.0
"""Standard deviations that one remembered render may be off by."""
JITTER = 1e-6


def signature(tokens: Tensor, pooled: Tensor | None) -> NDArray[np.float16]:
    """[<= SIGNATURE]: mean and spread of the tokens [L, D] and the pooled output [P]; wider ones as a count sketch
    (Charikar, Chen & Farach-Colton 2002), which keeps distances on average. Of any encoder, and of no planner."""
    words = check_tokens(tokens, tokens.shape[-1])
    parts = [words.mean(0), words.std(0, correction=0), *([] if pooled is None else [pooled.reshape(-1)])]
    whole = torch.cat([part.detach().float().cpu() for part in parts]).numpy().astype(np.float64)
    if len(whole) <= SIGNATURE:
        return whole.astype(np.float16)
    place, sign = _sketch(len(whole))
    return np.bincount(place, sign * whole, SIGNATURE).astype(np.float16)


@lru_cache(maxsize=8)
def _sketch(width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """([W] row in the sketch, [W] sign) of each number."""
    drawn = np.random.RandomState(0)  # its stream is frozen for good, so stores of all versions agree
    return drawn.randint(0, SIGNATURE, width), 2 * drawn.randint(0, 2, width) - 1


@dataclass(frozen=True)
class Space:
    """Signatures in units of their spread over the prompts that are remembered."""

    centre: FloatArray
    """[S]"""
    scale: FloatArray
    """[S]"""
    places: NDArray[np.float32]
    """[P, S]; squared distances of two prompts drawn at random are 2 on average."""

    late: NDArray[np.float32] | None = None
    """[B, S] of prompts behind those: a plan that joins some copies no megabytes."""

    @classmethod
    def of(cls, signatures: NDArray[np.float16]) -> Space:
        """signatures: [P, S], P >= 1."""
        values = signatures.astype(np.float64)
        spread = values.std(axis=0)
        scale = np.maximum(spread, max(float(spread.max()) * 1e-3, 1e-6)) * np.sqrt(values.shape[1])
        centre = values.mean(axis=0)
        return cls(centre, scale, ((values - centre) / scale).astype(np.float32))

    @cached_property
    def norms(self) -> NDArray[np.float32]:
        """[P] squared lengths of `places`."""
        return np.einsum("ps,ps->p", self.places, self.places)

    def joined(self, signatures: NDArray[np.float16]) -> Space:
        """With more prompts [B, S], in the same units."""
        if not len(signatures):
            return self
        fresh = self.place(signatures)
        both = replace(self, late=fresh if self.late is None else np.concatenate([self.late, fresh]))
        vars(both)["norms"] = self.norms  # a pass over all places takes a millisecond
        return both

    def at(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """[..., S] places of these prompts."""
        if self.late is None:
            return self.places[rows]
        early = rows < len(self.places)
        found = np.empty((*rows.shape, self.places.shape[1]), np.float32)
        found[early] = self.places[rows[early]]
        found[~early] = self.late[rows[~early] - len(self.places)]
        return found

    def only(self, rows: NDArray[np.int64]) -> Space:
        """Of these prompts."""
        return replace(self, places=self.at(rows), late=None)

    def place(self, wanted: NDArray[np.float16]) -> NDArray[np.float32]:
        """[..., S] in the units of `places`."""
        return ((wanted.astype(np.float64) - self.centre) / self.scale).astype(np.float32)

    def distances(self, places: NDArray[np.float32]) -> NDArray[np.float32]:
        """Squared distances [B, P] from `places` [B, S] to every prompt."""
        own = (places * places).sum(axis=1)[:, None]
        found = own + self.norms[None] - 2.0 * (places @ self.places.T)
        if self.late is not None:
            late = own + (self.late * self.late).sum(axis=1)[None] - 2.0 * (places @ self.late.T)
            found = np.concatenate([found, late], axis=1)
        return np.maximum(found, 0.0)


@dataclass(frozen=True)
class Kernel:
    """Correlation of two renders' z."""

    share: float = 0.0
    """h: of the variance, what the prompt holds; 0 remembers nothing."""
    length: float = 0.3
    """l, in units of Space."""

    def prompts(self, squared: FloatArray) -> FloatArray:
        """Correlation of renders of prompts at these squared distances."""
        return self.share * np.exp(-0.5 * squared / self.length**2)

    def weights(self, apart: FloatArray, between: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(weights [..., n], share of the variance that they explain [...]) for a new render.

        apart: [..., n] squared distances to n remembered renders' prompts; between: [..., n, n] among them.
        """
        known = self.prompts(apart)
        own = (1.0 - self.share + JITTER) * np.eye(apart.shape[-1])
        found = np.linalg.solve(self.prompts(between) + own, known[..., None])[..., 0]
        explained = np.clip((found * known).sum(axis=-1), 0.0, 1.0)
        return found.astype(np.float64), np.asarray(explained, np.float64)

    def expected(self, z: FloatArray, apart: FloatArray, between: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(mean of a new render's z [K], share of its variance that is explained [K]) from remembered ones [n, K], NaN
        where one was not measured."""
        mean, explained = np.zeros(z.shape[1]), np.zeros(z.shape[1])
        seen = ~np.isnan(z)
        for pattern in np.unique(seen, axis=1).T:
            if pattern.any():
                columns = (seen == pattern[:, None]).all(axis=0)
                found, share = self.weights(apart[pattern], between[np.ix_(pattern, pattern)])
                mean[columns], explained[columns] = found @ z[np.ix_(pattern, columns)], share
        return mean, explained


def standardised(level: FloatArray, median: FloatArray, high: FloatArray) -> FloatArray:
    """z of measured shortfalls; [..., K] all, NaN where nothing was measured."""
    spread = spread_of(median, high)
    return np.clip((np.log(level + OFFSET) - np.log(median + OFFSET)) / spread, -CLIP, CLIP)


def high_level(median: FloatArray, high: FloatArray, mean: FloatArray, explained: FloatArray) -> FloatArray:
    """The upper quantile of shortfall where a render's z has this mean and explained share of its variance; `high`
    itself where nothing is known. [..., K] all; 0 at the target."""
    reach = mean + Z90 * np.sqrt(1.0 - explained)
    known = np.exp(np.log(median + OFFSET) + spread_of(median, high) * reach) - OFFSET
    found = np.where(explained > 0, np.maximum(known, 0.0), high)
    found[..., -1] = 0.0
    return found


def spread_of(median: FloatArray, high: FloatArray) -> FloatArray:
    """Standard deviation of log shortfall that the planner's quantiles tell, at each count."""
    return np.maximum((np.log(high + OFFSET) - np.log(median + OFFSET)) / Z90, LEAST_SPREAD)
