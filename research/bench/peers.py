"""The planner beside what the host offers: fixed counts, other schedules, dpm_adaptive, EasyCache and LazyCache.

All of them render the same prompts from the same noise in one genuine host, one picture at a time as an artist does, in
an order that is drawn anew for each prompt. Costs: denoiser evaluations that really ran, and seconds around the
host's own call (planning included for ours). Distances are to a render of many steps, near the limit that all of these
solvers approach, and to the full-step image of our own setting.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from budgetfusion_nodes.core.curves import FloatArray, worst
from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.files import in_one_piece
from budgetfusion_nodes.host.conditioning import extract
from budgetfusion_nodes.host.sampling import get_sigmas
from budgetfusion_nodes.metrics.measure import Backends
from budgetfusion_nodes.predictor.planner import Planner
from research.statistics.bootstrap import LEVELS, bootstrap, draws
from research.statistics.frontier import cost_at_distance
from research.sweeps.prompts import StudyPrompt
from research.sweeps.rendering import JUDGES, LoadedModel, Renderer, Sampling, measure_trajectories
from research.tiny_scenes_training.classifier import SceneClassifier

from .scene_judge import scene_from_key, share_wrong

log = logging.getLogger(__name__)

OURS, OURS_CACHED = "ours", "ours + EasyCache"
FIXED = "stock KSampler"
COMBINED_THRESHOLD = 0.1
PROBE_STEPS = 20
CACHES = ("EasyCache", "LazyCache")
SCHEDULERS = ("karras", "normal", "sgm_uniform", "beta", "kl_optimal", "exponential", "simple")


@dataclass(frozen=True)
class Variant:
    """One setting of one family."""

    family: str
    label: str
    kind: str
    """"steps", "adaptive" or "plan"."""
    steps: int = 0
    scheduler: str | None = None
    """None: the planner's own."""
    cache: str | None = None
    """"EasyCache" or "LazyCache"."""
    threshold: float = 0.0
    """Of the cache, or rtol of dpm_adaptive, or the quality of a plan."""
    cache_threshold: float = COMBINED_THRESHOLD
    """Of the cache on top of a plan."""

    @property
    def name(self) -> str:
        return f"{self.family} {self.label}"


def variants(target: int, quick: bool, own_scheduler: str) -> tuple[Variant, ...]:
    """Everything that is compared; fewer settings of each family in the quick run."""
    counts = (10, 15, 20, 30, target) if quick else (6, 8, 10, 12, 15, 20, 30, target)
    cached = {target: (0.05, 0.2), 20: (0.2,)} if quick else {target: (0.05, 0.1, 0.2, 0.5), 20: (0.05, 0.2)}
    tolerances = (0.05,) if quick else (0.01, 0.05, 0.2, 0.5)
    qualities = (0.8, 0.9, 0.95) if quick else (0.7, 0.8, 0.85, 0.9, 0.95, 0.97)
    schedulers = ("normal", "beta") if quick else SCHEDULERS
    schedule_counts = (15,) if quick else (10, 20)
    found = [Variant(FIXED, f"{n}", "steps", n) for n in dict.fromkeys(counts)]
    for cache in CACHES:
        for steps, thresholds in cached.items():
            found += [Variant(cache, f"{t:g} at {steps}", "steps", steps, cache=cache, threshold=t) for t in thresholds]
    found += [Variant("dpm_adaptive", f"rtol {t:g}", "adaptive", threshold=t) for t in tolerances]
    for scheduler in schedulers:
        if scheduler != own_scheduler:
            found += [Variant(f"schedule {scheduler}", f"{n}", "steps", n, scheduler) for n in schedule_counts]
    found += [Variant(OURS, f"q {q:g}", "plan", threshold=q) for q in qualities]
    found += [Variant(OURS_CACHED, f"q {q:g}", "plan", threshold=q, cache="EasyCache") for q in qualities]
    return tuple(found)


@dataclass
class Bench:
    """A loaded model and everything to judge with. One host a process."""

    loaded: LoadedModel
    sampling: Sampling
    planner: Planner
    backends: Backends
    classifier: SceneClassifier
    risk: float = 0.1
    limit_steps: int = 200
    renderer: Renderer = field(init=False)

    def __post_init__(self) -> None:
        if self.sampling.dtype != "fp32":
            self.sampling = replace(self.sampling, dtype="fp32")  # as an artist's KSampler runs it
        self.renderer = Renderer(self.loaded, self.sampling, self.backends)
        self.per_evaluation = self._calls_of(10) / 10.0

    def _calls_of(self, steps: int) -> int:
        model, calls = counting(self.loaded.model)
        (positive,) = self.renderer.encode(["a red star"])
        self.stock(model, positive, 0, steps, self.sampling.scheduler)
        return calls[0]

    def usable(self, chosen: Sequence[Variant]) -> tuple[tuple[Variant, ...], dict[str, str]]:
        """The variants whose cache runs with this model, and for each other cache why it does not."""
        (positive,) = self.renderer.encode(["a red star"])
        reasons: dict[str, str] = {}
        for cache in dict.fromkeys(v.cache for v in chosen if v.cache is not None):
            try:
                self.stock(
                    cached_model(self.loaded.model, cache, 0.2), positive, 0, PROBE_STEPS, self.sampling.scheduler
                )
            except (RuntimeError, TypeError, InputError) as error:
                reasons[cache] = f"{cache} fails with this model in this host: {str(error).splitlines()[0]}"
                log.warning("%s", reasons[cache])
        return tuple(v for v in chosen if v.cache not in reasons), reasons

    def stock(self, model: Any, positive: Any, seed: int, steps: int, scheduler: str) -> Tensor:
        """The host's KSampler."""
        nodes, s = importlib.import_module("nodes"), self.sampling
        with torch.inference_mode(), without_progress_bars():
            (latent,) = nodes.common_ksampler(
                model, seed, steps, s.cfg, s.sampler_name, scheduler, positive, self.renderer.negative, self.empty()
            )
        return latent["samples"].float().clone()

    def adaptive(self, model: Any, positive: Any, seed: int, tolerance: float) -> Tensor:
        """dpm_adaptive as SamplerDPMAdaptative makes it, atol in the host's default proportion to rtol."""
        samplers, sample = importlib.import_module("comfy.samplers"), importlib.import_module("comfy.sample")
        sampler = samplers.ksampler("dpm_adaptive", {"rtol": tolerance, "atol": tolerance * 0.0078 / 0.05})
        sigmas = get_sigmas(model, "dpm_adaptive", self.sampling.scheduler, 20)
        with torch.inference_mode():
            latent = sample.fix_empty_latent_channels(model, self.empty()["samples"])
            noise = sample.prepare_noise(latent, seed)
            found = sample.sample_custom(
                model,
                noise,
                self.sampling.cfg,
                sampler,
                sigmas,
                positive,
                self.renderer.negative,
                latent,
                disable_pbar=True,
                seed=seed,
            )
        return found.float().clone()

    def empty(self) -> dict[str, Tensor]:
        from budgetfusion_nodes.host.batch import empty_latent

        return {"samples": empty_latent(self.loaded.model, 1, self.sampling.width, self.sampling.height)}

    def render(self, variant: Variant, positive: Any, seed: int) -> tuple[Tensor, dict[str, float]]:
        """The latent [1, C, H, W], and {"nfe", "seconds", "steps"}."""
        cached = cached_model(self.loaded.model, variant.cache, self._cache_threshold(variant))
        model, calls = counting(cached)
        scheduler = variant.scheduler or self.sampling.scheduler
        started = time.perf_counter()
        steps = variant.steps
        if variant.kind == "plan":
            tokens, pooled, _ = extract(positive)
            steps = self.planner.plan(
                tokens, pooled, quality=variant.threshold, risk=self.risk, max_steps=self.planner.target_steps
            ).steps
        if variant.kind == "adaptive":
            latent = self.adaptive(model, positive, seed, variant.threshold)
        else:
            latent = self.stock(model, positive, seed, steps, scheduler)
        seconds = time.perf_counter() - started
        return latent, {"nfe": calls[0] / self.per_evaluation, "seconds": seconds, "steps": float(steps)}

    @staticmethod
    def _cache_threshold(variant: Variant) -> float:
        return variant.cache_threshold if variant.kind == "plan" else variant.threshold

    def measure(
        self, prompt: StudyPrompt, latents: Sequence[Tensor], limit: Tensor, target: Tensor
    ) -> list[dict[str, float]]:
        """Judges of each latent against both references, its quality, and what the scene classifier says."""
        images = self.renderer.images(torch.stack([*latents, limit, target], dim=1))  # [1, V + 2, 3, H, W]
        stacked = torch.stack([*latents, limit, target], dim=1)
        to_target = measure_trajectories(stacked, images, self.backends)
        swapped = [*range(len(latents)), len(latents) + 1, len(latents)]
        to_limit = measure_trajectories(stacked[:, swapped], images[:, swapped], self.backends)
        short = worst(to_target.shortfall[0].double().numpy(), self.planner.scale)
        wrong = share_wrong(self.classifier, scene_from_key(prompt.key), images[0, : len(latents)])
        rows = []
        for v in range(len(latents)):
            row = {
                "quality": float(np.clip(1.0 - short[v], 0.0, 1.0)),
                "shortfall": float(short[v]),
                "scene_wrong": wrong[v],
            }
            for j, name in enumerate(JUDGES):
                row[f"{name} to target"] = float(to_target.judges[0, v, j])
                row[f"{name} to limit"] = float(to_limit.judges[0, v, j])
            rows.append(row)
        return rows


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """The host's own bars would drown the benchmark's."""
    utils: Any = importlib.import_module("comfy.utils")
    before = utils.PROGRESS_BAR_ENABLED
    utils.PROGRESS_BAR_ENABLED = False
    try:
        yield
    finally:
        utils.PROGRESS_BAR_ENABLED = before


def counting(model: Any) -> tuple[Any, list[int]]:
    """A clone that counts the network calls that really run, and the count. Added last, so that it sits inside a cache
    (tests count the calls that a cache saves)."""
    kinds = importlib.import_module("comfy.patcher_extension").WrappersMP
    calls = [0]

    def count(executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return executor(*args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(kinds.DIFFUSION_MODEL, "budgetfusion_count", count)
    return clone, calls


def cached_model(model: Any, cache: str | None, threshold: float) -> Any:
    """The host's own EasyCache or LazyCache node applied to the model, its other inputs at their defaults."""
    if cache is None:
        return model
    try:
        module = importlib.import_module("comfy_extras.nodes_easycache")
    except ImportError as error:
        raise InputError(f"This ComfyUI has no {cache} node. Compare with a newer one.") from error
    node = getattr(module, f"{cache}Node")
    return node.execute(model, threshold, 0.15, 0.95, False).args[0]


# ------------------------------------------------------------------------------------------------------------ running


def run_prompts(
    bench: Bench,
    chosen: Sequence[Variant],
    prompts: Sequence[StudyPrompt],
    folder: Path,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """One JSON file for each prompt, so that a stopped run goes on. Gives their contents."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [variant.name for variant in chosen]
    found = []
    warmed = False
    for place, prompt in enumerate(prompts):
        path = folder / f"{place:04d}.json"
        result = _read(path, names, prompt.text)
        if result is None:
            if not warmed:
                bench.render(chosen[0], bench.renderer.encode([prompt.text])[0], 0)  # the first call loads the model
                warmed = True
            result = run_prompt(bench, chosen, prompt, np.random.default_rng([seed, place]))
            with in_one_piece(path) as partial:
                partial.write_text(json.dumps(result), encoding="utf-8")
        found.append(result)
        if progress is not None:
            progress(1)
    return found


def _read(path: Path, names: Sequence[str], text: str) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if content.get("text") == text and list(content.get("variants", {})) == list(names) else None


def run_prompt(
    bench: Bench, chosen: Sequence[Variant], prompt: StudyPrompt, rng: np.random.Generator
) -> dict[str, Any]:
    (positive,) = bench.renderer.encode([prompt.text])
    seed, scheduler = prompt.seeds[0], bench.sampling.scheduler
    limit = bench.stock(bench.loaded.model, positive, seed, bench.limit_steps, scheduler)
    target = bench.stock(bench.loaded.model, positive, seed, bench.planner.target_steps, scheduler)
    rendered: dict[str, tuple[Tensor, dict[str, float]]] = {}
    for i in rng.permutation(len(chosen)):
        rendered[chosen[i].name] = bench.render(chosen[i], positive, seed)
    judged = bench.measure(prompt, [rendered[variant.name][0] for variant in chosen], limit, target)
    return {
        "text": prompt.text,
        "variants": {v.name: {**rendered[v.name][1], **row} for v, row in zip(chosen, judged, strict=True)},
    }


# ------------------------------------------------------------------------------------------------------------ figures

COSTS = ("nfe", "seconds")
NEVER = 1e9
JUDGED = tuple(f"{name} to limit" for name in JUDGES)


def summarise(
    results: Sequence[Mapping[str, Any]], chosen: Sequence[Variant], seed: int, quality: float
) -> dict[str, Any]:
    """Means with intervals for each variant, and each family's cost at our judged quality. JSON-safe."""
    columns = list(results[0]["variants"][chosen[0].name])
    table = {
        variant.name: {
            c: np.array([r["variants"][variant.name][c] for r in results], dtype=np.float64) for c in columns
        }
        for variant in chosen
    }
    return {
        "prompts": len(results),
        "variants": {
            variant.name: {
                "family": variant.family,
                "label": variant.label,
                **{column: bootstrap(table[variant.name][column], seed) for column in columns},
            }
            for variant in chosen
        },
        "at_our_quality": families_at_our_quality(table, chosen, seed, quality),
        "at_their_quality": ours_at_each_quality(table, chosen, seed),
    }


Table = Mapping[str, Mapping[str, FloatArray]]
"""Variant -> column -> [P], one value a prompt."""


def families_at_our_quality(table: Table, chosen: Sequence[Variant], seed: int, quality: float) -> list[dict[str, Any]]:
    """For each family, cost and judge: our cost over what the family needs for our mean distance (below 1: ours is
    cheaper). The interval draws prompts anew. "ours + EasyCache" is put beside EasyCache alone and ours alone."""
    families = list(dict.fromkeys(variant.family for variant in chosen))
    pairs = [(OURS, family) for family in families if family not in (OURS, OURS_CACHED)]
    if OURS_CACHED in families:
        pairs += [(OURS_CACHED, family) for family in (OURS, "EasyCache") if family in families]
    found = []
    for mine, other in pairs:
        plan = min((v for v in chosen if v.family == mine), key=lambda v: abs(v.threshold - quality))
        members = [v.name for v in chosen if v.family == other]
        for cost in COSTS:
            for judge in JUDGED:
                ratio = _reach(table, plan.name, members, cost, judge, seed, invert=True)
                found.append({"ours": mine, "peer": other, "cost": cost, "judge": judge, **ratio})
    return found


def ours_at_each_quality(table: Table, chosen: Sequence[Variant], seed: int) -> list[dict[str, Any]]:
    """For each setting of a peer, cost and judge: what ours needs for its mean distance, over its cost."""
    found = []
    for mine in (OURS, OURS_CACHED):
        members = [v.name for v in chosen if v.family == mine]
        peers = [v for v in chosen if v.family not in (OURS, OURS_CACHED)] if members else []
        for peer in peers:
            for cost in COSTS:
                for judge in JUDGED:
                    ratio = _reach(table, peer.name, members, cost, judge, seed)
                    found.append({"ours": mine, "peer": peer.name, "cost": cost, "judge": judge, **ratio})
    return found


def _reach(
    table: Table, wanted: str, members: Sequence[str], cost: str, judge: str, seed: int, invert: bool = False
) -> dict[str, Any]:
    """The cost of the family `members` at the mean distance of `wanted`, over the cost of `wanted`; or its inverse."""
    own_cost, own_distance = table[wanted][cost], table[wanted][judge]
    costs = np.stack([table[name][cost] for name in members])  # [V, P]
    distances = np.stack([table[name][judge] for name in members])

    def one(rows: Any) -> tuple[float | None, str]:
        reached = cost_at_distance(
            costs[:, rows].mean(axis=1), distances[:, rows].mean(axis=1), float(own_distance[rows].mean())
        )
        if reached.cost is None:
            return None, reached.bound
        ratio = reached.cost / float(own_cost[rows].mean())
        return (1.0 / ratio if invert else ratio), reached.bound

    value, bound = one(np.arange(len(own_cost)))
    never = 0.0 if invert else NEVER
    ratios = [never if ratio is None else ratio for ratio, _ in (one(rows) for rows in draws(len(own_cost), seed, 200))]
    low, high = (float(x) for x in np.quantile(ratios, LEVELS))
    return {
        "cost_there": float(own_cost.mean()),
        "distance": float(own_distance.mean()),
        "ratio": value,
        "low": low if low < NEVER else None,
        "high": high if high < NEVER else None,
        "bound": bound,
    }
