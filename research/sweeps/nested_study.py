"""Nested against stock schedules on Tiny Scenes: commit point, tails, prefixes, and what each count is worth.

Every set of renders is kept under the work folder and never made twice.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from budgetfusion_nodes.calibration.schedule_search import Measure
from budgetfusion_nodes.core.curves import METRICS, FloatArray
from budgetfusion_nodes.core.schedule import Sigmas
from budgetfusion_nodes.host.batch import stack_conditionings
from budgetfusion_nodes.host.prefix_cache import PrefixCache
from budgetfusion_nodes.metrics.l_snr import l_snr
from budgetfusion_nodes.metrics.measure import Backends, measure
from budgetfusion_nodes.tiny_scenes.scenes import Scene
from research.statistics.variance import prompt_share
from research.tiny_scenes_training.classifier import SceneClassifier
from research.tiny_scenes_training.scene_check import scene_from_key, share_wrong

from .picture_sets import BATCH, sigma_key
from .prompts import PromptList
from .studio import KEPT_BYTES, Studio

log = logging.getLogger(__name__)

DENSE_STEPS = 50
WRONG_TOLERANCE = 0.01
L_SNR_TOLERANCE = 0.1
"""dB."""
KID_TOLERANCE = 0.01
"""In the encoder's features; sets of different seeds at 50 steps are 0 apart."""


@dataclass
class Study(Studio):
    """Renders of the same prompts and seeds along any sigmas, and what they are measured by."""

    classifier: SceneClassifier
    backends: Backends

    @property
    def prompts(self) -> PromptList:
        return self.sets.prompts

    @property
    def scenes(self) -> list[Scene]:
        """[N] what each render should show."""
        return [scene_from_key(p.key) for p in self.prompts.prompts for _ in p.seeds]

    def render(self, sigmas: Sigmas) -> Tensor:
        """[N, 3, 64, 64] in [0, 1]."""
        self.prepare([sigmas])
        batches = self.sets.batches(len(self.prompts.prompts))
        images = torch.cat([self.sets.load(sigma_key(sigmas), batch) for batch in batches])
        return images[: len(self.sets.rows)]  # the last batch of a longer list may hold more

    # ----------------------------------------------------------------------------------------------- measuring

    def wrong(self, images: Tensor) -> FloatArray:
        """[N] share of the scene classifier's questions that are answered against the caption."""
        pairs = zip(self.scenes, images, strict=True)
        return np.array([share_wrong(self.classifier, scene, image[None])[0] for scene, image in pairs])

    def features(self, images: Tensor) -> FloatArray:
        """[N, D] of the shipped image encoder, length sqrt(D)."""
        assert self.backends.i_clip is not None
        found = torch.nn.functional.normalize(self.backends.i_clip.encode(images).double(), dim=-1)
        return (found * found.shape[-1] ** 0.5).numpy()

    def shortfall(self, images: Tensor, target: Tensor) -> FloatArray:
        """[N, M] distances in METRICS order."""
        found = measure(images, target, self.backends, device=self.renderer.loaded.device)
        return np.stack([found[metric].double().numpy() for metric in METRICS], axis=-1)

    def measures(self) -> dict[str, Measure]:
        """What a target is measured by, without a reference."""
        return {
            "wrong": Measure(self.wrong, WRONG_TOLERANCE),
            "L-SNR dB": Measure(lambda images: l_snr(images).double().numpy(), L_SNR_TOLERANCE, "other"),
            "KID": Measure(self.features, KID_TOLERANCE, "set"),
        }

    def trace(self) -> tuple[Sigmas, list[tuple[Tensor, Tensor]]]:
        """(the stock target's sigmas, (latent, denoised prediction) [B, C, H, W] at each of them but the 0), of the
        first batch; the final latent comes last, twice."""
        sigmas = self.stock(DENSE_STEPS)
        texts, seeds = zip(*self.sets.rows[:BATCH], strict=True)
        cache = PrefixCache(limit=KEPT_BYTES)
        images, _ = self.render_batch(self.renderer.encode(texts), seeds, sigmas, cache)
        cfg = self.sampling.cfg
        states = [(e.x, e.out[1] + (e.out[0] - e.out[1]) * cfg) for e in cache.draft("batch")]
        return sigmas, [*states, (images * 2 - 1, images * 2 - 1)]

    def denoised(self, x: Tensor, sigma: float) -> Tensor:
        """[B, C, H, W] the prediction at any state x [B, C, H, W] of the first batch."""
        sample, samplers = importlib.import_module("comfy.sample"), importlib.import_module("comfy.samplers")
        texts, seeds = zip(*self.sets.rows[:BATCH], strict=True)
        level, nothing = torch.tensor([sigma]), torch.zeros_like(x)
        share = self.model.get_model_object("model_sampling").noise_scaling(level, torch.zeros(1), torch.ones(1))
        prompts = (stack_conditionings(self.renderer.encode(texts)), self.renderer.negative)
        given = (self.sampling.cfg, samplers.sampler_object("euler"), torch.tensor([sigma, 0.0]), *prompts)
        with torch.inference_mode():  # a step of Euler down to 0 ends on the prediction
            found = sample.sample_custom(self.model, nothing, *given, x / share, disable_pbar=True, seed=seeds[0])
        return found.float().clone()


def movement(trace: Sequence[tuple[Tensor, Tensor]]) -> FloatArray:
    """[n] RMS change of the denoised prediction from each evaluation to the next."""
    predictions = [denoised for _, denoised in trace]
    return np.array([float((b - a).square().mean().sqrt()) for a, b in pairwise(predictions)])


def shortest_path(sigmas: Sigmas, trace: Sequence[tuple[Tensor, Tensor]], first: int, steps: int) -> list[int]:
    """Places of a tail of `steps` steps among the dense run's sigmas from place `first`, the last that of 0.

    Dynamic programme over the local error of one Euler step against the dense run (GITS, Chen et al. 2024, arXiv
    2405.11326).
    """
    places = list(range(first, len(sigmas)))
    cost = np.full((len(places), len(places)), np.inf)
    for i, a in enumerate(places[:-1]):
        x, denoised = trace[a]
        for j, b in enumerate(places[i + 1 :], i + 1):
            stepped = denoised + (x - denoised) * float(sigmas[b] / sigmas[a])
            cost[i, j] = float((stepped - trace[b][0]).square().mean().sqrt())
    best, back = np.full((steps + 1, len(places)), np.inf), np.zeros((steps + 1, len(places)), int)
    best[0, 0] = 0.0
    for k in range(1, steps + 1):
        total = best[k - 1][:, None] + cost
        best[k], back[k] = total.min(axis=0), total.argmin(axis=0)
    path = [len(places) - 1]
    for k in range(steps, 0, -1):
        path.append(int(back[k, path[-1]]))
    return [places[i] for i in reversed(path)]


def student_paths(
    sigmas: Sigmas,
    trace: Sequence[tuple[Tensor, Tensor]],
    first: int,
    steps: int,
    denoised: Callable[[Tensor, float], Tensor],
) -> dict[int, list[int]]:
    """Tail steps -> places as in `shortest_path`, for tails of 1 to `steps` steps.

    OptimalSteps (Pei et al. 2025, arXiv 2503.21774): as GITS, but each step starts from where the few steps before it
    have led, and its error is the distance to the dense run's state there.
    """
    last = len(sigmas) - 1
    states: dict[int, tuple[float, Tensor, list[int]]] = {first: (0.0, trace[first][0], [first])}
    paths: dict[int, list[int]] = {}
    for k in range(1, steps + 1):
        best: dict[int, tuple[float, Tensor, list[int]]] = {}
        for i, (_, x, path) in states.items():
            if i == last:
                continue
            prediction = denoised(x, float(sigmas[i]))
            for j in range(i + 1, last + 1):
                stepped = prediction + (x - prediction) * float(sigmas[j] / sigmas[i])
                error = float((stepped - trace[j][0]).square().mean())
                if j not in best or error < best[j][0]:
                    best[j] = (error, stepped, [*path, j])
        states, paths[k] = best, best[last][2]
    return paths


@dataclass(frozen=True)
class Row:
    """One schedule in the headline table."""

    name: str
    counts: tuple[int, ...]
    need: NDArray[np.int64]
    """[N] t* of each render at quality `q`."""
    changed: FloatArray
    """[K] share with D-SIM above half its scale."""
    violations: FloatArray
    """[K] share of renders that fall below q at the count or a later one."""
    wrong: float
    l_snr: float

    def count_for(self, alpha: float) -> int:
        """The least count with at most `alpha` violations."""
        return self.counts[int((self.violations <= alpha).argmax())]

    def text(self, prompts: int) -> str:
        at = self.count_for(0.1)
        cells = (
            self.name,
            f"{self.need.mean():.1f}",
            f"{at}",
            f"{100 * prompt_share(np.log(self.need.reshape(prompts, -1))):.0f} %",
            f"{oracle_b(self.need, prompts):.1f}",
            f"{100 * self.changed[self.counts.index(at)]:.1f} %",
            f"{100 * self.wrong:.1f} % / {self.l_snr:.2f}",
        )
        return f"| {' | '.join(cells)} |"


HEAD = (
    "| schedule | mean t* | 10 % violations need | prompt's share of log t* | oracle B "
    "| D-SIM above half its scale there | wrong / L-SNR of the target |\n|---|---|---|---|---|---|---|"
)


def oracle_b(need: NDArray[np.int64], prompts: int) -> float:
    """Mean over prompts of the most that one of its seeds needs."""
    return float(need.reshape(prompts, -1).max(axis=1).mean())


def headline(study: Study, name: str, runs: Mapping[int, Sigmas], scale: FloatArray, q: float) -> Row:
    """runs: count -> sigmas, the last is the target; scale: [M] of METRICS, the stock schedule's."""
    study.prepare(list(runs.values()))
    counts = tuple(runs)
    target = study.render(runs[counts[-1]])
    short = np.stack([study.shortfall(study.render(sigmas), target) for sigmas in runs.values()])  # [K, N, M]
    short[-1] = 0.0
    quality = 1.0 - (short / scale).max(axis=-1)
    later = np.minimum.accumulate(quality[::-1], axis=0)[::-1]
    need = np.array(counts)[(later >= q).argmax(axis=0)]
    changed = (short[..., METRICS.index("d_sim")] > scale[METRICS.index("d_sim")] / 2).mean(axis=1)
    wrong, decibel = float(study.wrong(target).mean()), float(l_snr(target).mean())
    return Row(name, counts, need, changed, (later < q).mean(axis=1), wrong, decibel)
