"""Which samplers that draw noise while they sample settle on one picture as the step count grows.

Every cell (a sampler with a scheduler) renders the same prompts and seeds over one list of counts and is kept in a file
of its own, so a stopped run goes on where it was. Noise is drawn for each picture from its own seed, as if it were
rendered alone; tests compare that with the stock KSampler.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from budgetfusion_nodes.core.curves import METRICS, quality, tail_min
from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.files import in_one_piece
from budgetfusion_nodes.host.batch import empty_latent, stack_conditionings, token_count
from budgetfusion_nodes.host.noise import noise_for_each as brownian_noise
from budgetfusion_nodes.host.sampling import get_sigmas
from budgetfusion_nodes.metrics.measure import Backends
from research.options import WEIGHTS

from .prompts import StudyPrompt, tiny_scenes_prompts
from .rendering import LoadedModel, Renderer, Sampling, file_digest, load_model, measure_series

log = logging.getLogger(__name__)

COUNTS = (6, 8, 12, 20, 35, 60)
"""The last is the target."""
SCHEDULERS = ("karras", "normal", "exponential", "simple")
BROWNIAN = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde")
FRESH = ("euler_ancestral", "er_sde", "dpmpp_2s_ancestral", "seeds_2", "sa_solver", "lcm", "ddpm")
CONTROLS = ("dpmpp_2m", "euler")
"""Deterministic samplers: what settling looks like."""
BATCH = 12
PROMPT_SEED = 5
WANTED = 0.9
SHIPPED = WEIGHTS / "planners" / "tiny_scenes_dpmpp_2m.json"
QUALITY_COLUMNS = ("quality >= .9 from", "never", "L-SNR at 60")

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """n pictures of one sampler and scheduler over COUNTS."""

    sampler_name: str
    scheduler: str
    to_target: FloatArray
    """[n, K] RMSE to the picture's own at 60 steps, over that picture's standard deviation."""
    shortfall: FloatArray
    """[n, K, M] in METRICS order, to the one at 60 steps."""
    l_snr: FloatArray
    """[n, K] dB."""

    def to_dict(self) -> dict[str, Any]:
        return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cell:
        arrays = {f.name: np.asarray(data[f.name], dtype=np.float64) for f in fields(cls)[2:]}
        return cls(str(data["sampler_name"]), str(data["scheduler"]), **arrays)


def cells() -> list[tuple[str, str]]:
    """(sampler, scheduler) in the order in which they are rendered: what decides most comes first."""
    first = [(name, "karras") for name in ("dpmpp_2m", "dpmpp_2m_sde", "euler_ancestral", "dpmpp_3m_sde")]
    others = [("dpmpp_2m_sde", scheduler) for scheduler in ("simple", "normal", "exponential")]
    rest = [(name, "karras") for name in ("er_sde", *BROWNIAN, *CONTROLS, *FRESH)]
    more = [(name, scheduler) for scheduler in SCHEDULERS[1:] for name in ("dpmpp_2m", "dpmpp_3m_sde", "dpmpp_sde")]
    return list(dict.fromkeys([*first, *others, *rest, *more]))


def render_noisy(renderer: Renderer, conditionings: Sequence[Any], seeds: Sequence[int], steps: int) -> Tensor:
    """Latents [B, C, H, W]; every picture draws its noise, at the start and while sampling, from its own seed."""
    model, setting = renderer.loaded.model, renderer.sampling
    sample, samplers = importlib.import_module("comfy.sample"), importlib.import_module("comfy.samplers")
    latent = empty_latent(model, 1, setting.width, setting.height)
    sigmas = get_sigmas(model, setting.sampler_name, setting.scheduler, steps)
    options: dict[str, Any] = {}
    if setting.sampler_name not in CONTROLS:
        options["noise_sampler"] = noise_for_each(setting.sampler_name, latent, seeds, sigmas)
    with torch.inference_mode():
        samples = sample.sample_custom(
            model,
            torch.cat([sample.prepare_noise(latent, seed) for seed in seeds]),
            setting.cfg,
            samplers.ksampler(setting.sampler_name, options),
            sigmas,
            stack_conditionings(conditionings),
            renderer.negative,
            torch.zeros(len(seeds), *latent.shape[1:]),
            disable_pbar=True,
            seed=seeds[0],
        )
    return samples.clone()


def noise_for_each(sampler_name: str, latent: Tensor, seeds: Sequence[int], sigmas: Tensor) -> Callable[..., Tensor]:
    """The host's own noise sampler for each picture [1, C, H, W], stacked: a Brownian tree, or a generator's stream."""
    if sampler_name in BROWNIAN:
        return brownian_noise(sampler_name, latent, seeds, sigmas)
    stream = importlib.import_module("comfy.k_diffusion.sampling").default_noise_sampler
    each = [stream(latent, seed=seed) for seed in seeds]
    return lambda sigma, sigma_next: torch.cat([noise(sigma, sigma_next) for noise in each])


def render_cell(
    loaded: LoadedModel, backends: Backends, prompts: Sequence[StudyPrompt], name: str, scheduler: str
) -> Cell:
    """The pictures of these prompts, measured."""
    renderer = Renderer(loaded, Sampling(name, scheduler))
    texts = [prompt.text for prompt in prompts]
    seeds = [prompt.seeds[0] for prompt in prompts]
    conditionings = renderer.encode(texts)
    rows: list[Tensor | None] = [None] * len(texts)
    for members in _batches(conditionings):
        given = [conditionings[i] for i in members], [seeds[i] for i in members]
        rendered = torch.stack([render_noisy(renderer, *given, steps) for steps in COUNTS], dim=1)
        for place, index in enumerate(members):
            rows[index] = rendered[place]
    latents = torch.stack([row for row in rows if row is not None])
    images = renderer.images(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])
    shortfall, decibel = zip(*(measure_series(series, backends, loaded.device) for series in images), strict=True)
    measured = (torch.stack(values).double().numpy() for values in (shortfall, decibel))
    return Cell(name, scheduler, relative_rmse(latents), *measured)


def relative_rmse(latents: Tensor) -> FloatArray:
    """[n, K] of latents [n, K, C, H, W]: RMSE to the last count's, over that one's standard deviation."""
    reference = latents[:, -1:].double()
    rmse = (latents.double() - reference).square().mean(dim=(2, 3, 4)).sqrt()
    return (rmse / reference.std(dim=(2, 3, 4))).numpy()


def _batches(conditionings: Sequence[Any]) -> Iterator[list[int]]:
    groups: dict[int, list[int]] = {}
    for index, conditioning in enumerate(conditionings):
        groups.setdefault(token_count(conditioning), []).append(index)
    for members in groups.values():
        yield from (members[start : start + BATCH] for start in range(0, len(members), BATCH))


# -------------------------------------------------------------------------------------------------------------- table


def shipped_scale() -> FloatArray:
    """[M] of the shipped planner, in METRICS order: the pack's own measure of quality."""
    found = json.loads(SHIPPED.read_text(encoding="utf-8"))["scale"]
    return np.array([found[metric] for metric in METRICS])


def needed(cell: Cell, scale: FloatArray, wanted: float = WANTED) -> FloatArray:
    """[n] least count from which on quality stays at `wanted`; NaN where only the target has it."""
    enough = tail_min(quality(cell.shortfall, scale)[:, :-1]) >= wanted
    counts = np.asarray(COUNTS[:-1], dtype=np.float64)
    return np.where(enough.any(axis=1), counts[enough.argmax(axis=1)], np.nan)


def table(found: Mapping[tuple[str, str], Cell]) -> str:
    """Markdown: one row a cell."""
    scale = shipped_scale()
    head = ["sampler", "scheduler", "pictures", *(f"{n}" for n in COUNTS[:-1]), *QUALITY_COLUMNS]
    lines = [_row(head), _row(["---"] * len(head))]
    for (name, scheduler), cell in found.items():
        median = np.median(cell.to_target, axis=0)
        counts = needed(cell, scale)
        settled = counts[np.isfinite(counts)]
        lines.append(
            _row(
                [
                    name,
                    scheduler,
                    str(len(cell.to_target)),
                    *(f"{value:.3f}" for value in median[:-1]),
                    f"{np.median(settled):.0f}" if len(settled) * 2 > len(counts) else "no count",
                    f"{1 - len(settled) / len(counts):.0%}",
                    f"{cell.l_snr[:, -1].mean():.2f}",
                ]
            )
        )
    return "\n".join(lines)


def _row(words: Sequence[str]) -> str:
    return "| " + " | ".join(words) + " |"


# ------------------------------------------------------------------------------------------------------------ command


def run(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    counts = {"train": 0, "calibration": args.prompts, "test": 0}
    seeds: dict[str, int] = dict.fromkeys(counts, 1)
    prompts = tiny_scenes_prompts(PROMPT_SEED, counts, seeds)
    spec = {"checkpoint": file_digest(args.checkpoint), "prompts": prompts.digest(), "counts": COUNTS}
    folder = args.work / hashlib.sha256(json.dumps(spec).encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, args.prompts, BATCH)
    missing = [(start, cell) for start in starts for cell in cells() if not _file(folder, *cell, start).is_file()]
    if missing and not args.table_only:
        _render(args, folder, prompts.prompts, missing)
    write_table(args.page, table(_found(folder, starts)))
    return 0


def _render(
    args: argparse.Namespace,
    folder: Path,
    prompts: Sequence[StudyPrompt],
    missing: Sequence[tuple[int, tuple[str, str]]],
) -> None:
    with tempfile.TemporaryDirectory(prefix="budgetfusion-noisy-", ignore_cleanup_errors=True) as base:
        loaded = load_model(args.host.resolve(), Path(base), args.checkpoint.resolve())
        backends = Backends.from_values("tiny_scenes", "shipped")
        for start, (name, scheduler) in missing:
            started = time.perf_counter()
            cell = render_cell(loaded, backends, prompts[start : start + BATCH], name, scheduler)
            with in_one_piece(_file(folder, name, scheduler, start)) as partial:
                partial.write_text(json.dumps(cell.to_dict()), encoding="utf-8")
            log.info("%s %s from %d: %.0f s", name, scheduler, start, time.perf_counter() - started)


def _found(folder: Path, starts: Sequence[int]) -> dict[tuple[str, str], Cell]:
    """Every cell of which at least the first part is finished."""
    found: dict[tuple[str, str], Cell] = {}
    for cell in cells():
        files = [file for start in starts if (file := _file(folder, *cell, start)).is_file()]
        if files:
            found[cell] = joined([Cell.from_dict(json.loads(file.read_text("utf-8"))) for file in files])
    return found


def joined(parts: Sequence[Cell]) -> Cell:
    """One cell of the pictures of several."""
    arrays = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Cell)[2:]}
    return Cell(parts[0].sampler_name, parts[0].scheduler, **arrays)


BEGIN, END = "<!-- table: python -m research noisy -->", "<!-- end of table -->"


def write_table(page: Path, rows: str) -> None:
    """Puts the table between the page's two marks; InputError if they are not there."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InputError(f"--page: {page.name} has no place for the table ({BEGIN} ... {END}).")
    page.write_text(f"{before}{BEGIN}\n{rows}\n{END}{after}", encoding="utf-8")


def _file(folder: Path, name: str, scheduler: str, start: int) -> Path:
    return folder / f"{name}.{scheduler}.{start}.json"
