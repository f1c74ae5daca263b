"""Runs parts, each in a process of its own, and keeps what each found as JSON, so that a stopped campaign goes on."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from budgetfusion_nodes.core.files import in_one_piece
from research.options import ROOT

from .part import PROMISES, Finding, NotRunError, Work
from .registry import load_part

log = logging.getLogger(__name__)


def kept_file(folder: Path, name: str, amount: str) -> Path:
    """Where the result of a part is kept."""
    return folder / f"{name}.{amount}.json"


def run_part(
    name: str, folder: Path, host: Path | None, amount: str, seed: int, minutes: float = math.inf
) -> dict[str, Any] | None:
    """The part's result, which is kept too; None where the part itself failed, with the reason in the log. minutes:
    after which a part of many like attempts stops."""
    scratch, file = folder / name, kept_file(folder, name, amount)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    file.unlink(missing_ok=True)
    work = Work(scratch, host, amount, seed, time.time() + 60.0 * minutes)
    # spawn: one host a process, and no thread of a part before is inherited
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(name, work, file, minutes))
    process.start()
    try:
        process.join()
    finally:
        if process.is_alive():
            process.terminate()
            process.join()
    if process.exitcode or not file.is_file():
        log.error("%s: the part itself failed with status %s; its files are in %s", name, process.exitcode, scratch)
        return None
    shutil.rmtree(scratch, ignore_errors=True)
    return json.loads(file.read_text(encoding="utf-8"))


def _run(name: str, work: Work, file: Path, minutes: float = math.inf) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("research").setLevel(logging.INFO)
    part, started, tree = load_part(name), time.monotonic(), commit()
    findings: Sequence[Finding] = ()
    reason = ""
    try:
        findings = part.run(work)
    except NotRunError as error:
        reason = str(error)
    result = {
        "title": part.title,
        "amount": work.amount,
        "seed": work.seed,
        "minutes": minutes if work.is_over() else None,
        "seconds": round(time.monotonic() - started, 1),
        "commit": tree,
        "machine": machine(),
        "not_run": reason,
        "findings": [as_dict(one) for one in findings],
    }
    with in_one_piece(file) as partial:
        partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def as_dict(finding: Finding) -> dict[str, Any]:
    """Without this machine's paths. ValueError for a promise that nobody made."""
    if finding.promise not in PROMISES:
        raise ValueError(f"{finding.promise!r} is none of {', '.join(PROMISES)}")
    figures = {name: _pathless(value) for name, value in finding.figures.items()}
    return {**asdict(finding), "what": _pathless(finding.what), "figures": figures}


def _pathless(value: Any) -> Any:
    """The host names classes of a custom node by its folder, and tracebacks name files: both begin with the tree's."""
    if not isinstance(value, str):
        return [_pathless(one) for one in value] if isinstance(value, Sequence) else value
    text = value
    for folder in (str(ROOT), str(ROOT).replace(".", "_x_"), sys.prefix, sys.base_prefix):
        text = re.sub(re.escape(folder) + r"[./\\]?", "", text)
    return text


def broken(result: Mapping[str, Any]) -> list[str]:
    """What did not hold."""
    return [one["what"] for one in result["findings"] if not one["held"]]


def commit() -> str:
    """Of the tree that ran, with a word where files differ from it; empty outside a repository."""
    found = _git("rev-parse", "--short=10", "HEAD")
    differs = _git("status", "--porcelain", "--untracked-files=no", "--", ":!docs/reliability.*")
    return f"{found}, changed" if found and differs else found


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def machine() -> str:
    """In words, without a name or a path."""
    cores, system = os.cpu_count() or 1, f"{platform.system()} {platform.release().split('-')[0]}"
    return f"{cores} CPU cores, {system}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"
