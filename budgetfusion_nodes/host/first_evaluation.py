"""Spares a sweep the evaluations that all its counts share: the first one, of the same noise at the same sigma."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

KEY = "budgetfusion_first_evaluation"


def with_first_evaluation_reused(model: Any) -> Any:
    """A clone of the MODEL that evaluates the denoiser once for all runs that begin with equal noise at equal sigma.

    Every count of a trajectory starts that way, so K counts take K - 1 evaluations less; results are the same bits. The
    wrapper goes around cond and uncond together. One clone for one prompt: another prompt's noise may be equal.
    """
    kinds = importlib.import_module("comfy.patcher_extension").WrappersMP
    clone = model.clone()
    clone.add_wrapper_with_key(kinds.CALC_COND_BATCH, KEY, FirstEvaluation())
    return clone


class FirstEvaluation:
    """CALC_COND_BATCH wrapper: remembers the evaluation at the highest sigma that it saw last."""

    def __init__(self) -> None:
        self.sigma = float("-inf")
        self.x: Tensor | None = None
        self.out: list[Tensor] = []

    def __call__(self, executor: Any, model: Any, conds: Any, x: Tensor, timestep: Tensor, options: Any) -> Any:
        sigma = float(timestep[0])
        if self.x is not None and sigma == self.sigma and torch.equal(x, self.x):
            return [tensor.clone() for tensor in self.out]
        out = executor(model, conds, x, timestep, options)
        if sigma >= self.sigma:
            self.sigma, self.x, self.out = sigma, x.clone(), [tensor.clone() for tensor in out]
        return out
