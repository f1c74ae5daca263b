"""The search for a nested schedule in the host: pictures along any sigmas, and which prompts it is made on."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor

from ..core.errors import BudgetFusionError
from ..core.messages import Message, message
from ..core.schedule import STOCK, Sigmas
from ..host.memory import render_device
from ..host.prefix_cache import PrefixCache
from ..host.sampling import get_sigmas
from ..host.schedule import check_nestable, scheduler_quantile, stock_tail_end
from ..metrics.measure import Series, check_finite
from ..metrics.picture_sets import low_pass, power_spectrum
from .host_renderer import SHARED_BYTES, HostRenderer, failures
from .prompts import CalibrationPrompt, rendering_order
from .records import Encoded, Subject
from .search_stage import ENCODER, PLAIN, ScheduleSearch, SearchProgress, pairs, said, settled
from .search_store import Found, Look, SearchStore
from .spec import FEW_STEPS, SEARCHES, Spec
from .stopping import roles
from .store import Store
from .trajectory import twice

THUMBNAIL = 96
"""Pixels of the longer side of the pictures in the report."""


class HostLooker:
    """See `search_stage.Looker`."""

    def __init__(self, renderer: HostRenderer) -> None:
        """InputError where the scheduler's sigmas are no falling sequence."""
        self._renderer = renderer
        self.quantile = scheduler_quantile(renderer.graph.model, renderer.graph.scheduler)
        self.tail_end = stock_tail_end(renderer.graph.model, renderer.graph.scheduler)

    def stock(self, steps: int) -> Sigmas:
        graph = self._renderer.graph
        return get_sigmas(graph.model, graph.sampler_name, graph.scheduler, steps).numpy()

    def looks(
        self, text: str, seed: int, dense: Sigmas, runs: Sequence[Sigmas], kept: bytes | None
    ) -> Iterator[tuple[Sigmas, Look]]:
        shared = PrefixCache(SHARED_BYTES)
        series, look = twice(self._dense, shared, text, seed, dense, kept)
        if kept is None:
            yield dense, look
        for sigmas in runs:
            yield sigmas, twice(self._run, shared, text, seed, sigmas, dense, series)

    def _dense(
        self, shared: PrefixCache, text: str, seed: int, dense: Sigmas, kept: bytes | None, careful: bool
    ) -> tuple[Series, Look]:
        """What the other runs are measured against, and the dense run's own look with its latent."""
        with failures(careful):
            started = time.perf_counter()
            latent = load(kept)["samples"] if kept is not None else self._latent(shared, text, seed, dense, dense)
            picture = self._renderer.decode(latent)[:1]
            series = Series(picture, self._renderer.backends, self._renderer.metrics, render_device())
            return series, self._look(text, picture, series, started, save({"samples": latent.cpu().contiguous()}))

    def _run(
        self, shared: PrefixCache, text: str, seed: int, sigmas: Sigmas, dense: Sigmas, series: Series, careful: bool
    ) -> Look:
        with failures(careful):
            started = time.perf_counter()
            latent = self._latent(shared, text, seed, sigmas, dense)
            return self._look(text, self._renderer.decode(latent)[:1], series, started)

    def _latent(self, shared: PrefixCache, text: str, seed: int, sigmas: Sigmas, dense: Sigmas) -> Tensor:
        steps = len(sigmas) - 1
        # a run that leaves the dense one's first step would make the cache forget the rest of it
        prefix_steps = len(dense) - 1 if steps > 1 and sigmas[1] == dense[1] else 0
        return self._renderer.sample(shared, text, seed, steps, torch.from_numpy(sigmas), prefix_steps)[0]

    def _look(self, text: str, picture: Tensor, series: Series, started: float, latent: bytes | None = None) -> Look:
        """picture: [1, H, W, 3]."""
        found = series.add(picture)
        x = picture.movedim(-1, 1)
        features: dict[str, Tensor] = dict(zip(PLAIN, (low_pass(x), power_spectrum(x)), strict=True))
        if found.embeddings is not None:
            features[ENCODER] = found.embeddings
        check_finite(features)
        return Look(
            {metric: float(value) for metric, value in found.distances.items()} | self._renderer.score(text, [found]),
            float(found.decibel),
            {name: value[0].float().cpu().numpy() for name, value in features.items()},
            _thumbnail(picture[0]),
            latent,
            time.perf_counter() - started,
        )


def _thumbnail(picture: Tensor) -> bytes:
    """PNG of [H, W, 3] in [0, 1]."""
    image = Image.fromarray((picture.cpu() * 255.0).round().to(torch.uint8).numpy())
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


# ------------------------------------------------------------------------------------------------ before a calibration


@dataclass(frozen=True)
class Chosen:
    """What a calibration renders along, and why."""

    schedule: str
    """As a Setting holds it."""
    said: tuple[Message, ...] = ()
    found: Found | None = None
    pairs: tuple[tuple[bytes, bytes], ...] = ()
    """PNGs of the stock target and the nested one, same seed."""


def choose_schedule(
    store: Store,
    renderer: HostRenderer,
    subject: Subject,
    backends: dict[str, str],
    spec: Spec,
    prompts: Sequence[CalibrationPrompt],
    listen: Callable[[SearchProgress], None],
) -> Chosen:
    """The nested schedule of this model: found before, or looked for now; the stock one, and why, where there is none.

    subject: of the stock schedule.
    """
    if spec.levels_only:
        return Chosen(STOCK)
    if spec.target <= FEW_STEPS:
        return Chosen(STOCK, (message("calibrate_search_few_steps", target=spec.target),))
    try:
        check_nestable(renderer.graph.sampler_name)
        looker = HostLooker(renderer)
    except BudgetFusionError as error:
        return Chosen(STOCK, (error.message,))
    kept = SearchStore(store, store.setting_id(subject), store.backends_id(backends))
    found = kept.found()
    if found is None and spec.thoroughness not in SEARCHES:
        return Chosen(STOCK, (message("calibrate_search_quick"),))
    count, seeds = SEARCHES.get(spec.thoroughness, (0, 0))
    chosen = search_prompts(prompts, spec, renderer.encode, count)
    rows = [(store.prompt_id(renderer.encode(prompt.text), prompt.category), prompt) for prompt in chosen]
    if found is None or not settled(found, len(rows)):
        found = ScheduleSearch(kept, looker, rows, seeds, spec.target, listen).run()
    return Chosen(found.schedule, said(found), found, tuple(pairs(kept, found, rows)))


def search_prompts(
    prompts: Sequence[CalibrationPrompt], spec: Spec, encode: Callable[[str], Encoded], count: int
) -> list[CalibrationPrompt]:
    """Up to `count` that set no threshold later: those that the calibration does not render, then guide prompts."""
    if not count:
        return []
    order = rendering_order(prompts, spec.amount.prompts, lambda prompt: encode(prompt.text))
    used = set(order)
    others = [prompt for prompt in prompts if prompt not in used]
    shuffled = [others[i] for i in np.random.default_rng(1).permutation(len(others))]
    assigned = zip(order, roles(len(order), spec.amount.alone), strict=True)
    return [*shuffled, *(prompt for prompt, role in assigned if role == "train")][:count]
