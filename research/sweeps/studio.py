"""Renders picture sets along any sigmas in a genuine ComfyUI. Never a picture twice: what lies in the folder is left
alone, so a stopped run goes on where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from budgetfusion_nodes.core.schedule import SigmaQuantile, Sigmas
from budgetfusion_nodes.host.batch import render_batch
from budgetfusion_nodes.host.prefix_cache import PrefixCache, with_replay
from budgetfusion_nodes.host.sampling import get_sigmas
from budgetfusion_nodes.host.schedule import scheduler_quantile, stock_tail_end

from .picture_sets import BATCH, PictureSets, sigma_key
from .rendering import Renderer, Sampling

log = logging.getLogger(__name__)

KEPT_BYTES = 2**30
"""Of answers that runs share, in one batch."""


@dataclass
class Studio:
    """One model with its sampler, and the folder of its picture sets."""

    renderer: Renderer
    sets: PictureSets

    @property
    def model(self) -> Any:
        return self.renderer.loaded.model

    @property
    def sampling(self) -> Sampling:
        return self.renderer.sampling

    @property
    def quantile(self) -> SigmaQuantile:
        return scheduler_quantile(self.model, self.sampling.scheduler)

    @property
    def tail_end(self) -> float:
        return stock_tail_end(self.model, self.sampling.scheduler)

    def stock(self, steps: int, scheduler: str | None = None) -> Sigmas:
        """The own sigmas of a scheduler, that of the setting by default."""
        return get_sigmas(self.model, self.sampling.sampler_name, scheduler or self.sampling.scheduler, steps).numpy()

    def prepare(self, runs: Sequence[Sigmas]) -> None:
        """Renders what is not there yet, batch by batch, so that runs of one beginning share its evaluations."""
        rows = self.sets.rows
        for batch in self.sets.batches(len(self.sets.prompts.prompts)):
            missing = [sigmas for sigmas in runs if not self.sets.file(sigma_key(sigmas), batch).is_file()]
            texts, seeds = zip(*rows[batch * BATCH : (batch + 1) * BATCH], strict=True)
            cache = PrefixCache(limit=KEPT_BYTES)
            conditionings = self.renderer.encode(texts) if missing else []
            for place, sigmas in enumerate(missing):
                images, replayed = self.render_batch(conditionings, seeds, sigmas, cache)
                self.sets.save(sigma_key(sigmas), batch, images)
                told = (batch + 1, place + 1, len(missing), len(sigmas) - 1, replayed)
                log.info("batch %d, run %d of %d: %d steps, %d evaluations replayed", *told)

    def render_batch(
        self, conditionings: Sequence[Any], seeds: Sequence[int], sigmas: Sigmas, cache: PrefixCache
    ) -> tuple[Tensor, int]:
        """([B, 3, H, W] in [0, 1], evaluations taken from the cache)."""
        model, replay = with_replay(self.model, "batch", len(sigmas), cache)
        latents = self.latents(model, conditionings, seeds, sigmas)
        return self.renderer.images(latents), 0 if replay is None else replay.replayed

    def latents(self, model: Any, conditionings: Sequence[Any], seeds: Sequence[int], sigmas: Sigmas) -> Tensor:
        """[B, C, H, W] float32; each picture from its own seed's noise."""
        sampling = self.sampling
        return render_batch(
            model,
            conditionings,
            self.renderer.negative,
            seeds,
            len(sigmas) - 1,
            sampler_name=sampling.sampler_name,
            scheduler=sampling.scheduler,
            cfg=sampling.cfg,
            width=sampling.width,
            height=sampling.height,
            sigmas=torch.from_numpy(sigmas),
        ).float()
