"""Where checkpoints, planners and encoders lie, and how the host learns of them."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from types import ModuleType

from ..core.errors import PlannerFileError
from ..predictor.planner import Planner
from ..predictor.planner_file import load_planner

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
CHECKPOINTS = WEIGHTS / "checkpoints"
TEXT_ENCODERS = WEIGHTS / "text_encoders"
PLANNERS = WEIGHTS / "planners"

PLANNER_FOLDER = "budgetfusion"
"""The name of the artist's own planner folder inside the host's models folder; its key in extra_model_paths.yaml."""


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
    folder_paths.folder_names_and_paths[PLANNER_FOLDER] = (folders, {".safetensors"})


def planner_folders() -> tuple[Path, ...]:
    """The artist's planner folders, then the shipped one. Outside a host only the shipped one."""
    host = _folder_paths()
    if host is None or PLANNER_FOLDER not in host.folder_names_and_paths:
        return (PLANNERS,)
    return tuple(Path(folder) for folder in host.get_folder_paths(PLANNER_FOLDER))


def list_planners() -> tuple[str, ...]:
    """File names that `find_planner` knows, sorted; one name for two files of that name."""
    names = {
        file.relative_to(folder).as_posix()
        for folder in planner_folders()
        if folder.is_dir()
        for file in folder.rglob("*.safetensors")
    }
    return tuple(sorted(names))


def find_planner(name: str) -> Path:
    """The file of a planner, with or without its ending. PlannerFileError if none of the folders has it."""
    relative = name if name.endswith(".safetensors") else f"{name}.safetensors"
    for folder in planner_folders():
        path = folder / relative
        # `..` or an absolute path in a shared workflow must not lead out of the folder; links inside it are fine
        if not Path(relative).is_absolute() and ".." not in Path(relative).parts and path.is_file():
            return path
    listed = ", ".join(list_planners()) or "none"
    raise PlannerFileError(
        f"planner: there is no planner file '{name}' (present: {listed}). Put it into models/{PLANNER_FOLDER}, "
        "or set planner to auto."
    )


def read_planner(path: Path) -> Planner:
    """`load_planner`, remembered until the file changes."""
    try:
        stat = path.stat()
    except OSError as error:
        raise PlannerFileError(f"Planner file {path.name}: it cannot be read ({error.strerror}).") from error
    return _read_planner(str(path), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=32)
def _read_planner(path: str, mtime_ns: int, size: int) -> Planner:
    del mtime_ns, size  # part of the key only
    return load_planner(path)


def _folder_paths() -> ModuleType | None:
    return sys.modules.get("folder_paths")
