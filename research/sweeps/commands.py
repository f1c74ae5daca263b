"""`python -m research study ...`: sweep, merge, join, remeasure, train, report, convergence, bench."""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetfusion_nodes.core.curves import DEFAULT_GRID, METRICS, parse_grid
from budgetfusion_nodes.core.errors import InputError
from research.memory import commands as memory_commands
from research.options import DEVICES, DTYPES, ROOT, WEIGHTS, add_host_option, number, run_folder, whole
from research.sweeps import nested_commands

if TYPE_CHECKING:
    from budgetfusion_nodes.predictor.planner import Planner

    from .prompts import PromptList
    from .rendering import Sampling
    from .sweep import Merged, SweepJob

# Everything that imports torch is imported by the command that needs it, so that --help stays fast.

DEFAULT_CHECKPOINT = WEIGHTS / "checkpoints" / "tiny_scenes.safetensors"
DEFAULT_PLANNER = WEIGHTS / "planners" / "tiny_scenes_dpmpp_2m.safetensors"
DEFAULT_SWEEP = run_folder() / "sweep"
AS_RENDERED = "dataset_as_rendered.safetensors"
"""Where `study remeasure` keeps the data as the sweep made it."""
SPLIT_ORDER = ("train", "calibration", "test")


def add_parser(subparsers: Any) -> None:
    """Adds `study`; the chosen command is `args.run(args)`, which returns the exit code."""
    study = subparsers.add_parser("study", help="render sweeps, fit planners, print held-out figures")
    commands = study.add_subparsers(dest="study_command", required=True, metavar="COMMAND")
    _add_sweep(commands)
    _add_merge(commands)
    _add_join(commands)
    _add_remeasure(commands)
    _add_train(commands)
    _add_report(commands)
    _add_savings(commands)
    _add_convergence(commands)
    _add_bench(commands)
    nested_commands.add_parser(commands)
    memory_commands.add_parser(commands)


# ------------------------------------------------------------------------------------------------------------ options


def _add_sweep(commands: Any) -> None:
    parser = _command(commands, "sweep", "render prompts x seeds x step counts and measure them; resumable", run_sweep)
    _add_out(parser)
    _add_rendering(parser)
    _add_prompts(parser)
    parser.add_argument(
        "--grid", default=_words(DEFAULT_GRID), help="step counts, the last is the target (%(default)s)"
    )
    parser.add_argument(
        "--workers", type=whole(1, 100_000), default=1, help="processes, each with a host (%(default)s)"
    )
    parser.add_argument(
        "--keep-images", type=whole(0, 100_000), default=0, metavar="N", help="save the first N trajectories as PNG"
    )
    parser.add_argument(
        "--shards", type=whole(1, 100_000), metavar="N", help="stop after N more shards (to try things out)"
    )


def _add_merge(commands: Any) -> None:
    parser = _command(commands, "merge", "write dataset.safetensors of a sweep's finished shards", run_merge)
    _add_out(parser)
    parser.add_argument("--partial", action="store_true", help="of an unfinished sweep too")


def _add_join(commands: Any) -> None:
    text = "make one sweep of several finished ones of the same settings, for instance with more training prompts"
    parser = _command(commands, "join", text, run_join)
    parser.add_argument("sweeps", type=Path, nargs="+", help="folders of finished sweeps")
    parser.add_argument("--out", type=Path, required=True, help="folder of the joined sweep")


def _add_remeasure(commands: Any) -> None:
    text = "measure a finished sweep again from its kept pictures, after a change of a metric"
    parser = _command(commands, "remeasure", text, run_remeasure)
    parser.add_argument("--sweep", type=Path, default=DEFAULT_SWEEP, help="folder of the sweep")
    parser.add_argument("--metrics", default=",".join(METRICS), help="separated by commas (%(default)s)")
    parser.add_argument("--d-sim", help="backend (default: the one that the sweep was measured with)")
    parser.add_argument("--image-encoder", default="shipped", help="of i_clip: shipped, or a file (%(default)s)")


def _add_train(commands: Any) -> None:
    parser = _command(commands, "train", "fit a planner to sweep data", run_train)
    parser.add_argument("--data", type=Path, default=DEFAULT_SWEEP / "dataset.safetensors", help="sweep data")
    parser.add_argument("--out", type=Path, default=DEFAULT_PLANNER, help="planner file; its .json is written beside")
    parser.add_argument("--name", help="shown on the node (default: the file's name)")
    parser.add_argument("--seed", type=int, default=1, help="of the fit (%(default)s)")
    parser.add_argument("--networks", type=whole(1, 100_000), help="size of the ensemble")
    parser.add_argument("--epochs", type=whole(1, 100_000), help="upper limit; training stops early")
    parser.add_argument("--threads", type=whole(1, 100_000), default=1, help="CPU threads (%(default)s)")


def _add_report(commands: Any) -> None:
    parser = _command(commands, "report", "print a planner's held-out figures", run_report)
    parser.add_argument("planner", type=Path, nargs="?", default=DEFAULT_PLANNER, help="planner file")
    parser.add_argument("--data", type=Path, help="compute them again from this sweep data")
    parser.add_argument("--seed", type=int, default=1, help="of the bootstrap (%(default)s)")
    parser.add_argument("--json", action="store_true", help="everything, as JSON")


def _add_savings(commands: Any) -> None:
    text = "what a calibration that leaves out decided counts saves, replayed on a sweep's finished shards"
    parser = _command(commands, "savings", text, run_savings)
    parser.add_argument("--sweep", type=Path, default=DEFAULT_SWEEP, help="folder of the sweep (%(default)s)")


def run_savings(args: argparse.Namespace) -> int:
    from .savings import print_savings

    print_savings(args.sweep)
    return 0


def _add_convergence(commands: Any) -> None:
    parser = _command(commands, "convergence", "which scheduler converges best at equal steps", run_convergence)
    _add_rendering(parser, scheduler=False)
    parser.add_argument("--schedulers", default="karras,normal", help="names, separated by commas (%(default)s)")
    parser.add_argument("--prompts", type=whole(1, 100_000), default=32, help="calibration prompts (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the prompt list (%(default)s)")
    parser.add_argument("--grid", default="4 8 13 22 38 50", help="step counts (%(default)s)")
    parser.add_argument("--target", type=whole(1, 100_000), default=200, help="steps of the limit image (%(default)s)")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")


def _add_bench(commands: Any) -> None:
    parser = _command(commands, "bench", "write docs/benchmark.md, its plots and bench.json; resumable", run_bench)
    add_host_option(parser)
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT_CHECKPOINT, help="model file (Tiny Scenes)")
    parser.add_argument("--planner", type=Path, default=DEFAULT_PLANNER, help="planner under test")
    parser.add_argument("--sweep", type=Path, help="folder of a finished sweep; left out, a small one is made")
    parser.add_argument("--crossed", type=Path, help="folder of a finished sweep whose prompts share their noise seeds")
    parser.add_argument("--full", action="store_true", help="as long as it takes, instead of about 15 minutes")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="where to write (default: docs)")
    parser.add_argument("--work", type=Path, default=run_folder() / "bench", help="where finished parts are kept")
    parser.add_argument("--workers", type=whole(1, 64), default=2, help="processes of a sweep (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of resampling and training (%(default)s)")
    parser.add_argument("--peer-prompts", type=whole(1, 10_000), help="prompts for the peers (5, or 40 with --full)")
    parser.add_argument(
        "--parts", default="", help="only these, separated by commas; finished others stay in the report"
    )
    parser.add_argument("--again", default="", help="parts to compute again although they are finished")


def _command(commands: Any, name: str, text: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=DEFAULT_SWEEP, help="folder of the sweep")


def _add_rendering(parser: argparse.ArgumentParser, scheduler: bool = True) -> None:
    add_host_option(parser)
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT_CHECKPOINT, help="model file (Tiny Scenes)")
    parser.add_argument("--sampler", default="dpmpp_2m", help="(%(default)s)")
    if scheduler:
        parser.add_argument("--scheduler", default="karras", help="(%(default)s)")
    parser.add_argument("--cfg", type=number(0, 100), default=3.0, help="1 skips the negative prompt (%(default)s)")
    parser.add_argument("--width", type=whole(1, 100_000), default=64, help="pixels (%(default)s)")
    parser.add_argument("--height", type=whole(1, 100_000), default=64, help="pixels (%(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, help="of the denoiser (default: fp32; on a GPU ComfyUI's choice)")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="where ComfyUI runs (%(default)s)")
    parser.add_argument("--batch", type=whole(1, 100_000), default=32, help="trajectories at once (%(default)s)")
    parser.add_argument("--threads", type=whole(1, 100_000), default=1, help="CPU threads of a process (%(default)s)")
    parser.add_argument(
        "--d-sim",
        help="tiny_scenes, haarpsi, lpips, dreamsim or auto (default: tiny_scenes; with --prompt-list auto)",
    )
    parser.add_argument(
        "--i-clip", help="image encoder: shipped, or a file (default: shipped; with --prompt-list you name one)"
    )


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    from .prompts import COUNTS, SEEDS

    parser.add_argument("--seed", type=int, default=1, help="of prompts and noise (%(default)s)")
    parser.add_argument("--prompt-list", type=Path, help="a prompts.json of your own instead of Tiny Scenes")
    for split in SPLIT_ORDER:
        parser.add_argument(f"--{split}", type=whole(0, 100_000), default=COUNTS[split], help="prompts (%(default)s)")
        parser.add_argument(f"--{split}-seeds", type=whole(1, 100_000), default=SEEDS[split], help="each (%(default)s)")


def _words(values: Sequence[int]) -> str:
    return " ".join(str(value) for value in values)


# -------------------------------------------------------------------------------------------------------------- sweep


def run_sweep(args: argparse.Namespace) -> int:
    from .sweep import prepare, run_here, run_workers

    _check_not_remeasured(args.out)
    job = _job(args)
    missing = prepare(job)
    finished = len(job.shards) - len(missing)
    chosen = missing[: args.shards] if args.shards else missing
    _say(
        f"{len(job.prompts.prompts)} prompts, {len(job.prompts.pairs)} trajectories, {len(job.shards)} shards "
        f"({finished} finished) -> {job.out}"
    )
    done = job.evaluations([i for i in range(len(job.shards)) if i not in set(missing)])
    with _bar(args, done + job.evaluations(chosen), done) as progress:
        if args.workers > 1 and chosen:
            run_workers(job, chosen, args.workers, progress)
        elif chosen:
            with tempfile.TemporaryDirectory(prefix="budgetfusion-sweep-", ignore_cleanup_errors=True) as base:
                run_here(job, chosen, Path(base), progress)
    if len(chosen) < len(missing):
        _say(f"{len(missing) - len(chosen)} shards are left: run the same command again.")
        return 0
    return _merge(job, partial=False)


def run_merge(args: argparse.Namespace) -> int:
    _check_not_remeasured(args.out)
    return _merge(_found_job(args.out), partial=args.partial)


def _merge(job: SweepJob, partial: bool) -> int:
    from .sweep import merge, save_merged

    merged = merge(job, {"commit": _commit(), "command": _command_line()}, partial=partial)
    save_merged(merged, job.out)
    _say_written(job.out, merged)
    return 0


def _check_not_remeasured(out: Path) -> None:
    from budgetfusion_nodes.predictor.dataset import SweepDataset

    from .sweep import DATASET_FILE

    if not (out / AS_RENDERED).is_file():
        return
    try:
        provenance = SweepDataset.load(out / DATASET_FILE).provenance
    except InputError:  # data that cannot be read are no loss
        return
    if "measured_again" in provenance:
        raise InputError(
            f"--out: {out} was measured again by 'study remeasure', and merging would put the old numbers back. "
            f"Rename {AS_RENDERED} there to {DATASET_FILE} if that is what you want."
        )


def _say_written(out: Path, merged: Merged) -> None:
    from .sweep import DATASET_FILE, JUDGES_FILE

    counts = ", ".join(f"{len(merged.dataset.rows(split))} {split}" for split in SPLIT_ORDER)
    _say(f"{out / DATASET_FILE} ({counts} prompts) and {JUDGES_FILE}")


def run_join(args: argparse.Namespace) -> int:
    from .joining import join

    merged = join(args.sweeps, args.out, {"commit": _commit(), "command": _command_line()})
    _say_written(args.out, merged)
    left_out = merged.dataset.provenance["source"]["left_out"]
    if left_out:
        _say(f"{left_out} prompts were left out: an earlier sweep holds the same text or scene.")
    return 0


def run_remeasure(args: argparse.Namespace) -> int:
    from budgetfusion_nodes.metrics.measure import Backends
    from budgetfusion_nodes.predictor.dataset import SweepDataset

    from .remeasure import remeasure
    from .sweep import DATASET_FILE

    metrics = _listed(args.metrics)
    job, path = _found_job(args.sweep), args.sweep / DATASET_FILE
    dataset = SweepDataset.load(path)
    kept = path.with_name(AS_RENDERED)
    backends = Backends.from_values(args.d_sim or dataset.backends["d_sim"], args.image_encoder)
    made = {"commit": _commit(), "command": _command_line()}
    with _bar(args, int(dataset.present.sum()), 0, "render") as advance:
        again = remeasure(dataset, job.prompts, args.sweep, backends, metrics, made, advance)
    if not kept.is_file():
        dataset.save(kept)
    again.save(path)
    _say(f"{path}: {', '.join(metrics)} measured again; {kept.name} holds what it was. 'study train' fits a planner.")
    return 0


def _measured_with(args: argparse.Namespace) -> tuple[str, str]:
    """d_sim and i_clip as given; left out, those made for Tiny Scenes pictures, unless the prompts are others."""
    if not getattr(args, "prompt_list", None):
        return args.d_sim or "tiny_scenes", args.i_clip or "shipped"
    if not args.i_clip:
        raise InputError(
            "--i-clip: the shipped image encoder knows Tiny Scenes pictures only. Name one for your own prompts, for "
            "example open_clip:ViT-B-32/models/clip/vit_b_32.safetensors."
        )
    return args.d_sim or "auto", args.i_clip


def _job(args: argparse.Namespace) -> SweepJob:
    from .prompts import PromptList, tiny_scenes_prompts
    from .sweep import SweepJob, make_spec

    if args.prompt_list:
        prompts = PromptList.load(args.prompt_list)
    else:
        counts = {split: getattr(args, split) for split in SPLIT_ORDER}
        if not any(counts.values()):
            raise InputError("--train, --calibration, --test: no prompt is left. Give one of them at least 1.")
        seeds = {split: getattr(args, f"{split}_seeds") for split in SPLIT_ORDER}
        prompts = tiny_scenes_prompts(args.seed, counts, seeds)
    d_sim, i_clip = _measured_with(args)
    spec = make_spec(
        args.checkpoint,
        prompts,
        _sampling(args, args.scheduler),
        i_clip,
        grid=parse_grid(args.grid),
        batch=args.batch,
        d_sim=d_sim,
    )
    return SweepJob(
        out=args.out,
        host_dir=args.host.resolve(),
        checkpoint=args.checkpoint.resolve(),
        spec=spec,
        prompts=prompts,
        threads=args.threads,
        image_encoder=i_clip,
        device=args.device,
        keep_images=args.keep_images,
    )


def _found_job(out: Path) -> SweepJob:
    """The sweep that lies in a folder, to read it only."""
    from .sweep import open_job

    return open_job(out)


def _sampling(args: argparse.Namespace, scheduler: str) -> Sampling:
    from budgetfusion_nodes.host.sampling import check_sampler

    from .rendering import Sampling

    check_sampler(args.sampler)
    if args.device == "gpu" and args.dtype == "bf16":
        raise InputError("--dtype: bf16 is for the CPU. On a GPU give fp32, or leave it to ComfyUI as for renders.")
    dtype = args.dtype or ("host" if args.device == "gpu" else "fp32")
    return Sampling(args.sampler, scheduler, args.cfg, args.width, args.height, dtype)


@contextlib.contextmanager
def _bar(args: argparse.Namespace, total: int, done: int, unit: str = "eval") -> Iterator[Callable[[int], None]]:
    """Evaluations (or other units) done, the pace and the time left."""
    from tqdm import tqdm

    with tqdm(total=total, initial=done, unit=unit, unit_scale=True, smoothing=0.05, disable=args.quiet) as bar:

        def advance(evaluations: int) -> None:
            bar.update(evaluations)

        yield advance


# ------------------------------------------------------------------------------------------------------------ planner


def run_train(args: argparse.Namespace) -> int:
    import torch

    from budgetfusion_nodes.predictor.dataset import SweepDataset
    from budgetfusion_nodes.predictor.fit import FitOptions
    from budgetfusion_nodes.predictor.planner_file import save_planner
    from research.statistics.fit_report import fit_and_report

    from .rendering import file_digest

    torch.set_num_threads(args.threads)
    options = FitOptions()
    if args.networks:
        options = replace(options, networks=args.networks)
    if args.epochs:
        options = replace(options, epochs=args.epochs)
    dataset = SweepDataset.load(args.data)
    planner, report = fit_and_report(dataset, args.seed, name=args.name or args.out.stem, options=options)
    made = {"commit": _commit(), "command": _command_line(), "data_sha256": file_digest(args.data)}
    provenance = {**dict(planner.provenance), **made}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_planner(args.out, planner, provenance)
    content = {
        "planner": planner.name,
        "sha256": file_digest(args.out),
        "setting": planner.setting.to_dict(),
        "grid": list(planner.grid),
        "backends": dict(planner.backends),
        "scale": dict(zip(planner.metrics, planner.scale, strict=True)),
        **provenance,
        "report": report,
    }
    sidecar = args.out.with_suffix(".json")
    sidecar.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    _say(f"{args.out} and {sidecar.name}\n{report_table(report)}")
    return 0


def run_report(args: argparse.Namespace) -> int:
    report = _computed_report(args.planner, args.data, args.seed) if args.data else _stored_report(args.planner)
    _say(json.dumps(report, indent=1) if args.json else report_table(report))
    return 0


def _stored_report(planner: Path) -> Mapping[str, Any]:
    sidecar = planner.with_suffix(".json")
    try:
        return json.loads(sidecar.read_text(encoding="utf-8"))["report"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"report: {sidecar.name} beside the planner cannot be read ({error}). Give --data to compute its figures."
        ) from error


def _computed_report(path: Path, data: Path, seed: int) -> Mapping[str, Any]:
    import torch

    from budgetfusion_nodes.predictor.dataset import SweepDataset
    from budgetfusion_nodes.predictor.fit import median_curves, project_prompts, upper_curves
    from budgetfusion_nodes.predictor.planner_file import load_planner
    from research.bench.evidence import check_belongs
    from research.statistics.held_out import held_out_report

    planner: Planner = load_planner(path)
    dataset = SweepDataset.load(data)
    check_belongs(dataset, planner)
    features = project_prompts(dataset, planner.projection)
    summaries = torch.stack([f.summary() for f in features])
    upper, median = upper_curves(planner, features), median_curves(planner, features)
    return held_out_report(dataset, planner.scale, upper, median, summaries, seed)


def report_table(report: Mapping[str, Any]) -> str:
    """The held-out figures that decide whether a planner is worth shipping."""
    prompts, seeds = report["prompts"], report["seeds"]
    lines = ["Prompts: " + ", ".join(f"{prompts[s]} {s} ({seeds[s]} trajectories)" for s in SPLIT_ORDER)]
    lines.append("Scale: " + ", ".join(f"{metric} {value:.4g}" for metric, value in report["scale"].items()))
    columns = ("mean_steps", "violation", "mean_quality", "mean_shortfall", "worst_tenth")
    for q, figures in report["by_quality"].items():
        lines.append(f"\nQuality {q} at risk {report['risk']:g}" + "".join(f"{name:>16}" for name in columns))
        for method, values in figures["methods"].items():
            numbers = [values[name] if isinstance(values[name], float) else values[name]["value"] for name in columns]
            lines.append(f"  {method:<23}" + "".join(f"{number:>16.3f}" for number in numbers))
        lines.append(_limits_line(figures))
    return "\n".join(lines)


def _limits_line(figures: Mapping[str, Any]) -> str:
    saved, gap = figures["saved_pct"], figures["gap_closed_uniform_to_oracle_c"]
    share, correlation = figures["variance_share_prompt"], figures["correlation_with_oracle_b"]
    return (
        f"  oracle A {figures['oracle_a']['mean_steps']:.1f} steps, oracle B {figures['oracle_b']['mean_steps']:.1f} "
        f"({figures['oracle_b_at_same_violation']['mean_steps']:.1f} at our violation); saved "
        f"{saved['target']:.0f} % of the target's steps; best fixed count {figures['best_fixed_at_same_violation']}; "
        f"gap uniform -> oracle C closed {_number(gap)}; variance by prompt {_number(share)}; "
        f"rank correlation with oracle B {_number(correlation)}"
    )


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


# -------------------------------------------------------------------------------------------------------- convergence


def run_convergence(args: argparse.Namespace) -> int:
    import torch

    from budgetfusion_nodes.metrics.measure import Backends

    from .convergence import compare_schedulers
    from .rendering import load_model

    torch.set_num_threads(args.threads)
    schedulers = [name.strip() for name in args.schedulers.split(",") if name.strip()]
    grid = parse_grid(args.grid)
    prompts = _calibration_prompts(args.seed, args.prompts)
    with tempfile.TemporaryDirectory(prefix="budgetfusion-study-", ignore_cleanup_errors=True) as base:
        place = args.host.resolve(), Path(base), args.checkpoint.resolve(), args.device
        loaded = load_model(*place, fp32=args.dtype == "fp32")
        backends = Backends.from_values(*_measured_with(args))
        total = len(schedulers) * args.prompts * (sum(grid) + args.target)
        with _bar(args, total, 0) as progress:
            found = compare_schedulers(
                loaded,
                _sampling(args, schedulers[0] if schedulers else ""),
                backends,
                prompts,
                schedulers,
                grid,
                args.target,
                args.batch,
                progress,
            )
    _say(found.table())
    if args.out:
        content = {**found.to_dict(), "command": _command_line(), "commit": _commit()}
        args.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


# -------------------------------------------------------------------------------------------------------------- bench


def run_bench(args: argparse.Namespace) -> int:
    from research.bench.bench import PARTS, BenchOptions, BenchRun
    from research.bench.bench_report import report_folder, write

    options = BenchOptions(
        host=args.host.resolve(),
        checkpoint=args.checkpoint.resolve(),
        planner=args.planner.resolve(),
        work=args.work.resolve(),
        out=report_folder(args.out.resolve(), full=args.full),
        sweep=args.sweep.resolve() if args.sweep else None,
        crossed=args.crossed.resolve() if args.crossed else None,
        full=args.full,
        workers=args.workers,
        seed=args.seed,
        peer_prompts=args.peer_prompts,
        parts=_listed(args.parts) or PARTS,
        again=_listed(args.again),
    )
    with _part_bar(args) as progress:
        run = BenchRun(options, progress)
        parts = run.run()
    provenance = {**run.provenance(), "commit": _commit()}
    goals = write(parts, provenance, _command_line(), options.out, options.images)
    for goal in goals:
        _say(f"{goal.verdict:<13} {goal.name}: {goal.found} (wanted: {goal.wanted})")
    _say(f"{_without_root(str(options.out / 'benchmark.md'))} and bench.json")
    return 0


def _listed(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


@contextlib.contextmanager
def _part_bar(args: argparse.Namespace) -> Iterator[Callable[[str, int, int], None]]:
    """One bar that is named after what is being done."""
    from tqdm import tqdm

    current = ""
    with tqdm(unit="", unit_scale=True, smoothing=0.05, disable=args.quiet) as bar:

        def show(what: str, done: int, total: int) -> None:
            nonlocal current
            if what != current:
                current = what
                bar.reset(total)
                bar.set_description(what)
            bar.update(done - bar.n)

        yield show


def _calibration_prompts(seed: int, count: int) -> PromptList:
    """Scenes that the generator never saw and no test is made on."""
    from .prompts import PromptList, tiny_scenes_prompts

    drawn = tiny_scenes_prompts(seed, {"train": 0, "calibration": count, "test": 0})
    return PromptList(drawn.prompts, drawn.source)


# -------------------------------------------------------------------------------------------------------------- words


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _command_line() -> str:
    """What was typed, without this machine's folders."""
    return "python -m research " + " ".join(_without_root(argument) for argument in sys.argv[1:])


def _without_root(argument: str) -> str:
    name, separator, value = argument.partition("=")
    if separator and name.startswith("--"):
        return f"{name}={_without_root(value)}"
    path = Path(argument)
    if not path.is_absolute():
        return argument
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def _commit() -> str | None:
    """The repository's commit, "+" for changed files; None outside a repository."""
    try:
        found = [
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return found[0].strip() + ("+" if found[1].strip() else "")
