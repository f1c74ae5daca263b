"""`store`: what calibrations have measured."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError
from .comfyui import find_comfyui
from .options import FAILED, add_action, add_store, say

if TYPE_CHECKING:
    from ..calibration.store import Store

DAY = 86_400.0


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("store", help="look at, export, import and forget what calibrations measured")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _action(actions, "info", "what was measured, for each setting", run_info)
    export = _action(actions, "export", "a copy of the store in one file, without the prompts' texts", run_export)
    export.add_argument("to", type=Path, help="a new file")
    export.add_argument("--with-text", action="store_true", help="with the texts, where they were kept")
    bring = _action(actions, "import", "take in what another store measured; nothing comes twice", run_import)
    bring.add_argument("file", type=Path, help="what 'store export' wrote, or the store of another ComfyUI")
    _action(actions, "prompts", "every prompt that was measured, by number", run_prompts)
    forget = _action(actions, "forget", "delete what was measured, by setting, age, model or prompt", run_forget)
    which = forget.add_mutually_exclusive_group(required=True)
    which.add_argument("setting", nargs="?", help="a number that 'store info' shows, or 'all'")
    which.add_argument("--older-than", type=float, metavar="DAYS", help="what was measured before that many days")
    which.add_argument("--model", help="its file name, or the beginning of its fingerprint")
    which.add_argument("--prompt", help="a number that 'store prompts' shows, or its text where that was kept")


def _action(actions: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    parser = add_action(actions, name, text, run)
    add_store(parser)
    return parser


def open_store(args: argparse.Namespace, make: bool = False) -> Store:
    """The store; InputError where there is none, unless it may be made."""
    from ..calibration.store import Store

    path = args.store or find_comfyui(args.base_directory).store
    if not make and not path.is_file():
        raise InputError(f"There is no calibration store {path}. 'calibrate' makes one.")
    store = Store.at(path)
    if store.said is not None:
        say(store.said.text(), sys.stderr)
    return store


def run_info(args: argparse.Namespace) -> int:
    with open_store(args) as store:
        contents = store.contents()
        journal = store.path.with_name(store.path.name + "-wal")
        size = sum(file.stat().st_size for file in (store.path, journal) if file.is_file())
    if args.json:
        say(json.dumps({"bytes": size, "settings": [asdict(one) for one in contents]}, indent=1))
        return 0
    say(f"{store.path}: {size / 1e6:.2g} MB, settings: {len(contents)}")
    for one in contents:
        say(f"{one.setting_id}: {one.setting.describe()}, up to {one.target} steps, {one.schedule['kind']} schedule")
        say(
            f"    {one.prompts} prompts, {one.trajectories} trajectories, {one.measurements} renders in "
            f"{one.render_seconds / 60:.1f} min, {one.set_aside} set aside"
        )
        if one.planners:
            say(f"    last planner: {one.planners[0].file}, {one.planners[0].prompts} prompts")
    return 0


def run_export(args: argparse.Namespace) -> int:
    with open_store(args) as store:
        store.export(args.to, args.with_text)
    say(json.dumps({"file": str(args.to)}) if args.json else f"Written: {args.to}")
    return 0


def run_import(args: argparse.Namespace) -> int:
    from ..calibration.store_merge import merge_store

    with open_store(args, make=True) as store:
        came = merge_store(store, args.file)
    say(json.dumps({"measurements": came}) if args.json else f"{came} measurements came in.")
    return 0


def run_prompts(args: argparse.Namespace) -> int:
    from ..calibration.store_memory import prompt_rows

    with open_store(args) as store:
        rows = prompt_rows(store)
    if args.json:
        say(json.dumps({"prompts": [asdict(row) for row in rows]}, indent=1))
        return 0
    for row in rows:
        last = "-" if row.last is None else time.strftime("%Y-%m-%d", time.localtime(row.last))
        say(f"{row.prompt_id}: {row.renders} renders, last {last}, {row.text or 'its text was not kept'}")
    return 0


def run_forget(args: argparse.Namespace) -> int:
    if args.setting is None:
        return _forget_renders(args)
    from ..calibration.memory_file import forget_ready

    with open_store(args) as store:
        known = [one.setting_id for one in store.contents()]
        chosen = known if args.setting == "all" else [n for n in known if str(n) == args.setting]
        if not chosen and args.setting != "all":
            raise InputError(f"There is no setting {args.setting}. 'store info' shows their numbers.")
        for one in chosen:
            store.forget(one)
        forget_ready(store.path)  # a ComfyUI that runs may have written it again while rows were there
    say(json.dumps({"settings": chosen}) if args.json else f"{len(chosen)} settings forgotten.")
    return 0


def _forget_renders(args: argparse.Namespace) -> int:
    from ..calibration import store_memory
    from ..calibration.memory_file import forget_ready

    with open_store(args) as store:
        if args.older_than is not None:
            gone = store_memory.forget_older(store, time.time() - args.older_than * DAY)
        elif args.model is not None:
            gone = store_memory.forget_model(store, args.model)
        else:
            gone = store_memory.forget_prompt(store, args.prompt)
        forget_ready(store.path)  # a ComfyUI that runs may have written it again while rows were there
    say(json.dumps({"renders": gone}) if args.json else f"{gone} renders forgotten.")
    return 0 if gone or args.older_than is not None else FAILED
