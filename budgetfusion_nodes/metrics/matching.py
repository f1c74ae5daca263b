"""The backends that a planner was made with: found where they are there, and named exactly where they are not."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import BudgetFusionError
from ..core.messages import Message, message
from .backends import load_d_sim
from .encoders import HostClipVisionEncoder, OpenClipImageEncoder, default_image_encoder
from .interfaces import DSimBackend, ImageEncoder
from .measure import Backends
from .names import UNREAD, BackendName, is_same
from .weights import file_digest

_log = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
"""Of open_clip checkpoints."""


PACKAGES = {
    "st_lpips": "stlpips-pytorch 0.0.2",
    "lpips": "lpips",
    "dreamsim": "dreamsim",
    "haarpsi": "piq",
    "tiny_scenes": "BudgetFusion",
}
"""What brings a D-SIM backend."""


def matching_backends(
    wanted: Mapping[str, str], d_sim: str = "auto", clip_vision: Any = None, folders: Sequence[Path] = ()
) -> Backends:
    """The backends of these names (metric -> name) where they can be had, else what there is.

    d_sim: a choice other than "auto" goes before `wanted`, and so does a connected clip_vision. folders: where an
    open_clip checkpoint is looked for by its name and digest. `differences` tells what became of it.
    """
    return Backends(
        _d_sim(wanted.get("d_sim", ""), d_sim), _image_encoder(wanted.get("i_clip", ""), clip_vision, folders)
    )


def very_backends(
    wanted: Mapping[str, str], clip_vision: Any = None, folders: Sequence[Path] = ()
) -> tuple[Backends, tuple[Message, ...]]:
    """(the backends of these very names, what is missing of them); see `matching_backends`."""
    found = matching_backends(wanted, "auto", clip_vision, folders)
    return found, differences(wanted, found.names(), "auto", clip_vision)


def differences(
    wanted: Mapping[str, str], there: Mapping[str, str], d_sim: str = "auto", clip_vision: Any = None
) -> tuple[Message, ...]:
    """One message for each metric of `wanted` that `there` does not measure with the same backend and weights."""
    found = []
    for metric, name in wanted.items():
        other = there.get(metric, "")
        if not is_same(name, other):
            found.append(_remedy(metric, name, other, d_sim, clip_vision))
    return tuple(found)


def _remedy(metric: str, wanted: str, there: str, d_sim: str, clip_vision: Any) -> Message:
    name, names = BackendName.parse(wanted), {"metric": metric, "wanted": wanted, "there": there}
    if metric == "d_sim" and name.family in PACKAGES:
        if d_sim not in ("auto", wanted):
            return message("backend_chosen", **names)
        return message("backend_absent", **names, package=PACKAGES[name.family])
    if metric == "i_clip" and name.family == "clip_vision":
        unread = BackendName.parse(there).digest == UNREAD
        return message("backend_unread", **names) if unread else message("backend_clip_vision", **names)
    if metric == "i_clip" and name.family == "open_clip" and name.digest:
        if clip_vision is not None:
            return message("backend_disconnect", **names)
        return message("backend_file", **names, file=name.model.rpartition(":")[2], digest=name.digest)
    return message("backend_version", **names)


def _d_sim(wanted: str, choice: str) -> DSimBackend:
    if choice != "auto" or not wanted:
        return load_d_sim(choice)
    try:
        return load_d_sim(wanted)
    except BudgetFusionError as error:
        _log.warning("%s", error)
        return load_d_sim("auto")


def _image_encoder(wanted: str, clip_vision: Any, folders: Sequence[Path]) -> ImageEncoder:
    if clip_vision is not None:
        return HostClipVisionEncoder(clip_vision)
    name = BackendName.parse(wanted)
    if name.family == "open_clip":
        try:
            return _open_clip(name, folders) or default_image_encoder()
        except BudgetFusionError as error:
            _log.warning("%s", error)
    return default_image_encoder()


def _open_clip(name: BackendName, folders: Sequence[Path]) -> OpenClipImageEncoder | None:
    """The checkpoint of this very digest; only files of its name are read."""
    architecture, _, stem = name.model.rpartition(":")
    if Path(stem).name != stem:  # a planner file must not lead out of the folders
        return None
    for file in (folder / f"{stem}{suffix}" for folder in folders for suffix in SUFFIXES):
        if file.is_file() and file_digest(file) == name.digest:
            return OpenClipImageEncoder.from_checkpoint(f"open_clip:{architecture}/{file}" if architecture else file)
    return None
