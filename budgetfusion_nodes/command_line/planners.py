"""`planners`: the planner files of a ComfyUI."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from ..core.errors import InputError, PlannerFileError
from .comfyui import PACK, find_comfyui
from .options import FAILED, add_action, say

SHIPPED = PACK / "weights" / "planners"


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("planners", help="list, show, verify, export, import and forget planner files")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _action(actions, "list", "the planners of this ComfyUI and the shipped ones", run_list)
    _action(actions, "show", "everything that a planner says of itself", run_show, "name")
    verify = _action(actions, "verify", "check files; the exit code is 1 if one of them is refused", run_verify)
    verify.add_argument("files", nargs="+", type=Path, help="planner files, wherever they are")
    export = _action(actions, "export", "copy a planner to a file, to give it away", run_export, "name")
    export.add_argument("to", type=Path, help="a new file, or a folder that is there")
    bring = _action(actions, "import", "verify a planner file from elsewhere and install it", run_import)
    bring.add_argument("file", type=Path, help="a planner file; it is copied and stays where it is")
    bring.add_argument("--replace", action="store_true", help="even if another planner has that name")
    _action(actions, "forget", "delete a planner file (not what was measured: see 'store')", run_forget, "name")


def _action(actions: Any, name: str, text: str, run: Any, *positional: str) -> argparse.ArgumentParser:
    parser = add_action(actions, name, text, run)
    for one in positional:
        parser.add_argument(one, help="as 'planners list' shows it, with or without its ending")
    parser.add_argument(
        "--folder", type=Path, help="of planner files (models/budgetfusion of the ComfyUI around the pack)"
    )
    return parser


def folder_of(args: argparse.Namespace) -> Path:
    return args.folder or find_comfyui(args.base_directory).planners


def run_list(args: argparse.Namespace) -> int:
    from ..calibration.planner_folder import list_folder

    rows = [
        {
            "file": one.path.relative_to(folder).as_posix(),
            "shipped": folder == SHIPPED,
            "error": one.error,
            **_summary(one.planner),
        }
        for folder in (folder_of(args), SHIPPED)
        for one in list_folder(folder)
    ]
    if args.json:
        say(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        say(f"{row['file']}: {row['error'] or row['setting_in_words']}")
        if not row["error"]:
            came = ", came with the pack" if row["shipped"] else ""
            say(f"    {row['prompts']} prompts, {row['predictor']}, up to {row['target']} steps{came}")
    if not rows:
        say("No planner. Make one with 'calibrate'.")
    return 0


def _summary(planner: Any) -> dict[str, Any]:
    from ..predictor.count_planner import CountPlanner

    if planner is None:
        return {}
    figures = planner.provenance.get("calibration", {})
    counted = isinstance(planner, CountPlanner)
    return {
        "name": planner.name,
        "setting_in_words": planner.setting.describe(),
        "setting": planner.setting.to_dict(),
        "prompts": planner.prompts if counted else planner.risk_table.prompts,
        "predictor": f"one count for all: {planner.count}" if counted else figures.get("predictor", "bilstm"),
        "target": planner.target_steps,
    }


def find(args: argparse.Namespace) -> Path:
    from ..calibration.planner_folder import ENDING

    name = args.name if args.name.endswith(ENDING) else args.name + ENDING
    for folder in (folder_of(args), SHIPPED):
        path = folder / name
        if path.is_file() and folder.resolve() in path.resolve().parents:
            return path
    raise PlannerFileError(f"There is no planner {name} in {folder_of(args)}. 'planners list' names all.")


def _of_curves(planner: Any) -> dict[str, Any]:
    return {
        "scale": dict(zip(planner.metrics, planner.scale, strict=True)),
        "risks": list(planner.risk_table.alphas),
        "networks": len(planner.networks),
    }


def _of_count(planner: Any) -> dict[str, Any]:
    levels = {n: [one.mean, one.low, one.high] for n, one in zip(planner.grid, planner.levels, strict=True)}
    return {"count": planner.count, "why": planner.why, "levels": levels}


def run_show(args: argparse.Namespace) -> int:
    from ..predictor.count_planner import CountPlanner
    from ..predictor.planner_file import load_any_planner

    planner = load_any_planner(find(args))
    own = _of_count(planner) if isinstance(planner, CountPlanner) else _of_curves(planner)
    details = {
        **_summary(planner),
        "grid": list(planner.grid),
        "backends": dict(planner.backends),
        **own,
        "provenance": dict(planner.provenance),
    }
    say(json.dumps(details, indent=1) if args.json else _table(details))
    return 0


def _table(details: dict[str, Any], indent: int = 0) -> str:
    """One line a value; what holds others has them below it."""
    lines: list[str] = []
    for key, value in details.items():
        if isinstance(value, dict):
            lines += [f"{' ' * indent}{key}", *([_table(value, indent + 4)] if value else [])]
        else:
            lines.append(f"{' ' * indent}{key}: {value if isinstance(value, str) else json.dumps(value)}")
    return "\n".join(lines)


def run_verify(args: argparse.Namespace) -> int:
    from ..predictor.planner_file import load_any_planner

    found: list[dict[str, Any]] = []
    for file in args.files:
        try:
            found.append({"file": str(file), "ok": True, **_summary(load_any_planner(file))})
        except PlannerFileError as error:
            found.append({"file": str(file), "ok": False, "error": str(error)})
    if args.json:
        say(json.dumps(found, indent=1))
    for row in [] if args.json else found:
        say(f"{row['file']}: {row['setting_in_words'] if row['ok'] else row['error']}")
    return 0 if all(row["ok"] for row in found) else FAILED


def run_export(args: argparse.Namespace) -> int:
    source = find(args)
    target = args.to / source.name if args.to.is_dir() else args.to
    if target.exists():
        raise InputError(f"{target.name} is there already. Choose another name.")
    shutil.copyfile(source, target)
    say(json.dumps({"file": str(target)}) if args.json else f"Written: {target}")
    return 0


def run_import(args: argparse.Namespace) -> int:
    from ..calibration.planner_folder import import_planner

    target = import_planner(folder_of(args), args.file, args.replace)
    say(json.dumps({"file": str(target)}) if args.json else f"Installed: {target}")
    return 0


def run_forget(args: argparse.Namespace) -> int:
    path = find(args)
    if path.parent == SHIPPED:
        raise InputError(f"{path.name} came with the pack and stays.")
    path.unlink()
    say(json.dumps({"file": str(path)}) if args.json else f"Deleted: {path}")
    return 0
