"""`python -m research ship-planner`: puts a planner that Calibrate made among the shipped ones, with its provenance and
what it does on calibration prompts that its thresholds have not seen."""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from research.options import ROOT, WEIGHTS

if TYPE_CHECKING:
    from budgetfusion_nodes.calibration.store import Store
    from budgetfusion_nodes.predictor.dataset import SweepDataset
    from budgetfusion_nodes.predictor.planner import Planner

QUALITIES = (0.80, 0.90, 0.95)
RISK = 0.1


def add_parser(subparsers: Any) -> None:
    """Adds `ship-planner`; `args.run(args)` returns the exit code."""
    text = "put a planner that Calibrate made among the shipped ones, with its provenance and leave-one-out figures"
    parser = subparsers.add_parser("ship-planner", help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("planner", type=Path, help="file in models/budgetfusion")
    parser.add_argument("--store", type=Path, required=True, help="calibration.sqlite3 that it was made from")
    parser.add_argument("--captions", type=Path, required=True, help="the prompts, as `research captions` wrote them")
    parser.add_argument("--captions-command", required=True, help="the command that wrote them")
    parser.add_argument("--command", required=True, help="the command that made the planner")
    parser.add_argument("--checkpoint", default="tiny_scenes.safetensors", help="in weights/checkpoints (%(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the figures."""
    from budgetfusion_nodes.calibration.store import Store
    from budgetfusion_nodes.predictor.planner_file import load_planner
    from research.sweeps.rendering import file_digest

    planner = load_planner(args.planner)
    with Store.at(args.store) as store:
        figures = leave_one_out(planner, calibration_data(store, planner))
    target = WEIGHTS / "planners" / args.planner.name
    target.write_bytes(args.planner.read_bytes())
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    content = {
        "planner": planner.name,
        "sha256": file_digest(target),
        "setting": planner.setting.to_dict(),
        "grid": list(planner.grid),
        "backends": dict(planner.backends),
        "scale": dict(zip(planner.metrics, planner.scale, strict=True)),
        **planner.provenance,
        "checkpoint_sha256": file_digest(WEIGHTS / "checkpoints" / args.checkpoint),
        "captions_sha256": hashlib.sha256(args.captions.read_bytes()).hexdigest(),
        "captions_command": args.captions_command,
        "source": json.loads(args.captions.with_suffix(".json").read_text(encoding="utf-8")),
        "command": args.command,
        "commit": commit.stdout.strip(),
        "leave_one_out": figures,
    }
    sidecar = target.with_suffix(".json")
    sidecar.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0


def calibration_data(store: Store, planner: Planner) -> SweepDataset:
    """The calibration prompts' trajectories of the planner's setting, and no guide prompt. ValueError where the store
    has none."""
    from budgetfusion_nodes.calibration.dataset import build_dataset
    from budgetfusion_nodes.calibration.records import Subject
    from budgetfusion_nodes.calibration.spec import AMOUNTS
    from budgetfusion_nodes.calibration.stopping import roles

    own = planner.provenance["calibration"]
    amount = AMOUNTS[own["thoroughness"]]
    setting = store.setting_id(Subject(planner.setting, planner.grid[-1], own["facts"]))
    order, seeds = store.order(setting)
    count = sum(own["prompts"].values())
    split = roles(count, amount.alone)
    chosen = [(p, role, seeds[p]) for p, role in zip(order, split, strict=False) if role == "calibration"]
    backends = store.backends_id(planner.backends)
    data = build_dataset(
        store, setting, backends, chosen, planner.grid, amount.tolerance, planner.setting, planner.backends
    )
    if data is None:
        raise ValueError("ship-planner: the store holds no trajectory of this planner's setting.")
    return data


def leave_one_out(planner: Planner, data: SweepDataset) -> Mapping[str, Any]:
    """Each prompt planned with the threshold that all others give: mean steps and share of seeds below the quality; and
    beside it the one count with as few violations on all of them. JSON-safe."""
    import numpy as np

    from budgetfusion_nodes.core.curves import all_counts, tail_max, tail_min
    from budgetfusion_nodes.core.risk import capped_theta, critical_thetas
    from budgetfusion_nodes.core.schedule import least_steps
    from budgetfusion_nodes.predictor.dataset import true_quality
    from budgetfusion_nodes.predictor.fit import project_prompts, upper_curves

    counts = np.asarray(all_counts(planner.grid))
    floor = least_steps(planner.setting.schedule)
    upper, truth = upper_curves(planner, project_prompts(data, planner.projection)), true_quality(data, planner.scale)
    tail, peaks, everyone = tail_min(truth), tail_max(upper), np.arange(len(upper))
    found: dict[str, Any] = {"prompts": len(upper), "seeds": int(data.present.sum()), "risk": RISK}
    for q in QUALITIES:
        critical = critical_thetas(upper, truth, q)
        planned = []
        for i in everyone:
            enough = peaks[i] <= capped_theta(critical[everyone != i], q, RISK)
            planned.append(int(enough.argmax()) if enough.any() else len(counts) - 1)
        planned = np.maximum(planned, floor - counts[0])
        below = np.stack([tail[:, :, c] < q for c in range(len(counts))], axis=-1)  # [N, S, C]
        below = np.where(data.present[..., None], below, np.nan)
        violations = [float(np.nanmean(below[i, :, c])) for i, c in enumerate(planned)]
        by_count = np.nanmean(np.nanmean(below, axis=1), axis=0)
        allowed = int(np.argmax((by_count <= RISK) & (counts >= floor)))
        found[f"{q:.2f}"] = {
            "mean_steps": float(counts[planned].mean()),
            "violations": float(np.mean(violations)),
            "one_count": int(counts[allowed]),
            "one_count_violations": float(by_count[allowed]),
        }
    return found
