"""What a killed training goes on from: one file, replaced as a whole, read without pickled code."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from budgetfusion_nodes.core.files import in_one_piece

log = logging.getLogger(__name__)


def save_training_state(path: Path, parts: Mapping[str, Any], settings: Any, **progress: float) -> None:
    """Writes `state_dict()` of every part, the settings (a dataclass) and the progress (`step` and what else counts).

    A kill during writing leaves the former file.
    """
    state = {name: part.state_dict() for name, part in parts.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with in_one_piece(path) as partial:
        torch.save({**state, "settings": asdict(settings), "progress": progress}, partial)


def load_training_state(
    path: Path,
    parts: Mapping[str, Any],
    settings: Any,
    *,
    changeable: Sequence[str] = (),
    device: torch.device | str = "cpu",
) -> dict[str, float] | None:
    """Loads every part in place and gives the progress, or None where there is no file.

    ValueError if the run was started with other settings; those named in `changeable` may differ.
    """
    if not path.exists():
        return None
    state = torch.load(path, map_location=device, weights_only=True)
    old, new = state["settings"], asdict(settings)
    changed = [n for n in sorted({*old, *new}) if old.get(n) != new.get(n) and n not in changeable]
    if changed:
        listed = ", ".join(f"{name} {old.get(name)} there, {new.get(name)} now" for name in changed)
        raise ValueError(
            f"{path} was started with other settings ({listed}). Give the former ones, or choose another folder."
        )
    for name, part in parts.items():
        part.load_state_dict(state[name])
    log.info("resumed at step %d", state["progress"]["step"])
    return state["progress"]
