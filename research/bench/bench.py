"""The benchmark: parts that are computed one after the other, each kept in a file, so that a stopped run goes on.

Needs a sweep (one that lies there, or its own) and the planner under test. `report.py` turns the parts into
`benchmark.md`, plots and `bench.json`.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.files import in_one_piece
from budgetfusion_nodes.core.setting import differences
from budgetfusion_nodes.metrics.measure import Backends
from budgetfusion_nodes.predictor.dataset import SweepDataset
from budgetfusion_nodes.predictor.fit import FitOptions
from budgetfusion_nodes.predictor.planner import Planner
from budgetfusion_nodes.predictor.planner_file import load_planner
from research.options import DTYPES, WEIGHTS
from research.statistics import variance
from research.statistics.baselines import baseline_curves
from research.sweeps.prompts import (
    COUNTS,
    SEEDS,
    PromptList,
    StudyPrompt,
    busier_prompts,
    calibration_scenes,
    tiny_scenes_prompts,
)
from research.sweeps.rendering import Sampling, file_digest
from research.sweeps.sweep import (
    DATASET_FILE,
    JUDGES_FILE,
    SweepJob,
    SweepSpec,
    make_spec,
    merge,
    open_job,
    prepare,
    run_workers,
    save_merged,
)
from research.tiny_scenes_training.classifier import load_classifier

from . import ablations, comparison, gallery, grid_density, risk_check, synthetic
from .evidence import Evidence, Judges, check_belongs, gather, load_judges
from .scene_judge import WRONG, wrong_answers

if TYPE_CHECKING:
    from .peers import Bench

log = logging.getLogger(__name__)

QUALITIES = (0.80, 0.90, 0.95)
ALPHAS = (0.05, 0.10, 0.20)
QUALITY, ALPHA = 0.90, 0.10
PARTS = ("variance", "rules", "risk", "shift", "ablations", "grid", "peers", "profile", "gallery")
HOST_PARTS = ("peers", "profile")
"""Need the host in this process."""
RENDERING_PARTS = ("variance", "shift", "grid")
"""Render sweeps of their own, variance in a full run only."""
VERSION = 3
"""Of the parts' files: a part of another version is computed again."""
QUICK_COUNTS, QUICK_SEEDS = (
    {"train": 40, "calibration": 30, "test": 20},
    {"train": 1, "calibration": 1, "test": 4},
)
CROSSED_PROMPTS, CROSSED_SEEDS = 150, 8
FINER_PROMPTS = {"train": 100, "calibration": 100, "test": 100}
OWN_SWEEP_SEED = 20  # not 1, which the shipped planner's prompts are drawn with
CLASSIFIER = WEIGHTS / "classifier" / "tiny_scenes_classifier.safetensors"

Progress = Callable[[str, int, int], None]
"""(what, done, of how many)."""


@dataclass(frozen=True)
class BenchOptions:
    """What a run does. Paths are absolute."""

    host: Path
    checkpoint: Path
    planner: Path
    work: Path
    """Where sweeps and finished parts lie."""
    out: Path
    """benchmark.md and bench.json go here, plots to images/benchmark below it."""
    sweep: Path | None = None
    """A finished sweep at the planner's setting; left out, the benchmark makes its own."""
    crossed: Path | None = None
    """A finished sweep whose prompts all have the same noise seeds; left out, a full run makes its own."""
    full: bool = False
    workers: int = 2
    threads: int = 1
    seed: int = 1
    peer_prompts: int | None = None
    parts: tuple[str, ...] = PARTS
    again: tuple[str, ...] = ()
    """Parts to compute again though they lie there."""

    @property
    def images(self) -> Path:
        return self.out / "images" / "benchmark"


class BenchRun:
    """One run. Expensive things are made when the first part asks for them."""

    def __init__(self, options: BenchOptions, progress: Progress | None = None) -> None:
        unknown = (set(options.parts) | set(options.again)) - set(PARTS)
        if unknown:
            raise InputError(f"parts: {', '.join(sorted(unknown))} is unknown. Choose from {', '.join(PARTS)}.")
        self.options = options
        self.progress = progress or (lambda *_: None)
        self.planner: Planner = load_planner(options.planner)
        self.sweep_folder = options.sweep or self._own_sweep()

    # ----------------------------------------------------------------------------------------------------- evidence

    @cached_property
    def spec(self) -> SweepSpec:
        return open_job(self.sweep_folder).spec

    @cached_property
    def prompts(self) -> PromptList:
        return open_job(self.sweep_folder).prompts

    @cached_property
    def evidence(self) -> Evidence:
        dataset = _dataset(self.sweep_folder)
        judges = self._judges(dataset)
        return gather(dataset, self.planner, judges)

    def _judges(self, dataset: SweepDataset) -> Judges | None:
        path = self.sweep_folder / JUDGES_FILE
        if not path.is_file():
            return None
        judges, rows = load_judges(path), dataset.rows("test")
        wrong = self._wrong_answers(dataset, rows)
        if wrong is None:
            return judges
        column = np.full((*dataset.seeds.shape, len(dataset.grid), 1), np.nan, np.float32)
        column[rows] = wrong[..., None]
        return Judges((*judges.names, WRONG), np.concatenate([judges.values, column], axis=-1))

    def _wrong_answers(self, dataset: SweepDataset, rows: Any) -> Any:
        """[n, S, K], kept in a file; None where the sweep kept no picture of some test prompt."""
        if not CLASSIFIER.is_file():
            return None
        path = self.options.work / f"scene_wrong-{self._data_digest()[:12]}-{file_digest(CLASSIFIER)[:12]}.npy"
        found = _read_array(path, (len(rows), dataset.seeds.shape[1], len(dataset.grid)))
        if found is not None:
            return found
        self.progress("scene classifier", 0, 1)
        try:
            found = wrong_answers(dataset, rows, self.prompts, self.sweep_folder, load_classifier(CLASSIFIER))
        except InputError as error:  # a prompt list of one's own
            log.warning("%s", error)
            return None
        seen = ~np.isnan(found[..., 0])
        if not len(rows) or not seen.any(axis=1).all():
            log.warning("The sweep kept no pictures of some test prompts, so the scene classifier does not judge it.")
            return None
        if (seen == dataset.present[rows]).all():  # pictures that come later are looked at
            content = io.BytesIO()
            np.save(content, found, allow_pickle=False)
            _write(path, content.getvalue())
        return found

    @cached_property
    def fit_options(self) -> FitOptions:
        return FitOptions() if self.options.full else FitOptions(networks=1)

    def _data_digest(self) -> str:
        return _dataset_digest(self.sweep_folder)

    # -------------------------------------------------------------------------------------------------------- sweeps

    def _own_sweep(self) -> Path:
        full = self.options.full
        counts, seeds = (COUNTS, SEEDS) if full else (QUICK_COUNTS, QUICK_SEEDS)
        prompts = self._unseen(tiny_scenes_prompts(OWN_SWEEP_SEED, counts, seeds))
        folder = self.options.work / ("sweep-full" if full else "sweep-quick")
        return self._render("own sweep", folder, prompts, self._calibrated_sampling(), len(prompts.pairs))

    def _calibrated_sampling(self) -> Sampling:
        """In the precision of the planner's own sweep, where its file says it. InputError for one of a GPU."""
        dtype = self.planner.setting.precision
        device = _nested(self.planner.provenance, "data").get("device", "cpu")
        if device != "cpu" or (dtype and dtype not in DTYPES):
            raise InputError(
                f"--planner: {self.options.planner.name} was made in {dtype or 'unknown precision'} on {device}, and "
                "the benchmark renders its own sweeps on the CPU. Name the planner's sweep with --sweep."
            )
        return replace(self._sampling(), dtype=dtype) if dtype else self._sampling()

    def _unseen(self, prompts: PromptList) -> PromptList:
        """Without the scenes that the planner was calibrated on, except for training."""
        seen = calibration_scenes(_nested(self.planner.provenance, "data", "source"))
        kept = tuple(p for p in prompts.prompts if p.split == "train" or p.key not in seen)
        return PromptList(kept, {**prompts.source, "left_out": len(prompts.prompts) - len(kept)})

    def _sampling(self) -> Sampling:
        s = self.planner.setting
        return Sampling(s.sampler_name, s.scheduler, s.cfg, s.width or 64, s.height or 64)

    def _render(
        self,
        what: str,
        folder: Path,
        prompts: PromptList,
        sampling: Sampling,
        keep: int,
        batch: int = 16,
        grid: tuple[int, ...] | None = None,
    ) -> Path:
        """Renders what is missing. Gives the folder with the data: `folder` and a digest of all that decides them, so
        that a sweep of another model, seed, grid or host lies beside it."""
        d_sim = self.planner.backends.get("d_sim", "auto")
        counts = grid or self.planner.grid
        spec = make_spec(self.options.checkpoint, prompts, sampling, grid=counts, batch=batch, d_sim=d_sim)
        version = host_version(self.options.host) or "unknown"
        folder = folder.with_name(f"{folder.name}-{spec.digest()[:12]}-{version}")
        job = SweepJob(
            folder,
            self.options.host,
            self.options.checkpoint,
            spec,
            prompts,
            threads=self.options.threads,
            keep_images=keep,
        )
        missing = prepare(job)
        total = job.evaluations(range(len(job.shards)))
        done = total - job.evaluations(missing)
        if missing:

            def advance(evaluations: int) -> None:
                nonlocal done
                done += evaluations
                self.progress(what, done, total)

            run_workers(job, missing, self.options.workers, advance)
        if missing or not (folder / DATASET_FILE).is_file():
            save_merged(merge(job), folder)
        return folder

    def side_sampling(self) -> Sampling:
        """Of further sweeps: the main sweep's own, so that they can be compared with it."""
        digest = file_digest(self.options.checkpoint)
        if self.spec.checkpoint_sha256 != digest:
            raise InputError(
                f"--checkpoint: {self.options.checkpoint.name} is not the model that the sweep was rendered with."
            )
        device = self.evidence.dataset.provenance.get("device", "cpu")
        if device != "cpu":
            raise InputError(
                f"--sweep: it was rendered on {device}, and the benchmark renders on the CPU, where the same seeds "
                "give other pictures. Name --parts without shift and grid; with --full, variance needs --crossed."
            )
        theirs, ours = self.evidence.dataset.provenance.get("host_version"), host_version(self.options.host)
        if theirs and ours and theirs != ours:
            raise InputError(
                f"--host: the sweep was rendered by ComfyUI {theirs}, and this is {ours}. Name the sweep's ComfyUI, "
                "or --parts without shift and grid; with --full, variance needs --crossed."
            )
        return self.spec.sampling

    # --------------------------------------------------------------------------------------------------------- parts

    def run(self) -> dict[str, Any]:
        """Name -> figures of every part that was asked for or lies there finished."""
        found = {}
        for name in PARTS:
            wanted = name in self.options.parts
            content = None if name in self.options.again and wanted else self.finished(name)
            if content is None and wanted:
                started = time.monotonic()
                self.progress(name, 0, 1)
                content = getattr(self, f"part_{name}")()
                if content is not None:
                    content = finite({**content, "minutes": round((time.monotonic() - started) / 60, 1)})
                    self._keep(name, content)
            if content is not None:
                found[name] = content
        return found

    def key(self, *further: Any) -> str:
        """Says which inputs a part was computed from."""
        parts = [file_digest(self.options.planner), self._data_digest(), self.options.seed, self.options.full, VERSION]
        return hashlib.sha256(json.dumps([*parts, *further]).encode()).hexdigest()[:16]

    def _host_inputs(self) -> tuple[str | None, str | None]:
        """What else decides the parts that render: the host's version and the model. None for what is not there."""
        checkpoint = self.options.checkpoint
        return host_version(self.options.host), file_digest(checkpoint) if checkpoint.is_file() else None

    def _path(self, name: str) -> Path:
        further: tuple[Any, ...] = ()
        if name in HOST_PARTS:
            further = (*self._host_inputs(), self._peer_count())
        elif name == "variance" and self.options.crossed:
            further = (_dataset_digest(self.options.crossed),)
        elif name in RENDERING_PARTS and (self.options.full or name == "shift"):
            further = self._host_inputs()
        return self.options.work / "parts" / f"{name}-{self.key(*further)}.json"

    def finished(self, name: str) -> dict[str, Any] | None:
        return _read(self._path(name))

    def _keep(self, name: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(finite(content), indent=1, allow_nan=False) + "\n"
        _write(self._path(name), text.encode())

    def part_variance(self) -> dict[str, Any]:
        evidence = self.evidence
        rows = evidence.rows["test"]
        report = variance.variance_report(evidence.dataset, evidence.scale, QUALITIES, rows)
        found = {"sweep": {**report, "dtype": evidence.dataset.setting.precision}}
        if self.options.full or self.options.crossed:
            folder = self.options.crossed or self._crossed()
            crossed = _dataset(folder)
            unnamed = replace(crossed.setting, precision="")  # of another one it may be: see `variance.telling`
            check_belongs(replace(crossed, setting=unnamed), self.planner)
            if not variance.is_crossed(crossed.seeds[crossed.rows("test")]):
                raise InputError(
                    "--crossed: the test prompts of this sweep do not all have the same noise seeds. Name one that "
                    "this benchmark made, or leave it out."
                )
            report = variance.variance_report(crossed, evidence.scale, QUALITIES, crossed.rows("test"))
            found["crossed"] = {**report, "dtype": crossed.setting.precision}
        return found

    def _first(self, split: str, count: int) -> list[StudyPrompt]:
        """The first prompts of one split, in the sweep's order."""
        return [prompt for prompt in self.prompts.prompts if prompt.split == split][:count]

    def _crossed(self) -> Path:
        """150 test prompts, each rendered from the same 8 noise seeds: only then seed and rest can be told apart."""
        chosen = self._first("test", CROSSED_PROMPTS)
        rng = np.random.default_rng([self.options.seed, 8])
        seeds = tuple(int(s) for s in rng.choice(2**32, CROSSED_SEEDS, replace=False))
        prompts = PromptList(tuple(replace(p, seeds=seeds) for p in chosen), {"made": "crossed seeds"})
        return self._render("crossed seeds", self.options.work / "crossed", prompts, self.side_sampling(), 0)

    def _finer(self) -> Path:
        """Prompts of the sweep, one of their seeds each, at twice as many step counts."""
        chosen = [prompt for split, count in FINER_PROMPTS.items() for prompt in self._first(split, count)]
        prompts = PromptList(tuple(replace(p, seeds=p.seeds[:1]) for p in chosen), {"made": "finer grid"})
        grid = grid_density.refined(self.planner.grid)
        return self._render("finer grid", self.options.work / "finer", prompts, self.side_sampling(), 0, grid=grid)

    def part_rules(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "training_prompts": len(self.evidence.rows["train"]),
            "calibration_prompts": len(self.evidence.rows["calibration"]),
            "planner": planner_counts(self.planner),
            "by_quality": {},
        }
        shared = comparison.rival_scores(self.evidence, self.options.seed, self.fit_options)
        for place, q in enumerate(QUALITIES):
            self.progress("rules", place, len(QUALITIES))
            scores = {
                **shared,
                **comparison.classifier_scores(self.evidence, q, self.options.seed, self.fit_options),
            }
            found["by_quality"][f"{q:.2f}"] = {
                "equal_cost": comparison.at_equal_cost(self.evidence, scores, q, ALPHA, self.options.seed),
                "equal_risk": comparison.at_equal_risk(self.evidence, scores, q, ALPHA, self.options.seed),
                "gains": comparison.gains(self.evidence, q, ALPHA, self.options.seed),
            }
        return found

    def part_risk(self) -> dict[str, Any]:
        seed, evidence = self.options.seed, self.evidence
        one_for_all = baseline_curves(evidence.dataset, evidence.scale, evidence.summaries)["global"]
        return {
            "calibration_prompts": self.planner.risk_table.prompts,
            "rows": risk_check.risk_table(evidence, ALPHAS, QUALITIES, seed),
            "redealt": risk_check.redealt(evidence, ALPHAS, QUALITIES, seed, other=one_for_all),
        }

    def part_shift(self) -> dict[str, Any]:
        count, seeds = (100, 2) if self.options.full else (24, 1)
        prompts = busier_prompts(count, seeds, self.options.seed)
        folder = self.options.work / "busier"
        rendered = self._render("busier scenes", folder, prompts, self.side_sampling(), count * seeds)
        shifted = gather(_dataset(rendered), self.planner)
        return risk_check.shifted_figures(self.evidence, shifted, ALPHAS, QUALITIES, self.options.seed)

    def part_ablations(self) -> dict[str, Any]:
        """Each variant's figures are kept as soon as they are there."""
        path = self._path("ablations").with_suffix(".partial.json")
        found: dict[str, Any] = ({} if "ablations" in self.options.again else _read(path)) or {}
        listed = list(ablations.jobs(self.evidence, self.options.seed, self.fit_options))
        if not self.options.full:
            listed = [job for job in listed if job[0] in ("metrics", "quantile level")]
        for place, (group, name, scores) in enumerate(listed):
            self.progress("ablations", place, len(listed))
            if name not in found.get(group, {}):
                found.setdefault(group, {})[name] = ablations.figures(self.evidence, scores(), QUALITY, ALPHA)
                found = finite(found)
                _write(path, json.dumps(found, allow_nan=False).encode())
        return {
            "groups": found,
            "promise_by_metric": ablations.promise_by_metric(self.evidence, QUALITY, ALPHA),
        }

    def part_grid(self) -> dict[str, Any] | None:
        """None in a quick run: it renders for half an hour; and where no count lies between the planner's."""
        if not self.options.full:
            return None
        if grid_density.refined(self.planner.grid) == self.planner.grid:
            log.warning("part grid: left out, because no count lies between those of the planner.")
            return None
        dataset, planner = _dataset(self._finer()), self.planner
        check_belongs(grid_density.thinned(dataset, planner.grid), planner)
        return grid_density.compare_grids(
            dataset,
            planner.grid,
            planner.scale,
            QUALITY,
            ALPHA,
            self.options.seed,
            replace(self.fit_options, networks=1),
            lambda done, total: self.progress("grids", done, total),
        )

    # ---------------------------------------------------------------------------------------- parts that need the host

    @cached_property
    def bed(self) -> Bench:
        """The host in this process, with everything to judge with."""
        from research.sweeps.rendering import identify, load_model

        from .peers import Bench

        backends = self._peer_backends()
        self._base = tempfile.TemporaryDirectory(prefix="budgetfusion-bench-", ignore_cleanup_errors=True)
        torch.set_num_threads(min(self.options.workers, os.cpu_count() or 1))  # as a user's host uses the machine
        loaded = load_model(self.options.host, Path(self._base.name), self.options.checkpoint)
        found = identify(loaded, self._sampling())
        # peers render as an artist's host does, in its own precision, whatever the planner was calibrated in
        if differences(self.planner.setting, replace(found, precision="")):
            raise InputError(
                f"--checkpoint: the planner is for {self.planner.setting.describe()} and this is another model. Name "
                "the planner that belongs to it."
            )
        return Bench(
            loaded,
            self._sampling(),
            self.planner,
            backends,
            load_classifier(CLASSIFIER),
            limit_steps=200 if self.options.full else 100,
        )

    def _peer_backends(self) -> Backends:
        """The planner's own, for which alone its scale holds."""
        backends = Backends.from_values(self.planner.backends.get("d_sim", "auto"), "shipped")
        if backends.names() != dict(self.planner.backends):
            raise InputError(
                f"--planner: {self.options.planner.name} was made with {dict(self.planner.backends)} and peers are "
                f"measured with {backends.names()}. Name a planner of these, or leave out the parts "
                f"{' and '.join(HOST_PARTS)}."
            )
        return backends

    def peer_prompts(self) -> list[StudyPrompt]:
        return self._first("test", self._peer_count())

    def _peer_count(self) -> int:
        return self.options.peer_prompts or (40 if self.options.full else 5)

    def part_peers(self) -> dict[str, Any]:
        from .peers import run_prompts, summarise, variants

        bed, prompts = self.bed, self.peer_prompts()
        listed = variants(self.planner.target_steps, not self.options.full, self.planner.setting.scheduler)
        chosen, left_out = bed.usable(listed)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self.progress("peers", done, len(prompts))

        folder = self.options.work / f"peers-{self.key(*self._host_inputs())}"  # other counts share their prompts
        if "peers" in self.options.again:
            for path in folder.glob("*.json"):
                path.unlink()
        results = run_prompts(bed, chosen, prompts, folder, self.options.seed, advance)
        return {
            **summarise(results, chosen, self.options.seed, QUALITY),
            "left_out": left_out,
            "limit_steps": bed.limit_steps,
            "threads": torch.get_num_threads(),
        }

    def part_profile(self) -> dict[str, Any]:
        from .gpu_profile import sd21_profile
        from .profiling import SIZES, end_to_end, metric_times

        sizes = SIZES if self.options.full else SIZES[:4]
        mean_steps = float(np.mean([self.evidence.counts[i] for i in self._planned()]))
        return {
            "end_to_end": end_to_end(self.bed, self.peer_prompts()[:10], QUALITY, ALPHA),
            "metrics": metric_times(self.bed.backends, sizes),
            "gpu": sd21_profile(self.planner.target_steps, round(mean_steps)),
            "known_plateaus": [
                synthetic.plateau_experiment(self.options.seed, train, noise, replace(self.fit_options, networks=1))
                for train in ((50, 200, 800) if self.options.full else (50, 200))
                for noise in (0.0, 0.2)
            ],
        }

    def _planned(self) -> Any:
        from research.statistics.allocation import planned_index

        rows = self.evidence.rows["test"]
        return planned_index(self.evidence.upper[rows], self.evidence.threshold(ALPHA, QUALITY))

    def part_gallery(self) -> dict[str, Any]:
        failures = gallery.worst_failures(self.evidence, self.prompts, QUALITY, ALPHA)
        drawn = {}
        for kind, file in ((gallery.UNDER, "too_few_steps.png"), (gallery.OVER, "too_many_steps.png")):
            chosen = [failure for failure in failures if failure.kind == kind]
            if gallery.draw(self.evidence, chosen, self.sweep_folder, self.prompts, self.options.images / file):
                drawn[kind] = file
        return {
            "failures": [gallery.to_dict(failure) for failure in failures],
            "reasons": {kind: gallery.reasons(failures, kind) for kind in (gallery.UNDER, gallery.OVER)},
            "pictures": drawn,
        }

    # ---------------------------------------------------------------------------------------------------- provenance

    def provenance(self) -> dict[str, Any]:
        """What the figures were made from; no folder of this machine."""
        dataset = self.evidence.dataset
        present = dataset.present
        return {
            "mode": "full" if self.options.full else "quick",
            "model": "Tiny Scenes",
            "checkpoint": {
                "name": self.options.checkpoint.name,
                "sha256": file_digest(self.options.checkpoint) if self.options.checkpoint.is_file() else None,
            },
            "planner": {"name": self.planner.name, "sha256": file_digest(self.options.planner)},
            "setting": self.planner.setting.to_dict(),
            "grid": list(self.planner.grid),
            "scale": dict(zip(self.planner.metrics, self.planner.scale, strict=True)),
            "backends": dict(self.planner.backends),
            "sweep": {
                "sha256": self._data_digest(),
                "own": self.options.sweep is None,
                "prompts": {split: len(rows) for split, rows in self.evidence.rows.items()},
                "trajectories": {split: int(present[rows].sum()) for split, rows in self.evidence.rows.items()},
                "sampling": asdict(self.spec.sampling),
                "precision": dataset.setting.precision,
            },
            "seed": self.options.seed,
            "host": dict(dataset.provenance).get("host_version"),
            "torch": torch.__version__,
            "machine": {"system": platform.system(), "python": platform.python_version()},
        }


def planner_counts(planner: Planner) -> dict[str, int | None]:
    """Training and calibration prompts that the planner itself was made from, by its own file."""
    made = _nested(planner.provenance, "data")
    return {split: made.get(split) for split in ("train", "calibration")}


def _nested(content: Any, *keys: str) -> Mapping[str, Any]:
    """The mapping below `keys`; an empty one where the way there is another: a file says what it likes."""
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content if isinstance(content, Mapping) else {}


def host_version(folder: Path) -> str | None:
    """Of a ComfyUI folder, without importing it."""
    try:
        text = (folder / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"""__version__\s*=\s*["']([^"']+)""", text)
    return found[1] if found else None


def finite(content: Any) -> Any:
    """The same with None for every number that JSON cannot hold."""
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _dataset(folder: Path) -> SweepDataset:
    return SweepDataset.load(folder / DATASET_FILE)


def _dataset_digest(folder: Path) -> str:
    return file_digest(folder / DATASET_FILE)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with in_one_piece(path) as partial:
        partial.write_bytes(content)


def _read(path: Path) -> dict[str, Any] | None:
    """None where there is no such file, or a damaged one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _read_array(path: Path, shape: tuple[int, ...]) -> Any:
    """None where there is no such file, or a damaged one."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if isinstance(found, np.ndarray) and found.shape == shape else None
