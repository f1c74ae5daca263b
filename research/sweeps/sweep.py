"""The sweep: prompts x seeds x step counts, in shards that survive a kill, by one or more worker processes.

A folder holds `prompts.json` (what is rendered), `sweep.json` (how), `shards/` (results, each file written in one
piece) and in the end `dataset.safetensors` and `judges.safetensors`. Rendering is a pure function of the two JSON
files, the checkpoint and the host, so running again goes on where a killed run stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import queue
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from budgetfusion_nodes.core.curves import DEFAULT_GRID, METRICS
from budgetfusion_nodes.core.errors import BudgetFusionError, InputError
from budgetfusion_nodes.core.files import in_one_piece
from budgetfusion_nodes.core.setting import Setting, with_precision
from budgetfusion_nodes.host.conditioning import extract
from budgetfusion_nodes.host.sampling import nfe
from budgetfusion_nodes.metrics.measure import Backends
from budgetfusion_nodes.predictor.dataset import ABSENT, SweepDataset

from .prompts import PromptList, chunks
from .rendering import JUDGES, Measured, Renderer, Report, Sampling, file_digest, identify, load_model
from .strips import save_strip, strip_path

log = logging.getLogger(__name__)

FORMAT = "budgetfusion.sweep_shard"
VERSION = "1"
PROMPTS_FILE, SPEC_FILE, SHARD_FOLDER = "prompts.json", "sweep.json", "shards"
DATASET_FILE, JUDGES_FILE = "dataset.safetensors", "judges.safetensors"
SHARD_ARRAYS = ("prompt", "seed", "tokens", "lengths", "pooled", "shortfall", "l_snr", "judges")
POLL_SECONDS = 0.5


class SweepError(BudgetFusionError):
    """A worker failed; what is finished is kept, and running the same command again goes on from there."""


@dataclass(frozen=True)
class SweepSpec:
    """Everything besides the prompts that decides the results. Shards of another spec are never mixed in."""

    checkpoint: str
    """File name; the digest says which file."""
    checkpoint_sha256: str
    prompts_sha256: str
    sampling: Sampling
    grid: tuple[int, ...] = DEFAULT_GRID
    batch: int = 32
    """Trajectories of a shard, rendered together. Part of the spec: rounding depends on it by some 1e-6."""
    d_sim: str = "tiny_scenes"
    i_clip: str = "shipped"
    """The image encoder: "shipped", or a file's name and the start of its SHA-256."""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "grid": list(self.grid)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SweepSpec:
        try:
            return cls(**{**data, "sampling": Sampling(**data["sampling"]), "grid": tuple(data["grid"])})
        except (KeyError, TypeError) as error:
            raise InputError(f"{SPEC_FILE} is damaged ({error}). Start the sweep in another folder.") from error

    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class SweepJob:
    """A sweep and where it runs. Sent to worker processes, so everything in it can be copied."""

    out: Path
    host_dir: Path
    checkpoint: Path
    spec: SweepSpec
    prompts: PromptList
    threads: int = 1
    """Per worker."""
    image_encoder: str = "shipped"
    """For Backends.from_values; spec.i_clip says the same without a path."""
    device: str = "cpu"
    """"cpu" or "gpu". Not part of the spec, but shards of different ones do not merge."""
    keep_images: int = 0
    """Trajectories, from the first on, whose images are saved."""

    @property
    def shards(self) -> list[tuple[tuple[int, int], ...]]:
        """The (prompt, seed) index pairs of each shard."""
        return chunks(self.prompts.pairs, self.spec.batch)

    def shard_path(self, index: int) -> Path:
        return self.out / SHARD_FOLDER / f"{index:05d}.safetensors"

    def evaluations(self, indices: Sequence[int]) -> int:
        """Images times denoiser evaluations of these shards."""
        each = sum(nfe(self.spec.sampling.sampler_name, steps) for steps in self.spec.grid)
        return each * sum(len(self.shards[i]) for i in indices)


def prepare(job: SweepJob) -> list[int]:
    """Writes the prompt list and the spec, or checks those that lie there; gives the shards still to render."""
    (job.out / SHARD_FOLDER).mkdir(parents=True, exist_ok=True)
    prompts_path, spec_path = job.out / PROMPTS_FILE, job.out / SPEC_FILE
    if prompts_path.is_file() and PromptList.load(prompts_path).digest() != job.prompts.digest():
        raise InputError(f"--out: {job.out} holds a sweep of other prompts. Choose another folder.")
    if spec_path.is_file():
        found = SweepSpec.from_dict(_read_json(spec_path))
        if found != job.spec:
            raise InputError(
                f"--out: {job.out} holds a sweep with other settings ({changes(found, job.spec)}). Choose another "
                "folder, or give the settings it was started with."
            )
    if not prompts_path.is_file():
        job.prompts.save(prompts_path)
    write_json(spec_path, job.spec.to_dict())
    return [i for i in range(len(job.shards)) if not is_finished(job, i)]


def is_finished(job: SweepJob, index: int) -> bool:
    """Whether the shard's file is there, whole, and of this spec. A damaged one is rendered again."""
    path = job.shard_path(index)
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="numpy") as opened:
            metadata = opened.metadata() or {}
            known = (metadata.get("spec"), metadata.get("judges"))
            return known == (job.spec.digest(), json.dumps(JUDGES)) and set(opened.keys()) == set(SHARD_ARRAYS)
    except (OSError, SafetensorError):
        log.warning("%s is damaged and is rendered again", path.name)
        return False


# --------------------------------------------------------------------------------------------------------- rendering


class ShardRenderer:
    """Turns shard indices into shard files with one loaded host."""

    def __init__(self, job: SweepJob, base_dir: Path) -> None:
        self.job = job
        torch.set_num_threads(job.threads)
        fp32 = job.spec.sampling.dtype == "fp32"
        loaded = load_model(job.host_dir, base_dir, job.checkpoint, job.device, fp32=fp32)
        backends = Backends.from_values(job.spec.d_sim, job.image_encoder)
        self.renderer = Renderer(loaded, job.spec.sampling, backends)
        self.facts = {
            "setting": identify(loaded, job.spec.sampling).to_dict(),
            "backends": backends.names(),
            "host_version": loaded.host_version,
            "torch": torch.__version__,
            "device": device_name(loaded.device),
        }
        finished = next((i for i in range(len(job.shards)) if is_finished(job, i)), None)
        if finished is not None:  # else hours of rendering would end in shards that do not merge
            _common_facts(job, [read_shard(job, finished), Shard({}, self.facts)])

    def render(self, index: int, report: Report | None = None) -> None:
        """Renders, measures and writes one shard."""
        pairs = self.job.shards[index]
        texts = [self.job.prompts.prompts[p].text for p, _ in pairs]
        seeds = [self.job.prompts.prompts[p].seeds[s] for p, s in pairs]
        started = time.perf_counter()
        conditionings = self.renderer.encode(texts)
        latents = self.renderer.latents(conditionings, seeds, self.job.spec.grid, report)
        images = self.renderer.images(latents)
        rendered = time.perf_counter()
        measured = self.renderer.measure(latents, images)
        arrays = {**_conditioning_arrays(conditionings), **_measured_arrays(measured)}
        arrays["prompt"] = np.array([p for p, _ in pairs], np.int64)
        arrays["seed"] = np.array([s for _, s in pairs], np.int64)
        seconds = {"render": rendered - started, "measure": time.perf_counter() - rendered}
        self._keep(index, pairs, images)
        write_shard(self.job, index, arrays, {**self.facts, "seconds": seconds})

    def _keep(self, index: int, pairs: Sequence[tuple[int, int]], images: Tensor) -> None:
        first = index * self.job.spec.batch
        for row, (prompt, seed) in enumerate(pairs[: max(0, self.job.keep_images - first)]):
            noise = self.job.prompts.prompts[prompt].seeds[seed]
            save_strip(strip_path(self.job.out, prompt, noise), images[row])


def device_name(device: torch.device) -> str:
    """The GPU's own name, else the kind of device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _conditioning_arrays(conditionings: Sequence[Any]) -> dict[str, NDArray[Any]]:
    """tokens [n, L, D] and pooled [n, P] in half precision, lengths [n]."""
    found = [extract(conditioning)[:2] for conditioning in conditionings]
    lengths = np.array([tokens.shape[0] for tokens, _ in found], np.int64)
    padded = np.zeros((len(found), int(lengths.max()), found[0][0].shape[1]), np.float16)
    for row, (tokens, _) in enumerate(found):
        padded[row, : tokens.shape[0]] = tokens.half().cpu().numpy()
    pooled = [np.zeros(0, np.float16) if p is None else p.half().cpu().numpy() for _, p in found]
    return {"tokens": padded, "lengths": lengths, "pooled": np.stack(pooled)}


def _measured_arrays(measured: Measured) -> dict[str, NDArray[Any]]:
    arrays = {"shortfall": measured.shortfall, "l_snr": measured.l_snr, "judges": measured.judges}
    return {name: value.float().numpy() for name, value in arrays.items()}


def write_shard(job: SweepJob, index: int, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
    """In one piece: a killed run leaves no half shard."""
    metadata = {"format": FORMAT, "version": VERSION, "spec": job.spec.digest(), "facts": json.dumps(dict(facts))}
    metadata["judges"] = json.dumps(JUDGES)  # shards of a version with other judges are rendered again
    with in_one_piece(job.shard_path(index)) as partial:
        save_file({name: np.ascontiguousarray(arrays[name]) for name in SHARD_ARRAYS}, partial, metadata)


# ----------------------------------------------------------------------------------------------------------- workers

Progress = Callable[[int], None]


def run_here(job: SweepJob, indices: Sequence[int], base_dir: Path, progress: Progress | None = None) -> None:
    """Renders shards in this process, which then holds a host."""
    if not indices:
        return
    renderer = ShardRenderer(job, base_dir)
    for index in indices:
        if not is_finished(job, index):  # another run may have been faster
            renderer.render(index, progress)


def run_workers(job: SweepJob, indices: Sequence[int], workers: int, progress: Progress | None = None) -> None:
    """Renders shards in `workers` processes, each with its own host and base folder. SweepError if one fails."""
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    with tempfile.TemporaryDirectory(prefix="budgetfusion-sweep-") as scratch, _single_threaded(job.threads):
        processes = [
            context.Process(
                target=_work, args=(job, list(indices[w::workers]), Path(scratch) / str(w), messages), daemon=True
            )
            for w in range(min(workers, len(indices)))
        ]
        for process in processes:
            process.start()
        try:
            _follow(processes, messages, progress)
        finally:
            for process in processes:
                process.terminate()  # a shard in work is lost, finished ones are whole
            for process in processes:
                process.join()


def _follow(processes: Sequence[Any], messages: Any, progress: Progress | None) -> None:
    while True:
        running = any(process.is_alive() for process in processes)
        try:
            kind, value = messages.get(timeout=POLL_SECONDS if running else 0.0)
        except queue.Empty:
            if not running:
                break
            continue
        if kind == "failed":
            raise SweepError(f"A sweep worker failed. Finished shards are kept; run again to go on.\n{value}")
        if progress is not None:
            progress(value)
    codes = [process.exitcode for process in processes]
    if any(codes):
        raise SweepError(f"A sweep worker ended with code {codes}. Finished shards are kept; run again to go on.")


def _work(job: SweepJob, indices: Sequence[int], base_dir: Path, messages: Any) -> None:
    """Body of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent stops its workers
    parent = multiprocessing.parent_process()

    def tell(evaluations: int) -> None:
        if parent is not None and not parent.is_alive():
            raise SystemExit("the sweep that started this worker is gone")
        messages.put(("evaluations", evaluations))

    try:
        run_here(job, indices, base_dir, tell)
    except Exception as error:
        known = isinstance(error, BudgetFusionError)
        messages.put(("failed", str(error) if known else traceback.format_exc()))


@contextlib.contextmanager
def _single_threaded(threads: int) -> Iterator[None]:
    """Children inherit the environment: without this two busy OpenMP pools on two cores are 50 times slower."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def run_sweep(job: SweepJob, workers: int, progress: Progress | None = None) -> None:
    """Renders what is missing. progress is told of evaluations as they are done."""
    missing = prepare(job)
    if workers > 1 and missing:
        run_workers(job, missing, workers, progress)
        return
    base = Path(tempfile.mkdtemp(prefix="budgetfusion-sweep-"))
    try:
        run_here(job, missing, base, progress)
    finally:
        shutil.rmtree(base, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------------- merge


@dataclass(frozen=True)
class Shard:
    """A finished shard in memory."""

    arrays: Mapping[str, NDArray[Any]]
    facts: Mapping[str, Any]


def read_shard(job: SweepJob, index: int) -> Shard:
    with safe_open(job.shard_path(index), framework="numpy") as opened:
        facts = json.loads((opened.metadata() or {})["facts"])
        arrays = {name: opened.get_tensor(name) for name in SHARD_ARRAYS}
    setting = with_precision(Setting.from_dict(facts["setting"]), {"spec": job.spec.to_dict()})
    # a shard that does not name its device is of before there was a choice
    return Shard(arrays, {"device": "cpu", **facts, "setting": setting.to_dict()})


@dataclass(frozen=True)
class Merged:
    """The data set, and distances that no plan is made with, row for row."""

    dataset: SweepDataset
    judges: NDArray[np.float32]
    """[N, S, K, J] in JUDGES order; NaN for absent seeds."""


def merge(job: SweepJob, provenance: Mapping[str, Any] | None = None, *, partial: bool = False) -> Merged:
    """All shards as one data set. An unfinished sweep is an error, unless `partial`: then of what is there."""
    finished = [i for i in range(len(job.shards)) if is_finished(job, i)]
    if not finished and "joined" in job.prompts.source and (job.out / DATASET_FILE).is_file():
        raise InputError(f"--out: {job.out} is a joined sweep. It has no shards; its data are {DATASET_FILE}.")
    if not finished or (len(finished) < len(job.shards) and not partial):
        raise InputError(
            f"--out: {len(finished)} of {len(job.shards)} shards are finished. Run 'study sweep' again to go on."
        )
    shards = [read_shard(job, i) for i in finished]
    facts = _common_facts(job, shards)
    rows = _rows(shards)
    arrays = _empty(shards, len(rows), max(len(p.seeds) for p in job.prompts.prompts), len(job.spec.grid))
    for shard in shards:
        _place(shard, rows, arrays, job.prompts)
    judges = arrays.pop("judges")
    dataset = SweepDataset(
        prompts=tuple(job.prompts.prompts[p].text for p in rows),
        split=tuple(job.prompts.prompts[p].split for p in rows),
        grid=job.spec.grid,
        setting=Setting.from_dict(facts["setting"]),
        backends=facts["backends"],
        metrics=METRICS,
        provenance={**_provenance(job, shards, facts), **dict(provenance or {})},
        **arrays,
    )
    return Merged(dataset, judges)


def _common_facts(job: SweepJob, shards: Sequence[Shard]) -> dict[str, Any]:
    first = {k: v for k, v in shards[0].facts.items() if k != "seconds"}
    for shard in shards[1:]:
        for name, value in first.items():
            if shard.facts.get(name) != value:
                raise InputError(
                    f"{job.out}: shards differ in {name} ({value} and {shard.facts.get(name)}). The model, the "
                    "encoder, ComfyUI, PyTorch or --device changed between runs: go on with what it began with, or "
                    "start the sweep in another folder."
                )
    return first


def _rows(shards: Sequence[Shard]) -> dict[int, int]:
    """Index in the prompt list -> row of the data set, in the order of the list."""
    present = sorted({int(p) for shard in shards for p in shard.arrays["prompt"]})
    return {prompt: row for row, prompt in enumerate(present)}


def _empty(shards: Sequence[Shard], prompts: int, seeds: int, counts: int) -> dict[str, NDArray[Any]]:
    length = max(shard.arrays["tokens"].shape[1] for shard in shards)
    first = shards[0].arrays
    return {
        "tokens": np.zeros((prompts, length, first["tokens"].shape[2]), np.float16),
        "lengths": np.zeros(prompts, np.int64),
        "pooled": np.zeros((prompts, first["pooled"].shape[1]), np.float16),
        "seeds": np.full((prompts, seeds), ABSENT, np.int64),
        "shortfall": np.full((prompts, seeds, counts, len(METRICS)), np.nan, np.float32),
        "l_snr": np.full((prompts, seeds, counts), np.nan, np.float32),
        "judges": np.full((prompts, seeds, counts, len(JUDGES)), np.nan, np.float32),
    }


def _place(shard: Shard, rows: Mapping[int, int], arrays: Mapping[str, NDArray[Any]], prompts: PromptList) -> None:
    given = shard.arrays
    for i, (prompt, seed) in enumerate(zip(given["prompt"].tolist(), given["seed"].tolist(), strict=True)):
        row = rows[prompt]
        arrays["tokens"][row, : given["tokens"].shape[1]] = given["tokens"][i]
        arrays["lengths"][row], arrays["pooled"][row] = given["lengths"][i], given["pooled"][i]
        arrays["seeds"][row, seed] = prompts.prompts[prompt].seeds[seed]
        for name in ("shortfall", "l_snr", "judges"):
            arrays[name][row, seed] = given[name][i]


def _provenance(job: SweepJob, shards: Sequence[Shard], facts: Mapping[str, Any]) -> dict[str, Any]:
    seconds = {part: round(sum(shard.facts["seconds"][part] for shard in shards), 1) for part in ("render", "measure")}
    return {
        "spec": job.spec.to_dict(),
        "source": dict(job.prompts.source),
        "trajectories": int(sum(len(shard.arrays["prompt"]) for shard in shards)),
        "host_version": facts["host_version"],
        "torch": facts["torch"],
        "device": facts["device"],
        "worker_seconds": seconds,
    }


def save_merged(merged: Merged, out: Path) -> tuple[Path, Path]:
    """Writes `dataset.safetensors` and `judges.safetensors`; gives their paths."""
    merged.dataset.save(out / DATASET_FILE)
    with in_one_piece(out / JUDGES_FILE) as partial:
        save_file({"judges": merged.judges}, partial, {"format": "budgetfusion.judges", "judges": json.dumps(JUDGES)})
    return out / DATASET_FILE, out / JUDGES_FILE


# ------------------------------------------------------------------------------------------------------------- files


def open_job(out: Path) -> SweepJob:
    """The sweep that lies in a folder, for reading: it names no host and no checkpoint to render with."""
    spec = SweepSpec.from_dict(_read_json(out / SPEC_FILE))
    return SweepJob(out, Path(), Path(spec.checkpoint), spec, PromptList.load(out / PROMPTS_FILE))


def make_spec(
    checkpoint: Path, prompts: PromptList, sampling: Sampling, image_encoder: str = "shipped", **changes: Any
) -> SweepSpec:
    if not checkpoint.is_file():
        raise InputError(f"--checkpoint: there is no file {checkpoint}. Train the model first, or name another.")
    encoder = Path(image_encoder)
    named = f"{encoder.name}#{file_digest(encoder)[:8]}" if encoder.is_file() else image_encoder
    return SweepSpec(checkpoint.name, file_digest(checkpoint), prompts.digest(), sampling, i_clip=named, **changes)


def changes(found: SweepSpec, wanted: SweepSpec, places: tuple[str, str] = ("there", "now")) -> str:
    """What differs, in words; `places` say where each was found."""
    a, b = _flat(found.to_dict()), _flat(wanted.to_dict())
    return ", ".join(f"{key}: {a[key]} {places[0]}, {b[key]} {places[1]}" for key in a if a[key] != b[key])


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    return {**{k: v for k, v in data.items() if k != "sampling"}, **data["sampling"]}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} cannot be read ({error}). Start the sweep in another folder.") from error


def write_json(path: Path, content: Any) -> None:
    with in_one_piece(path) as partial:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
