"""Muon for many small matrices at once: those of one shape are orthogonalised together, in few large GPU kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Jordan et al. 2024), as in torch.optim.Muon."""


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """[N, R, C] -> about the nearest matrices with orthonormal rows or columns, in bf16 as torch.optim.Muon."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.bfloat16()
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class BatchedMuon:
    """torch.optim.Muon with Nesterov momentum and `adjust_lr_fn="match_rms_adamw"`, for lists of equal shapes."""

    def __init__(self, parameters: Sequence[Tensor], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        self.param_groups: list[dict[str, Any]] = [{"lr": lr, "weight_decay": weight_decay}]
        self.momentum = momentum
        by_shape: dict[tuple[int, int], list[Tensor]] = {}
        for parameter in parameters:
            by_shape.setdefault((parameter.shape[0], parameter.shape[1]), []).append(parameter)
        self.stacks = list(by_shape.values())
        self.buffers = [torch.zeros((len(s), *s[0].shape), device=s[0].device) for s in self.stacks]

    @torch.no_grad()
    def step(self) -> None:
        """Every parameter needs its gradient."""
        (group,) = self.param_groups
        for stack, buffer in zip(self.stacks, self.buffers, strict=True):
            gradient = torch.stack([p.grad for p in stack if p.grad is not None])
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonalised(gradient.lerp(buffer, self.momentum)).to(buffer.dtype)
            rate = group["lr"] * 0.2 * max(stack[0].shape) ** 0.5
            torch._foreach_mul_(stack, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(stack, list(update.unbind()), alpha=-rate)

    def state_dict(self) -> dict[str, Any]:
        return {"buffers": list(self.buffers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for mine, saved in zip(self.buffers, state["buffers"], strict=True):
            mine.copy_(saved)
