"""`python -m research study nested`: the calibration search of a nested schedule on Tiny Scenes, and its tables."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from research.options import DEVICES, WEIGHTS, add_host_option, number, run_folder, whole

if TYPE_CHECKING:
    from budgetfusion_nodes.core.curves import FloatArray
    from budgetfusion_nodes.core.schedule import NestedSchedule

    from .nested_study import Study

STAGES = ("commit", "prefix", "tails", "table")
STOCK_COUNTS = (2, 4, 6, 8, 10, 13, 17, 20, 25, 30, 40, 50)
TAILS = (1, 2, 3, 4, 5, 6, 8, 11, 15, 20, 30, 45)
SHORT_TAILS = (1, 2, 3, 4, 6)
ENDS = (1.0, 0.5, 0.0)
EXPONENTS = (0.25, 0.5)
PREFIXES = (4, 5, 6, 8)
TARGET_TAIL = 20


def add_parser(commands: Any) -> None:
    """Adds `nested`."""
    text = "find a nested schedule on Tiny Scenes and compare it with the stock one; resumable"
    parser = commands.add_parser("nested", help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    add_host_option(parser)
    parser.add_argument("--checkpoint", type=Path, default=WEIGHTS / "checkpoints" / "tiny_scenes.safetensors")
    parser.add_argument("--sampler", default="dpmpp_2m", help="(%(default)s)")
    parser.add_argument("--scheduler", default="karras", help="(%(default)s)")
    parser.add_argument("--cfg", type=number(0, 100), default=3.0, help="(%(default)s)")
    parser.add_argument("--prompts", type=whole(2, 10_000), default=32, help="held-out ones (%(default)s)")
    parser.add_argument("--seeds", type=whole(2, 100), default=4, help="of each prompt (%(default)s)")
    parser.add_argument("--quality", type=number(0.5, 0.99), default=0.9, help="(%(default)s)")
    parser.add_argument("--stages", default=",".join(STAGES), help="separated by commas (%(default)s)")
    parser.add_argument("--commit", type=number(1e-6, 1e6), help="sigma; left out, it is searched for")
    parser.add_argument("--prefix", type=whole(1, 1000), help="steps; left out, they are searched for")
    parser.add_argument("--work", type=Path, default=run_folder() / "nested", help="finished renders (%(default)s)")
    parser.add_argument("--threads", type=whole(1, 1000), default=1, help="CPU threads (%(default)s)")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="in full single precision (%(default)s)")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run(args: argparse.Namespace) -> int:
    import torch

    torch.set_num_threads(args.threads)
    stages = args.stages.split(",")
    with tempfile.TemporaryDirectory(prefix="budgetfusion-nested-", ignore_cleanup_errors=True) as base:
        study = _study(args, Path(base))
        commit = args.commit
        if "commit" in stages:
            found = _commit(study, args.quality)
            commit = commit or found
        schedule = _start(study, commit, args.prefix)
        if "prefix" in stages:
            found = _prefix(study, schedule)
            schedule = found if found is not None and args.prefix is None else schedule
        if "tails" in stages:
            _tails(study, schedule, args.quality)
        if "table" in stages:
            _table(study, schedule, args.quality)
    return 0


def _study(args: argparse.Namespace, base: Path) -> Study:
    from budgetfusion_nodes.metrics.measure import Backends
    from research.tiny_scenes_training.classifier import load_classifier

    from .nested_study import Study
    from .picture_sets import PictureSets
    from .prompts import tiny_scenes_prompts
    from .rendering import Renderer, Sampling, load_model

    loaded = load_model(args.host.resolve(), base, args.checkpoint.resolve(), args.device, fp32=True)
    prompts = tiny_scenes_prompts(
        77, {"train": 0, "calibration": 0, "test": args.prompts}, {"train": 1, "calibration": 1, "test": args.seeds}
    )
    name = f"{args.sampler}-{args.scheduler}-{args.cfg:g}-{prompts.digest()[:12]}"
    folder = args.work / name
    folder.mkdir(parents=True, exist_ok=True)
    sampling = Sampling(args.sampler, args.scheduler, args.cfg)
    backends = Backends.from_values("tiny_scenes", "shipped")
    classifier = load_classifier(WEIGHTS / "classifier" / "tiny_scenes_classifier.safetensors")
    return Study(Renderer(loaded, sampling), PictureSets(folder, prompts), classifier, backends)


def _start(study: Study, commit: float | None, prefix: int | None) -> NestedSchedule:
    from budgetfusion_nodes.core.errors import InputError
    from budgetfusion_nodes.core.schedule import NestedSchedule

    if commit is None:
        raise InputError("--commit: give the sigma, or let the stage commit find it.")
    return NestedSchedule(prefix or 5, commit, study.tail_end)


def _scale(study: Study) -> FloatArray:
    """[M] medians of the stock schedule's distances at its least count."""
    from .nested_study import DENSE_STEPS

    crude, dense = study.render(study.stock(STOCK_COUNTS[0])), study.render(study.stock(DENSE_STEPS))
    return np.median(study.shortfall(crude, dense), axis=0)


def _commit(study: Study, q: float) -> float:
    from budgetfusion_nodes.calibration.schedule_search import commit_candidates, commit_runs, find_commit
    from budgetfusion_nodes.core.curves import METRICS
    from budgetfusion_nodes.core.errors import UnsupportedError

    from .nested_study import DENSE_STEPS

    dense = study.stock(DENSE_STEPS)
    runs = commit_runs(study.quantile, dense, commit_candidates(study.quantile), study.tail_end)
    study.prepare([dense, *runs.values(), study.stock(STOCK_COUNTS[0])])
    scale, composition = _scale(study), METRICS.index("d_sim")

    def changed(images: Any, target: Any) -> Any:
        return study.shortfall(images, target)[:, composition] > scale[composition] / 2

    def missed(images: Any, target: Any) -> Any:
        return (study.shortfall(images, target) / scale).max(axis=1) > 1 - q

    target = study.render(dense)
    commit, shares = find_commit(study.render, target, missed, runs)
    if commit is None:
        raise UnsupportedError(f"no commit point: {shares}. Keep the stock schedule for this model.")
    _say("\n| fine down to sigma, then 6 steps | below the quality | D-SIM above half its scale |\n|---|---|---|")
    for sigma in sorted(runs, reverse=True):
        other = changed(study.render(runs[sigma]), target).mean()
        _say(f"| {sigma:.3g} | {shares[sigma]:.1%} | {other:.1%} |")
    _say(f"commit point: {commit:.3g}")
    return float(f"{commit:.3g}")


def _prefix(study: Study, start: NestedSchedule) -> NestedSchedule | None:
    from budgetfusion_nodes.calibration.schedule_search import find_prefix

    from .nested_study import DENSE_STEPS

    dense = study.render(study.stock(DENSE_STEPS))
    found, trials = find_prefix(
        study.render,
        study.quantile,
        dense,
        start,
        study.measures(),
        len(study.prompts.prompts),
        prefixes=PREFIXES,
        target_tail=TARGET_TAIL,
        stop=False,
    )
    names = list(study.measures())
    _say(f"\n| prefix to sigma {start.sigma_commit:g}, worsening of its target | {' | '.join(names)} | within limits |")
    _say("|---|" + "---|" * (len(names) + 1))
    for trial in trials:
        cells = [f"{w.value:+.4f} ({w.low:+.4f} to {w.high:+.4f})" for w in trial.worsening.values()]
        within = "yes" if trial.accepted else "no"
        _say(f"| {trial.schedule.prefix_steps} | {' | '.join(cells)} | {within} |")
    return found


def _tails(study: Study, schedule: NestedSchedule, q: float) -> None:
    """Every spacing of a short tail against the same long tail."""
    from budgetfusion_nodes.core.schedule import density_warp
    from budgetfusion_nodes.metrics.l_snr import l_snr

    from .nested_study import movement, shortest_path, student_paths

    dense, trace = study.trace()
    shares = np.array([study.quantile.share(float(s)) for s in dense[:-1]])
    first = int(np.abs(np.log(dense[:-1]) - np.log(schedule.sigma_commit)).argmin())
    places = (shares[first:] - shares[first]) / (shares[-1] - shares[first])
    speed = movement(trace)[first:] / np.append(np.diff(places), places[-1] - places[-2])
    options = {f"end {end:g}": replace(schedule, tail_end=end) for end in ENDS}
    for exponent in EXPONENTS:
        warp = density_warp(places, speed, exponent)
        for end in ENDS[:2]:
            options[f"speed^{exponent:g}, end {end:g}"] = replace(schedule, tail_end=end, tail_warp=warp)
        _say(f"warp of speed^{exponent:g}: {warp}")
    prefix = schedule.prefix_steps
    runs = {
        (name, m): option.sigmas(prefix + m, study.quantile) for name, option in options.items() for m in SHORT_TAILS
    }
    begin = schedule.sigmas(prefix + 1, study.quantile)[: prefix + 1]
    optimal = student_paths(dense, trace, first, max(SHORT_TAILS), study.denoised)
    for m in SHORT_TAILS:
        for name, path in (("GITS", shortest_path(dense, trace, first, m)), ("OptimalSteps", optimal[m])):
            runs[name, m] = np.append(begin, [dense[i] for i in path[1:]]).astype(np.float32)
    longest = schedule.sigmas(prefix + TAILS[-1], study.quantile)
    study.prepare([longest, *runs.values()])
    target, scale = study.render(longest), _scale(study)
    columns = " | ".join(f"{m}: below {q:g}, L-SNR, wrong" for m in SHORT_TAILS)
    _say(f"\n| tail after {prefix} steps to sigma {schedule.sigma_commit:g} | {columns} |")
    _say("|---|" + "---|" * len(SHORT_TAILS))
    for name in dict.fromkeys(name for name, _ in runs):
        cells = []
        for m in SHORT_TAILS:
            images = study.render(runs[name, m])
            missed = ((study.shortfall(images, target) / scale).max(axis=1) > 1 - q).mean()
            level = float((l_snr(images) - l_snr(target)).mean())
            cells.append(f"{missed:.1%}, {level:+.2f} dB, {study.wrong(images).mean():.1%}")
        _say(f"| {name} | {' | '.join(cells)} |")


def _table(study: Study, schedule: NestedSchedule, q: float) -> None:
    from .nested_study import HEAD, headline

    prefix, scale = schedule.prefix_steps, _scale(study)
    stock = {n: study.stock(n) for n in STOCK_COUNTS}
    nested = {prefix + m: schedule.sigmas(prefix + m, study.quantile) for m in TAILS}
    _say(f"\n{HEAD}")
    for name, runs in (
        ("stock", stock),
        (f"{prefix} steps to sigma {schedule.sigma_commit:g}, then the tail", nested),
    ):
        row = headline(study, name, runs, scale, q)
        _say(row.text(len(study.prompts.prompts)))
        _say(", ".join(f"{n}: {v:.1%}" for n, v in zip(row.counts, row.violations, strict=True)))
