"""What the benchmark renders and times. A cache and dpm_adaptive decide for a whole batch, as in an artist's batch.

Seconds are of one picture alone, those of one CPU core (the process's own time), so that other programs do not count.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.files import in_one_piece
from budgetfusion_nodes.core.schedule import NestedSchedule, Sigmas
from budgetfusion_nodes.host.batch import empty_latent, stack_conditionings
from budgetfusion_nodes.host.conditioning import extract
from budgetfusion_nodes.host.sampling import get_sigmas
from research.options import WEIGHTS
from research.sweeps.picture_sets import BATCH, PictureSets, sigma_key, word_key
from research.sweeps.prompts import PromptList
from research.sweeps.rendering import Renderer, Sampling, identify, load_model
from research.sweeps.studio import Studio

from . import settings
from .catalogue import NESTED, STOCK, Catalogue, Method, save_conditioning
from .settings import BenchSetting, Cached

log = logging.getLogger(__name__)

CACHE_START, CACHE_END = 0.15, 0.95
"""The cache nodes' defaults: where in the run they may skip."""
ADAPTIVE_ATOL = 0.0078 / 0.05
"""atol over rtol, as in the host's defaults of dpm_adaptive."""


@dataclass
class Counted:
    """Pictures that went through a network."""

    inside: int = 0
    """By a wrapper inside the network's own, where a cache is that skips it."""
    around: int = 0

    @property
    def pictures(self) -> int:
        """Networks that run no wrappers of their own (the host's MMDiT of SD3) have no cache inside either."""
        return self.inside or self.around


def open_studio(setting: BenchSetting, sets: PictureSets, host: Path, base: Path) -> Studio:
    """Loads the model through the host's own loader; one host a process."""
    loaded = load_model(host, base, WEIGHTS / "checkpoints" / setting.checkpoint, fp32=True)
    sets.folder.mkdir(parents=True, exist_ok=True)
    return Studio(Renderer(loaded, Sampling(setting.sampler_name, setting.scheduler, setting.cfg)), sets)


# ----------------------------------------------------------------------------------------------------------- schedules


def nested_schedule(text: str, tail_end: float) -> NestedSchedule:
    """`5@1.0` with the scheduler's own tail, or a whole text as a Setting holds it."""
    try:
        schedule = NestedSchedule.from_text(text if text.startswith(NESTED) else f"{NESTED} {text}")
    except InputError as error:
        raise InputError(f"--nested: {text!r} is no nested schedule. Give steps@sigma, for example 5@1.0.") from error
    if schedule is None:
        raise InputError(f"--nested: {text!r} is no nested schedule. Give steps@sigma, for example 5@1.0.")
    return schedule if text.startswith(NESTED) else replace(schedule, tail_end=tail_end)


def schedule_runs(studio: Studio, nested: NestedSchedule) -> dict[tuple[str, int], Sigmas]:
    """(family, steps) -> sigmas of the sets that the benchmark wants, and of others that are already there."""
    prefix, everything = nested.prefix_steps, range(2, settings.LARGEST_COUNT + 1)
    wanted = {STOCK: settings.STOCK_COUNTS, NESTED: (*(prefix + m for m in settings.TAILS), settings.TARGET)}
    make: Mapping[str, Callable[[int], Sigmas]] = {
        STOCK: studio.stock,
        NESTED: lambda n: nested.sigmas(n, studio.quantile),
    }
    runs: dict[tuple[str, int], Sigmas] = {}
    for family, sigmas_of in make.items():
        for steps in everything:
            if family == NESTED and steps <= prefix:
                continue
            sigmas = sigmas_of(steps)
            if steps in wanted[family] or studio.sets.file(sigma_key(sigmas), 0).is_file():
                runs[family, steps] = sigmas
    return runs


def peer_runs(studio: Studio, setting: BenchSetting) -> dict[tuple[str, int], Sigmas]:
    """(family, steps) -> sigmas of every other scheduler and of the host's tables."""
    known = importlib.import_module("comfy.samplers").KSampler.SCHEDULERS
    runs: dict[tuple[str, int], Sigmas] = {}
    for steps in settings.PEER_COUNTS:
        for scheduler in settings.SCHEDULERS:
            if scheduler in known and scheduler != setting.scheduler:
                runs[scheduler, steps] = studio.stock(steps, scheduler)
        for table in settings.TABLES[setting.noise]:
            node = getattr(importlib.import_module(f"comfy_extras.{table.module}"), table.node)
            runs[table.family, steps] = node.execute(*table.arguments, steps, 1.0).args[0].numpy()
    return runs


def make_catalogue(
    studio: Studio, setting: BenchSetting, nested: NestedSchedule, unusable: Mapping[str, str] | None = None
) -> Catalogue:
    """Writes the catalogue and the prompts' conditioning. unusable: peer -> reason; None: what was found before."""
    runs = {**schedule_runs(studio, nested), **peer_runs(studio, setting)}
    methods = [_method(family, steps, sigmas) for (family, steps), sigmas in runs.items()]
    for cached in settings.CACHED:
        steps = cached.steps or len(studio.stock(settings.TARGET)) - 1
        methods.append(Method(cached.family, cached.label, steps, _cached_key(cached, nested)))
    made_with = {"host": studio.renderer.loaded.host_version, "torch": torch.__version__, "device": "CPU, fp32"}
    identity = identify(studio.renderer.loaded, studio.sampling)
    if unusable is None:
        unusable = _known_unusable(studio.sets.folder)
    catalogue = Catalogue(identity, nested.to_text(), tuple(methods), made_with, unusable)
    catalogue.save(studio.sets.folder)
    _save_conditioning(studio)
    return catalogue


def _known_unusable(folder: Path) -> Mapping[str, str]:
    try:
        return Catalogue.load(folder).unusable
    except InputError:
        return {}


def _method(family: str, steps: int, sigmas: Sigmas) -> Method:
    taken = len(sigmas) - 1
    return Method(family, str(steps), taken, sigma_key(sigmas), float(taken))


def _save_conditioning(studio: Studio) -> None:
    found = [extract(c)[:2] for c in studio.renderer.encode([p.text for p in studio.sets.prompts.prompts])]
    tokens = np.stack([t.float().numpy() for t, _ in found])
    pooled = np.stack([np.zeros(0, np.float32) if p is None else p.float().numpy() for _, p in found])
    save_conditioning(studio.sets.folder, tokens, pooled)


# --------------------------------------------------------------------------------------------------------------- peers


def _cached_key(cached: Cached, nested: NestedSchedule) -> str:
    return word_key(cached.family, cached.label, nested.to_text() if cached.nested else STOCK)


def render_peers(studio: Studio, setting: BenchSetting, nested: NestedSchedule, prompts: int) -> dict[str, str]:
    """All peers on the first prompts. Gives peer -> reason for those that fail with this model."""
    few = PromptList(studio.sets.prompts.prompts[:prompts], studio.sets.prompts.source)
    small = replace(studio, sets=replace(studio.sets, prompts=few))
    small.prepare(list(peer_runs(small, setting).values()))
    unusable: dict[str, str] = {}
    for cached in settings.CACHED:
        try:
            _render_cached(small, cached, nested)
        except (RuntimeError, TypeError, ImportError, InputError) as error:
            unusable[f"{cached.family} {cached.label}"] = str(error).splitlines()[0]
            log.warning("%s fails with this model: %s", cached.family, error)
    return unusable


def _render_cached(studio: Studio, cached: Cached, nested: NestedSchedule) -> None:
    key = _cached_key(cached, nested)
    for batch in studio.sets.batches(len(studio.sets.prompts.prompts)):
        if studio.sets.file(key, batch).is_file():
            continue
        texts, seeds = zip(*studio.sets.rows[batch * BATCH : (batch + 1) * BATCH], strict=True)
        latents, evaluations = run_cached(studio, cached, nested, studio.renderer.encode(texts), seeds)
        studio.sets.save(key, batch, studio.renderer.images(latents), [float(evaluations)] * len(seeds))
        log.info("%s %s, batch %d: %d evaluations", cached.family, cached.label, batch + 1, evaluations)


def run_cached(
    studio: Studio, cached: Cached, nested: NestedSchedule, conditionings: Sequence[Any], seeds: Sequence[int]
) -> tuple[Tensor, int]:
    """(latents [B, C, H, W], evaluations that really ran)."""
    if cached.node is None:
        model, counted = counting(studio.model)
        latents = _adaptive(studio, model, conditionings, seeds, cached.threshold)
        return latents, _evaluations(counted.pictures, studio, seeds)
    module = importlib.import_module("comfy_extras.nodes_easycache")
    given = (cached.threshold, CACHE_START, CACHE_END, False)
    model, counted = counting(getattr(module, f"{cached.node}Node").execute(studio.model, *given).args[0])
    sigmas = nested.sigmas(cached.steps, studio.quantile) if cached.nested else studio.stock(cached.steps)
    latents = studio.latents(model, conditionings, seeds, sigmas)
    return latents, _evaluations(counted.pictures, studio, seeds)


def _evaluations(pictures: int, studio: Studio, seeds: Sequence[int]) -> int:
    """Of each seed; with a cfg the network sees every picture twice."""
    return round(pictures / (len(seeds) * (1 if studio.sampling.cfg == 1.0 else 2)))


def _adaptive(studio: Studio, model: Any, conditionings: Sequence[Any], seeds: Sequence[int], rtol: float) -> Tensor:
    """dpm_adaptive as the host's node for it sets it up."""
    samplers, sample = importlib.import_module("comfy.samplers"), importlib.import_module("comfy.sample")
    sampler = samplers.ksampler("dpm_adaptive", {"rtol": rtol, "atol": rtol * ADAPTIVE_ATOL})
    sigmas = get_sigmas(model, "dpm_adaptive", studio.sampling.scheduler, 20)
    empty = empty_latent(model, 1, studio.sampling.width, studio.sampling.height)
    noise = torch.cat([sample.prepare_noise(empty, seed) for seed in seeds])
    prompts = (stack_conditionings(conditionings), studio.renderer.negative)
    given = (noise, studio.sampling.cfg, sampler, sigmas, *prompts, torch.zeros_like(noise))
    with torch.inference_mode():
        return sample.sample_custom(model, *given, disable_pbar=True, seed=seeds[0]).float().clone()


def counting(model: Any) -> tuple[Any, Counted]:
    """A clone that counts the pictures that really go through the network, and the counts. Added last, so that it sits
    inside a cache (tests count what a cache saves). Pictures and not calls: cond and uncond of one batch are one call
    where memory allows it, else two."""
    kinds = importlib.import_module("comfy.patcher_extension").WrappersMP
    found = Counted()

    def inside(executor: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
        found.inside += x.shape[0]
        return executor(x, *args, **kwargs)

    def around(executor: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
        found.around += x.shape[0]
        return executor(x, *args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(kinds.DIFFUSION_MODEL, "budgetfusion_count", inside)
    clone.add_wrapper_with_key(kinds.APPLY_MODEL, "budgetfusion_count", around)
    return clone, found


# -------------------------------------------------------------------------------------------------------------- seconds


def time_methods(studio: Studio, nested: NestedSchedule) -> None:
    """Writes seconds.json: method -> median seconds of one picture on one core; "stock N" for a few N, from which a
    line gives every other count. The order is drawn anew for each prompt, after one render that loads the model."""
    cached = {f"{c.family} {c.label}": c for c in settings.CACHED}
    sigmas = {f"{STOCK} {steps}": studio.stock(steps) for steps in settings.TIMED_COUNTS}
    laps: dict[str, list[float]] = {name: [] for name in (*sigmas, *cached)}
    rows = studio.sets.rows[:: studio.sets.seeds][: settings.TIMED_PROMPTS]
    for text, seed in [rows[0], *rows]:
        conditioning = studio.renderer.encode([text])
        for name in np.random.default_rng(seed).permutation(list(laps)).tolist():
            started = time.process_time()
            if name in sigmas:
                studio.latents(studio.model, conditioning, [seed], sigmas[name])
            else:
                with contextlib.suppress(RuntimeError, TypeError, ImportError, InputError):
                    run_cached(studio, cached[name], nested, conditioning, [seed])
            laps[name].append(time.process_time() - started)
    found = {name: float(np.median(values[1:])) for name, values in laps.items()}
    with in_one_piece(studio.sets.folder / "seconds.json") as partial:
        partial.write_text(json.dumps(found, indent=1), encoding="utf-8")
