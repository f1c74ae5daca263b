"""The optimiser of the generators: Muon for the weight matrices of the denoiser, AdamW for everything else.

Muon (Jordan et al. 2024; torch.optim.Muon) orthogonalises each matrix's momentum, which is meant to make more of few
steps than AdamW does. Its cost does not shrink with the batch, so processes that train together share the matrices.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from .muon import BatchedMuon

LEAST_SIDE = 32
"""Smaller matrices, embeddings, the first and the last layer are AdamW's, as Muon's authors advise."""


def _is_muons(name: str, parameter: Tensor) -> bool:
    if name.startswith("denoiser.joint_blocks."):  # Tiny Scenes Flow
        return parameter.ndim == 2
    if (
        not name.startswith("unet.")
        or parameter.ndim < 2
        or name.startswith(("unet.input_blocks.0.", "unet.out.", "unet.pixel_head."))
    ):
        return False
    return min(parameter.shape[0], parameter[0].numel()) >= LEAST_SIDE


class GeneratorOptimiser:
    """`step(learning_rate)` after the gradients are averaged. `rank` of `world` updates its part of the matrices.

    `batched` updates matrices of one shape together: on a GPU one by one takes longer than the rest of the step.
    """

    def __init__(
        self,
        model: nn.Module,
        weight_decay: float,
        rank: int = 0,
        world: int = 1,
        muon_factor: float = 1.0,
        *,
        batched: bool = False,
    ) -> None:
        self.muon_factor = muon_factor
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        muons = [p for name, p in named if _is_muons(name, p)]
        others = [p for name, p in named if not _is_muons(name, p)]
        self.rank, self.world = rank, world
        # Largest first and in turn, so that every process has about the same work.
        ordered = sorted(range(len(muons)), key=lambda i: (-muons[i].numel(), i))
        self.parts = [[muons[i] for i in ordered[owner::world]] for owner in range(world)]
        # torch.optim.Muon takes matrices only: flat views of the convolutions share their memory.
        self.views = [nn.Parameter(p.data.view(p.shape[0], -1)) for p in self.parts[rank]]
        self.muon: torch.optim.Muon | BatchedMuon = (
            BatchedMuon(self.views, lr=1e-3, weight_decay=weight_decay)
            if batched
            else torch.optim.Muon(self.views, lr=1e-3, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        )
        decayed = [p for p in others if p.ndim > 1]
        plain = [p for p in others if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=True)

    def zero_grad(self) -> None:
        for part in self.parts:
            for parameter in part:
                parameter.grad = None
        self.adamw.zero_grad(set_to_none=True)

    def step(self, learning_rate: float) -> None:
        for optimiser, factor in ((self.muon, self.muon_factor), (self.adamw, 1.0)):
            for group in optimiser.param_groups:
                group["lr"] = factor * learning_rate
        for view, parameter in zip(self.views, self.parts[self.rank], strict=True):
            view.grad = None if parameter.grad is None else parameter.grad.reshape(view.shape)
        self.muon.step()
        self.adamw.step()
        self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Every process gets the matrices that the others updated."""
        if self.world == 1:
            return
        for owner, part in enumerate(self.parts):
            flat = torch.cat([p.data.flatten() for p in part])
            torch.distributed.broadcast(flat, owner)
            for parameter, values in zip(part, flat.split([p.numel() for p in part]), strict=True):
                parameter.data.copy_(values.view_as(parameter))

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])
