"""Planner files in a folder: written in one piece, never over a planner of another setting, verified before they come
in. Used by the job and by the command line; knows no host."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..core.errors import InputError, PlannerFileError
from ..core.files import in_one_piece, remove_abandoned
from ..core.messages import message
from ..core.schedule import NESTED, STOCK
from ..core.setting import Setting
from ..predictor.planner_file import AnyPlanner, load_any_planner, parse_planner, read_planner_file, save_planner

ENDING = ".safetensors"
_FORBIDDEN = re.compile(r"[^\w .+()-]+")
_RESERVED = re.compile(r"(?i)^(con|prn|aux|nul|com\d|lpt\d)(\.|$)")
LONGEST = 120
"""Bytes of a name without its ending: a draft's name is longer, and Windows takes 260 letters with the folders."""
STALE_SECONDS = 3600.0
"""Writing a planner takes milliseconds."""


def file_name(name: str) -> str:
    """A file name that every system takes, with its ending. InputError where nothing of `name` is left."""
    stem = name.strip().removesuffix(ENDING)
    stem = _FORBIDDEN.sub("_", stem).strip(" ._-").encode()[:LONGEST].decode(errors="ignore")
    if not stem or not re.search(r"\w", stem):
        raise InputError(message("planner_bad_name", name=name))
    return ("_" if _RESERVED.match(stem) else "") + stem + ENDING


def put_planner(folder: Path, planner: AnyPlanner, name: str) -> tuple[str, str]:
    """Saves a planner under `name`; under one that says its schedule where a planner of another schedule has it, else
    under a numbered one where another setting's planner has it. The same planner again
    leaves the file untouched, so that nothing that depends on it runs anew. (file name, SHA-256)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = _free_path(folder, file_name(name), planner)
        draft = path.with_name(f".{path.name}.{os.getpid()}.new")  # two processes may put the same planner
        for ending in (".new", ".part"):
            remove_abandoned(folder, f".{path.name}.", ending)
        try:
            save_planner(draft, planner)
            if not (path.is_file() and _same(draft, path)):
                draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        _clear(path)
        return path.name, digest_of(path)
    except OSError as error:
        raise PlannerFileError(message("planner_not_saved", folder=str(folder), error=str(error))) from error


def _clear(path: Path) -> None:
    """Takes away drafts of this planner that killed processes left."""
    for draft in path.parent.glob(f".{path.name}.*"):
        with contextlib.suppress(OSError):  # another process's own draft may be gone by now
            if draft.stat().st_mtime < time.time() - STALE_SECONDS:
                draft.unlink()


def _free_path(folder: Path, wanted: str, planner: AnyPlanner) -> Path:
    path, number = folder / wanted, 1
    schedule, there = planner.setting.schedule, _setting(path)
    if there is not None and there.schedule != schedule:
        wanted = f"{wanted.removesuffix(ENDING)} {STOCK if schedule == STOCK else NESTED}{ENDING}"
        path = folder / wanted
    while path.exists() and not _replaceable(path, planner):
        number += 1
        path = folder / f"{wanted.removesuffix(ENDING)}-{number}{ENDING}"
    return path


def _replaceable(path: Path, planner: AnyPlanner) -> bool:
    return _setting(path) == planner.setting


def _setting(path: Path) -> Setting | None:
    """None where there is no planner: no file, somebody else's, or a damaged one, which is left alone."""
    try:
        return load_any_planner(path).setting
    except PlannerFileError:
        return None


def _same(one: Path, other: Path) -> bool:
    """Equal description and tensors; the order in which they lie in the file does not matter."""
    try:
        with safe_open(one, framework="numpy") as a, safe_open(other, framework="numpy") as b:
            if a.metadata() != b.metadata() or set(a.keys()) != set(b.keys()):
                return False
            return all(a.get_tensor(key).tobytes() == b.get_tensor(key).tobytes() for key in a.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return False


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Listed:
    """One file of a planner folder."""

    path: Path
    planner: AnyPlanner | None
    error: str
    """Why it cannot be read; empty where it can."""


def list_folder(folder: Path) -> list[Listed]:
    """Every planner file, sorted; a bad one hides no good one."""
    found: list[Listed] = []
    for path in sorted(folder.rglob(f"*{ENDING}")) if folder.is_dir() else []:
        try:
            found.append(Listed(path, load_any_planner(path), ""))
        except PlannerFileError as error:
            found.append(Listed(path, None, str(error)))
    return found


def import_planner(folder: Path, source: Path, replace: bool = False) -> Path:
    """Verifies a planner file from elsewhere and copies it in. PlannerFileError says why one is refused."""
    content = read_planner_file(source)  # once: what was verified is what is written
    parse_planner(content, source)
    target = folder / file_name(source.name)
    try:
        if target.exists() and not replace and not (target.is_file() and target.read_bytes() == content):
            raise InputError(message("planner_is_there", file=target.name))
        folder.mkdir(parents=True, exist_ok=True)
        with in_one_piece(target) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise PlannerFileError(
            f"{target.name} cannot be written into {folder} ({error}). Make room there, or allow writing."
        ) from error
    return target
