"""Kernel distance between two sets of pictures of the same prompts: KID (Binkowski et al. 2018, arXiv 1801.01401).

MMD^2 with the kernel (x . y / D + 1)^3 in the features of a network. Pictures of one prompt are no independent draws,
so pairs of one prompt are left out of all three means: the expectation is exactly 0 for two sets of one distribution.
"""

from __future__ import annotations

import numpy as np

from budgetfusion_nodes.core.curves import FloatArray


def pair_kernels(x: FloatArray, y: FloatArray) -> FloatArray:
    """[P, P] mean kernel between the pictures of two prompts. x: [P, S, D], y: [P, R, D]."""
    prompts, ours, width = x.shape
    theirs = y.shape[1]
    product = x.reshape(-1, width) @ y.reshape(-1, width).T / width + 1.0
    return (product**3).reshape(prompts, ours, prompts, theirs).mean(axis=(1, 3))


def kernel_gap(x: FloatArray, y: FloatArray, within_y: FloatArray | None = None) -> FloatArray:
    """[P, P] whose mean over pairs of different prompts is KID; 0 on the diagonal. within_y: pair_kernels(y, y), where
    it is known."""
    across = pair_kernels(x, y)
    gap = pair_kernels(x, x) + (pair_kernels(y, y) if within_y is None else within_y) - across - across.T
    np.fill_diagonal(gap, 0.0)
    return gap


def pair_mean(gap: FloatArray, weights: FloatArray) -> FloatArray:
    """Mean over pairs of different prompts, each prompt counted `weights` times; NaN where only one prompt counts.
    gap: [P, P], weights: [..., P]."""
    total = ((weights @ gap) * weights).sum(axis=-1)
    pairs = weights.sum(axis=-1) ** 2 - (weights**2).sum(axis=-1)
    return np.divide(total, pairs, out=np.full_like(total, np.nan), where=pairs > 0)
