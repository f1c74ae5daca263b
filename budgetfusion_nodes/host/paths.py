"""Where checkpoints, planners and encoders lie, and how the host learns of them."""

from __future__ import annotations

import functools
import importlib
import os
import stat
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ..core.errors import PlannerFileError
from ..core.messages import Message, message
from ..predictor.planner_file import AnyPlanner, load_any_planner, unreadable

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
CHECKPOINTS = WEIGHTS / "checkpoints"
TEXT_ENCODERS = WEIGHTS / "text_encoders"
PLANNERS = WEIGHTS / "planners"

PLANNER_FOLDER = "budgetfusion"
"""The name of the artist's own planner folder inside the host's models folder; its key in extra_model_paths.yaml."""
SUFFIX = ".safetensors"


STORE = ("budgetfusion", "calibration.sqlite3")
"""In the host's user folder."""
ENCODER_FOLDERS = ("clip_vision", "text_encoders", PLANNER_FOLDER)


def register_folders() -> None:
    """Tells the host about the shipped models and about planner files. Safe to call twice."""
    folder_paths = importlib.import_module("folder_paths")
    folder_paths.add_model_folder_path("checkpoints", str(CHECKPOINTS))
    # UNETLoader takes the denoiser out of a checkpoint, so that split files are shown without a copy of the weights
    folder_paths.add_model_folder_path("diffusion_models", str(CHECKPOINTS))
    folder_paths.add_model_folder_path("text_encoders", str(TEXT_ENCODERS))
    # the artist's folder comes first, so a planner of theirs may replace a shipped one of the same name
    folder_paths.add_model_folder_path(PLANNER_FOLDER, str(Path(folder_paths.models_dir) / PLANNER_FOLDER), True)
    folder_paths.add_model_folder_path(PLANNER_FOLDER, str(PLANNERS))
    folders, _ = folder_paths.folder_names_and_paths[PLANNER_FOLDER]
    folder_paths.folder_names_and_paths[PLANNER_FOLDER] = (folders, {SUFFIX})


def planner_folders() -> tuple[Path, ...]:
    """The artist's planner folders, then the shipped one. Outside a host only the shipped one."""
    host = _folder_paths()
    if host is None or PLANNER_FOLDER not in host.folder_names_and_paths:
        return (PLANNERS,)
    return tuple(Path(folder) for folder in host.get_folder_paths(PLANNER_FOLDER))


def encoder_folders() -> tuple[Path, ...]:
    """Where the open_clip checkpoint that a planner names may lie: the host's folders of such models, then our own."""
    host = _folder_paths()
    if host is None:
        return ()
    known = [name for name in ENCODER_FOLDERS if name in host.folder_names_and_paths]
    return tuple(Path(folder) for name in known for folder in host.get_folder_paths(name))


def store_path() -> Path:
    """The calibration store's file in the host's user folder."""
    folder = importlib.import_module("folder_paths").get_user_directory()
    return Path(folder).joinpath(*STORE)


@dataclass(frozen=True)
class Found:
    """What a look through the planner folders gave."""

    files: Mapping[str, Path]
    """Name, as `find_planner` takes it, -> file; of two files of one name the one that comes first."""
    notes: tuple[Message, ...]
    """Folders that could not be read."""

    def fingerprint(self) -> str:
        """Changes when a planner file is added, replaced or removed: names, sizes and times, no contents."""
        states = [f"{name} {_state(path)}" for name, path in self.files.items()]
        return "\n".join([*states, *(note.text() for note in self.notes)])


def planners_fingerprint(name: str | None = None) -> str:
    """For the host's cache: changes when planner `name`, or with None any planner, is saved, refitted or deleted."""
    found = search_planners()
    if name is None:
        return found.fingerprint()
    path = found.files.get(name, found.files.get(name + SUFFIX))
    return "-" if path is None else f"{path} {_state(path)}"


def search_planners() -> Found:
    """Every planner file below the planner folders, links followed, as the host lists models. What cannot be read is a
    note; a folder that is not there is none."""
    files: dict[str, Path] = {}
    notes: list[Message] = []
    for folder in planner_folders():
        for path in _walk(folder, notes):
            files.setdefault(path.relative_to(folder).as_posix(), path)
    return Found(dict(sorted(files.items())), tuple(notes))


def _walk(folder: Path, notes: list[Message]) -> Iterator[Path]:
    def unread(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            notes.append(message("folder_unreadable", folder=str(error.filename), reason=error.strerror or str(error)))

    seen: set[str] = set()
    for directory, inner, names in os.walk(folder, onerror=unread, followlinks=True):
        real = os.path.realpath(directory)
        if real in seen:  # a link back to a folder above
            inner.clear()
            continue
        seen.add(real)
        inner[:] = [name for name in inner if name != ".git"]
        for name in names:
            path = Path(directory, name)
            if path.suffix.lower() == SUFFIX and _is_text(name) and _is_file(path, notes):
                yield path


def _is_file(path: Path, notes: list[Message]) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:  # a link that leads nowhere
        return False
    except OSError as error:
        notes.append(unreadable(path, error).message)
        return False


def _is_text(name: str) -> bool:
    """False for bytes that are no text in the file system's encoding: no graph could hold such a name."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


def _state(path: Path) -> str:
    try:
        now = path.stat()
    except OSError:
        return "-"
    return f"{now.st_size} {now.st_mtime_ns}"


def list_planners() -> tuple[str, ...]:
    """File names that `find_planner` knows, sorted; one name for two files of that name."""
    return tuple(search_planners().files)


def find_planner(name: str) -> Path:
    """The file of a planner, with or without its ending. PlannerFileError if none of the folders has it."""
    relative = name if name.lower().endswith(SUFFIX) else name + SUFFIX
    for folder in planner_folders():
        path = folder / relative
        # `..` or an absolute path in a shared workflow must not lead out of the folder; links inside it are fine
        inside = not Path(relative).is_absolute() and ".." not in Path(relative).parts
        if inside and os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises where a folder may not be entered)
            return path
    listed = ", ".join(list_planners()) or "-"
    raise PlannerFileError(message("planner_absent", name=name, present=listed, folder=f"models/{PLANNER_FOLDER}"))


def read_planner(path: Path) -> AnyPlanner:
    """`load_any_planner`, remembered until the file changes."""
    try:
        now = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    return _read_planner(str(path), now.st_mtime_ns, now.st_size)


def is_shipped(path: Path) -> bool:
    """Whether a planner came with the pack; all others are the artist's own."""
    return path.is_relative_to(PLANNERS)


@functools.lru_cache(maxsize=512)  # all are read at every plan, in the same order: one too many and none is found
def _read_planner(path: str, mtime_ns: int, size: int) -> AnyPlanner:
    del mtime_ns, size  # part of the key only
    return load_any_planner(path)


def _folder_paths() -> ModuleType | None:
    return sys.modules.get("folder_paths")
