"""Whether a MODEL is a distilled few-step one: by the files that the graph names, and by the model's own file."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.distilled import FewSteps, few_steps

HEADER_AT_MOST = 100_000_000  # bytes; what the safetensors library accepts


def few_steps_of(model: Any, files: Sequence[str] = ()) -> FewSteps | None:
    """files: names from the graph, LoRAs included (core.graph.files_above). None where nothing tells."""
    path = _file_of(model)
    own = () if path is None else (path.name,)
    return few_steps((*files, *own), {} if path is None else _metadata(path))


def is_lora(evidence: FewSteps, model: Any) -> bool:
    """Whether the evidence is another file than the model's own, so that a planner of the model may not know of it."""
    path = _file_of(model)
    return (
        path is not None
        and Path(evidence.name.replace("\\", "/")).name != path.name
        and evidence.name.endswith((".safetensors", ".sft", ".pt", ".ckpt"))
    )


def _file_of(model: Any) -> Path | None:
    """Where the host loaded it from, if it remembers."""
    origin = getattr(model, "cached_patcher_init", None)  # (loader, (path, ...)) in 0.16 and later
    path = origin[1][0] if isinstance(origin, tuple) and len(origin) > 1 and origin[1] else None
    if isinstance(path, (list, tuple)) and path:
        path = path[0]
    return Path(path) if isinstance(path, (str, Path)) else None


def _metadata(path: Path) -> Mapping[str, str]:
    try:
        return _read_metadata(path, path.stat().st_mtime_ns) if path.suffix in (".safetensors", ".sft") else {}
    except (OSError, ValueError):
        return {}


@functools.lru_cache(maxsize=32)
def _read_metadata(path: Path, changed: int) -> Mapping[str, str]:
    """The texts of a safetensors header, of at most 300 characters each; read once for each state of the file."""
    del changed
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > HEADER_AT_MOST:
            return {}
        found = json.loads(file.read(size)).get("__metadata__", {})
    return {str(key): value for key, value in found.items() if isinstance(value, str) and len(value) <= 300}
