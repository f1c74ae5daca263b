"""Which scheduler comes closest to its own limit image at equal steps: the measurement behind the default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from budgetfusion_nodes.core.curves import METRICS, validate_grid
from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.metrics.measure import Backends

from .prompts import PromptList
from .rendering import JUDGES, LoadedModel, Measured, Renderer, Report, Sampling

COLUMNS = (*METRICS, *JUDGES)
NEGLIGIBLE = 1e-6
"""Distances below this are rounding; logarithms of ratios stop there."""


@dataclass(frozen=True)
class Convergence:
    """Mean distances of n trajectories to the same scheduler's image at `target` steps."""

    grid: tuple[int, ...]
    """[K] counts, the target left out."""
    target: int
    trajectories: int
    distance: Mapping[str, Tensor]
    """Scheduler -> [K, C] in COLUMNS order."""
    limits_apart: Mapping[str, float]
    """Scheduler -> mean latent RMSE between its target image and the first scheduler's."""

    def scores(self) -> dict[str, float]:
        """Scheduler -> geometric mean, over counts and columns, of its distance over the mean of all schedulers.
        Below 1 converges better than the others."""
        logs = {name: value.double().clamp_min(NEGLIGIBLE).log() for name, value in self.distance.items()}
        mean = torch.stack(list(logs.values())).mean(0)
        return {name: float((value - mean).mean().exp()) for name, value in logs.items()}

    def best(self) -> str:
        scores = self.scores()
        return min(scores, key=scores.__getitem__)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {
            "target": self.target,
            "grid": list(self.grid),
            "trajectories": self.trajectories,
            "columns": list(COLUMNS),
            "distance": {name: value.tolist() for name, value in self.distance.items()},
            "relative": self.scores(),
            "limits_apart": dict(self.limits_apart),
            "best": self.best(),
        }

    def table(self) -> str:
        lines = [
            f"Mean distance of {self.trajectories} trajectories to the same scheduler's image at {self.target} steps",
            f"{'steps':>6} {'scheduler':<18}" + "".join(f"{name:>13}" for name in COLUMNS),
        ]
        for k, steps in enumerate(self.grid):
            for name, value in self.distance.items():
                lines.append(f"{steps:>6} {name:<18}" + "".join(f"{x:>13.5f}" for x in value[k].tolist()))
        scores = self.scores()
        lines += [
            f"{name:<18} relative distance {scores[name]:.3f}, its limit image lies "
            f"{self.limits_apart[name]:.4f} (latent RMSE) from that of {next(iter(scores))}"
            for name in sorted(scores, key=scores.__getitem__)
        ]
        return "\n".join([*lines, f"Converges best: {self.best()}"])


def compare_schedulers(
    loaded: LoadedModel,
    sampling: Sampling,
    backends: Backends,
    prompts: PromptList,
    schedulers: Sequence[str],
    grid: Sequence[int],
    target: int = 200,
    batch: int = 32,
    report: Report | None = None,
) -> Convergence:
    """One trajectory for each prompt (its first seed), with every scheduler at every count."""
    counts = validate_grid([*grid, target])
    if not schedulers or not prompts.prompts:
        raise InputError("convergence: at least one scheduler and one prompt are needed.")
    distance: dict[str, Tensor] = {}
    targets: dict[str, Tensor] = {}
    for scheduler in schedulers:
        renderer = Renderer(loaded, replace(sampling, scheduler=scheduler), backends)
        parts: list[Measured] = []
        last: list[Tensor] = []
        for start in range(0, len(prompts.prompts), batch):
            chosen = prompts.prompts[start : start + batch]
            seeds = [prompt.seeds[0] for prompt in chosen]
            latents = renderer.latents(renderer.encode([prompt.text for prompt in chosen]), seeds, counts, report)
            parts.append(renderer.measure(latents, renderer.images(latents)))
            last.append(latents[:, -1])
        columns = torch.cat([torch.cat([part.shortfall, part.judges], dim=-1) for part in parts])  # [n, K + 1, C]
        distance[scheduler], targets[scheduler] = columns[:, :-1].mean(0), torch.cat(last)
    first = targets[schedulers[0]]
    apart = {name: float((x - first).square().mean(dim=(1, 2, 3)).sqrt().mean()) for name, x in targets.items()}
    return Convergence(counts[:-1], target, len(prompts.prompts), distance, apart)
