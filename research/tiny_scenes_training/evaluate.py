"""How well the Tiny Scenes generator follows held-out captions, rendered by the genuine host and judged by a net."""

from __future__ import annotations

import importlib
import json
import logging
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from budgetfusion_nodes.tiny_scenes import captions
from budgetfusion_nodes.tiny_scenes.scenes import Scene, sample_scenes

from .classifier import SceneClassifier, has_lone_object, load_classifier, right_answers, to_tensor
from .renderer import render

log = logging.getLogger(__name__)

MEASURES: Mapping[str, tuple[str, float]] = {
    "base": ("background colour", 0.95),
    "pattern": ("background pattern", 0.90),
    "colour": ("object colour", 0.90),
    "shape": ("object shape", 0.80),
}
"""The classifier's question -> (its name in the table, the share that the project asks of the generator)."""


@dataclass(frozen=True)
class Case:
    """One held-out caption with the picture the renderer draws for its scene."""

    scene: Scene
    caption: str
    seed: int
    """Of the generator's noise."""
    rendered: NDArray[np.uint8]
    """[64, 64, 3]"""
    drawn: bool
    """Drawn from the grammar as it is. False for the extra captions of lone objects, which count for objects only."""


def held_out_cases(count: int, lone_objects: int, seed: int) -> list[Case]:
    """`count` captions as the grammar gives them, and `lone_objects` more with one medium or large object: of 200
    captions only about 40 have one, too few to tell 85 % from 95 %."""
    drawn = sample_scenes(count, seed, held_out=True)
    keys = {scene.key for scene in drawn}
    candidates = sample_scenes(4 * lone_objects, seed + 1, held_out=True, groups=1) if lone_objects else []
    extra = [scene for scene in candidates if has_lone_object(scene) and scene.key not in keys][:lone_objects]
    rng = np.random.default_rng(seed)
    return [
        Case(scene, captions.describe(scene, rng), seed * 10_000 + index, render(scene, rng), index < count)
        for index, scene in enumerate([*drawn, *extra])
    ]


@dataclass(frozen=True)
class Score:
    """One row of the table. Shares are in [0, 1]."""

    name: str
    n: int
    right: int
    share: float
    low: float
    high: float
    """95 % Wilson interval."""
    on_renderings: float
    """The classifier's own share on renderings of the same scenes: the most a generator can reach."""
    asked: float

    @property
    def met(self) -> bool:
        return self.share >= self.asked


@dataclass(frozen=True)
class Evaluation:
    """What one setting gave."""

    cfg: float
    steps: int
    sampler_name: str
    scheduler: str
    scores: tuple[Score, ...]
    noise_generated: float
    noise_rendered: float
    """Mean of scikit-image's `estimate_sigma` on pictures with a plain background, in 8-bit steps."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def classify(classifier: SceneClassifier, cases: Sequence[Case], images: Tensor) -> tuple[Score, ...]:
    """Scores of pictures [N, 3, 64, 64] in [0, 1], one for each case."""
    of_pictures = classifier.answer(images)
    of_renderings = classifier.answer(to_tensor(np.stack([case.rendered for case in cases])))
    scores = []
    for question in MEASURES:
        accepted = [right_answers(case.scene).get(question) for case in cases]
        # backgrounds are judged on the grammar's own mix only
        counted = [i for i, case in enumerate(cases) if accepted[i] and (case.drawn or question in ("colour", "shape"))]
        right, ceiling = (
            sum(answers[i][question] in (accepted[i] or ()) for i in counted)
            for answers in (of_pictures, of_renderings)
        )
        scores.append(score(question, len(counted), right, ceiling))
    return tuple(scores)


def score(question: str, n: int, right: int, right_on_renderings: int) -> Score:
    """A row with its Wilson interval by scipy. An empty row has the interval [0, 1]."""
    from scipy.stats import binomtest

    name, asked = MEASURES[question]
    if n == 0:
        return Score(name, 0, 0, 0.0, 0.0, 1.0, 0.0, asked)
    interval = binomtest(right, n).proportion_ci(0.95, method="wilson")
    return Score(name, n, right, right / n, interval.low, interval.high, right_on_renderings / n, asked)


def pixel_noise(images: NDArray[np.floating[Any]]) -> float:
    """Mean over [N, H, W, 3] pictures in [0, 1] of the robust noise deviation by scikit-image, in 8-bit steps."""
    from skimage.restoration import estimate_sigma

    if not len(images):
        return 0.0
    return float(np.mean([estimate_sigma(image, channel_axis=-1, average_sigmas=True) for image in images])) * 255


class Generator:
    """The checkpoint in a genuine ComfyUI in this process, loaded by CheckpointLoaderSimple."""

    def __init__(self, host_dir: Path, checkpoint: Path, *, cpu: bool = True) -> None:
        from research.in_process_host import PACK_ROOT, start_host

        self.base = tempfile.TemporaryDirectory(prefix="budgetfusion-evaluate-")
        self.host = start_host(host_dir, self.base.name, [PACK_ROOT], cpu=cpu)
        folder_paths = importlib.import_module("folder_paths")
        # first of all folders, so that a file of the same name elsewhere is not taken instead
        folder_paths.add_model_folder_path("checkpoints", str(checkpoint.resolve().parent), is_default=True)
        loader = importlib.import_module("nodes").CheckpointLoaderSimple()
        with torch.inference_mode():
            self.model, self.clip, self.vae = loader.load_checkpoint(checkpoint.name)

    def pictures(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int,
        cfg: float,
        sampler_name: str = "dpmpp_2m",
        scheduler: str = "karras",
        batch: int = 20,
    ) -> Tensor:
        """[N, 3, 64, 64] in [0, 1], rounded to 8 bits as a saved picture is."""
        from budgetfusion_nodes.host.batch import encode_prompts, render_batch
        from budgetfusion_nodes.host.sampling import decode

        positives, (negative,) = encode_prompts(self.clip, prompts), encode_prompts(self.clip, [""])
        parts, started = [], time.monotonic()
        for first in range(0, len(prompts), batch):
            chosen = slice(first, first + batch)
            latent = render_batch(
                self.model,
                positives[chosen],
                negative,
                seeds[chosen],
                steps,
                sampler_name=sampler_name,
                scheduler=scheduler,
                cfg=cfg,
            )
            with torch.inference_mode():
                parts.append(decode(self.vae, {"samples": latent}).movedim(-1, 1).cpu())
            done = min(first + batch, len(prompts))
            log.info("%d of %d pictures, %.0f s", done, len(prompts), time.monotonic() - started)
        return (torch.cat(parts).clone() * 255).round() / 255


def evaluate(
    generator: Generator,
    classifier: SceneClassifier,
    cases: Sequence[Case],
    *,
    steps: int,
    cfg: float,
    sampler_name: str = "dpmpp_2m",
    scheduler: str = "karras",
) -> tuple[Evaluation, Tensor]:
    """Renders every case and classifies it. Also returns the pictures [N, 3, 64, 64] in [0, 1]."""
    started = time.monotonic()
    images = generator.pictures(
        [case.caption for case in cases],
        [case.seed for case in cases],
        steps=steps,
        cfg=cfg,
        sampler_name=sampler_name,
        scheduler=scheduler,
    )
    seconds = time.monotonic() - started
    plain = [i for i, case in enumerate(cases) if case.drawn and case.scene.background.pattern == "plain"]
    generated = images[plain].movedim(1, -1).numpy().astype(np.float64)
    rendered = np.stack([cases[i].rendered for i in plain]) / 255.0 if plain else np.zeros((0, 64, 64, 3))
    scores = classify(classifier, cases, images)
    found = Evaluation(
        cfg, steps, sampler_name, scheduler, scores, pixel_noise(generated), pixel_noise(rendered), seconds
    )
    return found, images


def table(evaluation: Evaluation) -> str:
    """The result as Markdown, as the README shows it."""
    lines = [
        f"{evaluation.steps} steps of {evaluation.sampler_name}/{evaluation.scheduler}, cfg {evaluation.cfg:g}, "
        f"{evaluation.seconds:.0f} s",
        "",
        "| measure | n | right | 95 % interval | renderings | asked | |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.name} | {row.n} | {row.share:.1%} | {row.low:.1%} to {row.high:.1%} | {row.on_renderings:.1%} "
        f"| {row.asked:.0%} | {'met' if row.met else 'missed'} |"
        for row in evaluation.scores
    ]
    lines += [
        "",
        f"Pixel noise on plain backgrounds, objects included: {evaluation.noise_generated:.2f} of 255 generated, "
        f"{evaluation.noise_rendered:.2f} rendered.",
    ]
    return "\n".join(lines)


def save_grid(cases: Sequence[Case], images: Tensor, path: Path, *, columns: int = 4, rows: int = 8) -> None:
    """A sheet of the first pictures, each with its caption beside it."""
    from matplotlib.figure import Figure

    shown = list(zip(cases, images, strict=True))[: columns * rows]
    rows = (len(shown) + columns - 1) // columns
    figure = Figure(figsize=(3.2 * columns, 1.25 * rows), dpi=110)
    axes = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=(1.0, 1.5) * columns)
    for axis in axes.flat:
        axis.axis("off")
    for index, (case, image) in enumerate(shown):
        picture, text = axes[index // columns, 2 * (index % columns) : 2 * (index % columns) + 2]
        picture.imshow(image.movedim(0, -1).numpy(), interpolation="nearest")
        text.text(0, 0.5, textwrap.fill(case.caption, 24), fontsize=7.5, va="center", transform=text.transAxes)
    figure.subplots_adjust(left=0.005, right=0.995, top=0.995, bottom=0.005, wspace=0.06, hspace=0.06)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def run(
    host_dir: Path,
    checkpoint: Path,
    classifier_path: Path,
    *,
    count: int,
    lone_objects: int,
    seed: int,
    steps: int,
    cfgs: Sequence[float],
    sampler_name: str,
    scheduler: str,
    json_path: Path | None = None,
    grid_path: Path | None = None,
    cpu: bool = True,
) -> list[Evaluation]:
    """The whole benchmark, once for each cfg. The grid shows the cfg with the most right answers."""
    cases = held_out_cases(count, lone_objects, seed)
    classifier = load_classifier(classifier_path)
    generator = Generator(host_dir, checkpoint, cpu=cpu)
    results = [
        evaluate(generator, classifier, cases, steps=steps, cfg=cfg, sampler_name=sampler_name, scheduler=scheduler)
        for cfg in cfgs
    ]
    if json_path:
        provenance = checkpoint.with_suffix(".json")
        made = json.loads(provenance.read_text()) if provenance.is_file() else None
        report = {
            "captions": count,
            "lone_objects": lone_objects,
            "seed": seed,
            "host": generator.host.version,
            "checkpoint": made,
            "evaluations": [found.to_dict() for found, _ in results],
        }
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(report, indent=1) + "\n")
    if grid_path:
        best, images = max(results, key=lambda result: sum(row.share - row.asked for row in result[0].scores))
        log.info("the grid shows cfg %g", best.cfg)
        save_grid(cases, images, grid_path)
    return [found for found, _ in results]
