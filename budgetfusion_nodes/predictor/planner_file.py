"""Planner files: one safetensors file, tensors plus JSON metadata. Everything is checked before anything is built.

Layout: metadata {"format": FORMAT, "version": VERSION, "planner": JSON}; tensors projection.*, novelty.*,
network.<i>.*, or none where the JSON says kind "count". No pickle
anywhere. novelty.* is what the out-of-distribution score is computed from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..core.errors import PlannerFileError
from ..core.files import in_one_piece
from ..core.messages import Message, message
from ..core.setting import first_fault, with_precision
from .count_planner import CountPlanner
from .features import OutOfDistribution, Projection, fit_out_of_distribution
from .network import QUANTILES, CurvePredictor
from .planner import Planner

if TYPE_CHECKING:
    from .planner_description import CountDescription, Description

FORMAT = "budgetfusion.planner"
VERSION = "2"
FIRST_VERSION = "1"
"""Had the calibration prompts' summaries themselves in novelty.*; what they are now is fitted when it is read."""
MAX_FILE_BYTES = 24 * 1024 * 1024
"""A planner for the widest encoder of today (15,360 numbers a token) takes 5 MB; a file is unpacked up to six times."""
MAX_HEADER_BYTES = 256 * 1024
"""The shipped ones have 16 KB. What is parsed takes up to a hundred times its length, and a second a few megabytes."""
DTYPES = {"F16", "F32"}
MAX_WHITENING = 1e12
LEAST_POINTS = 4
COUNT = "count"

AnyPlanner: TypeAlias = Planner | CountPlanner


def save_planner(
    path: str | os.PathLike[str], planner: AnyPlanner, provenance: Mapping[str, Any] | None = None
) -> None:
    """Writes `path` in one piece (a killed run leaves no half file). provenance replaces the planner's own."""
    provenance = planner.provenance if provenance is None else provenance
    counted = isinstance(planner, CountPlanner)
    description = _describe_count(planner, provenance) if counted else _describe(planner, provenance)
    metadata = {"format": FORMAT, "version": VERSION, "planner": json.dumps(description, allow_nan=False)}
    with in_one_piece(Path(path)) as partial:
        partial.write_bytes(save({} if counted else _tensors(planner), metadata))


def load_planner(path: str | os.PathLike[str]) -> Planner:
    """The planner of curves in `path`, or PlannerFileError saying what is wrong with it."""
    planner = load_any_planner(path)
    if isinstance(planner, CountPlanner):
        raise _failure(Path(path), message("file_field", field="kind", detail="is count, expected curves"))
    return planner


def load_any_planner(path: str | os.PathLike[str]) -> AnyPlanner:
    """The planner in `path`, or PlannerFileError saying what is wrong with it. Nothing is built from a bad file."""
    file = Path(path)
    return parse_planner(read_planner_file(file), file)


def parse_planner(content: bytes, file: Path) -> AnyPlanner:
    """As `load_any_planner`, of bytes that were read before; `file` is named in the error."""
    try:
        header = _header(content)
        version, text = _metadata(header)
        description = _checked(text)
        if description.kind == COUNT:
            _check_tensor_table(header, {})
            return description.planner()
        shapes = description.shapes()
        if version == FIRST_VERSION:
            shapes = _first_shapes(shapes, header)
        _check_tensor_table(header, shapes)
        tensors = {key: value.float() for key, value in load(content).items()}
        _check_finite(tensors)
        if version == FIRST_VERSION:
            description, tensors = _with_distribution(description, tensors)
        return _build(description, tensors)
    except SafetensorError as error:
        raise _failure(file, message("file_unreadable", reason=str(error))) from error
    except _Reason as error:
        raise _failure(file, error.reason) from error


class _Reason(Exception):
    """What is wrong with a file; load_planner adds which file and what to do."""

    def __init__(self, reason: Message) -> None:
        super().__init__(reason.text())
        self.reason = reason


def unreadable(file: Path, error: OSError) -> PlannerFileError:
    """A file that the operating system does not let us read."""
    return _failure(file, message("file_unreadable", reason=error.strerror or str(error)))


def _failure(file: Path, problem: Message) -> PlannerFileError:
    return PlannerFileError(message("planner_file", file=file.name, problem=problem))


def read_planner_file(file: Path) -> bytes:
    """All of a file that may be a planner, or PlannerFileError. Never more than MAX_FILE_BYTES are read: a file may say
    of itself that it is empty, and have no end."""
    try:
        if not file.is_file():
            raise _failure(file, message("file_absent" if not file.exists() else "file_no_file"))
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
            size = max(len(content), file.stat().st_size)
    except OSError as error:
        raise unreadable(file, error) from error
    if size > MAX_FILE_BYTES:
        raise _failure(file, message("file_too_large", bytes=size, limit=MAX_FILE_BYTES))
    return content


def _header(content: bytes) -> dict[str, Any]:
    """The safetensors header: 8 bytes of length, then JSON."""
    if content[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05"):
        raise _Reason(message("file_pickle"))
    if len(content) < 8:
        raise _Reason(message("file_cut", found=len(content), needed=8))
    length = int.from_bytes(content[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise _Reason(message("file_header", bytes=length, limit=MAX_HEADER_BYTES))
    if length > len(content) - 8:
        raise _Reason(message("file_cut", found=len(content), needed=8 + length))
    return _json_object(content[8 : 8 + length], "header")


def _metadata(header: Mapping[str, Any]) -> tuple[str, str]:
    """(version, the description, which is JSON)."""
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise _Reason(message("file_foreign"))
    version = metadata.get("version")
    if version not in (FIRST_VERSION, VERSION):
        raise _Reason(message("file_version", found=str(version), known=VERSION))
    text = metadata.get("planner")
    if not isinstance(text, str):
        raise _field("planner", "is missing")
    _json_object(text, "planner")
    return version, text


def _json_object(text: bytes | str, what: str) -> dict[str, Any]:
    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not a number")

    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise _field(what, "not valid JSON") from error
    if not isinstance(value, dict):
        raise _field(what, "not a JSON object")
    return value


def _describe_count(planner: CountPlanner, provenance: Mapping[str, Any]) -> dict[str, Any]:
    whole = {**asdict(planner), "setting": planner.setting.to_dict(), "provenance": dict(provenance)}
    return {"kind": COUNT, **whole}


def _describe(planner: Planner, provenance: Mapping[str, Any]) -> dict[str, Any]:
    projection, table = planner.projection, planner.risk_table
    return {
        "name": planner.name,
        "setting": planner.setting.to_dict(),
        "grid": list(planner.grid),
        "metrics": list(planner.metrics),
        "scale": list(planner.scale),
        "backends": dict(planner.backends),
        "quantiles": list(QUANTILES),
        "sizes": {
            **planner.networks[0].size.to_dict(),
            "token_in": projection.token_mean.shape[0],
            "pooled_in": projection.pooled_mean.shape[0],
            "networks": len(planner.networks),
        },
        "risk": {
            "alphas": list(table.alphas),
            "qualities": list(table.qualities),
            "theta": [list(row) for row in table.theta],
            "prompts": table.prompts,
        },
        "novelty_limit": planner.out_of_distribution.limit,
        "provenance": dict(provenance),
    }


def _tensors(planner: Planner) -> dict[str, Tensor]:
    projection, known = planner.projection, planner.out_of_distribution
    tensors = {
        "projection.token_mean": projection.token_mean,
        "projection.token_weight": projection.token_weight,
        "projection.pooled_mean": projection.pooled_mean,
        "projection.pooled_weight": projection.pooled_weight,
        "novelty.centre": known.centre,
        "novelty.whitening": known.whitening,
    }
    for index, network in enumerate(planner.networks):
        tensors |= {f"network.{index}.{key}": value for key, value in network.state_dict().items()}
    return {key: value.detach().cpu().float().contiguous() for key, value in tensors.items()}


def _field(field: str, detail: str) -> _Reason:
    return _Reason(message("file_field", field=field, detail=detail))


def _checked(text: str) -> Description | CountDescription:
    from pydantic import ValidationError

    from .planner_description import CountDescription, Description, Kind  # on use: see there

    try:
        counted = Kind.model_validate_json(text).kind == COUNT
        description = (CountDescription if counted else Description).model_validate_json(text)
    except ValidationError as error:
        raise _field(*first_fault(error)) from error
    setting = with_precision(description.setting, description.provenance.get("data"))
    return description.model_copy(update={"setting": setting})


def _check_tensor_table(header: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    entries = {key: value for key, value in header.items() if key != "__metadata__"}
    missing, extra = sorted(set(shapes) - set(entries)), sorted(set(entries) - set(shapes))
    if missing or extra:
        raise _field("tensors", f"missing: {missing[:3]}, unknown: {extra[:3]}")
    for key, shape in shapes.items():
        entry = entries[key]
        if not isinstance(entry, dict) or entry.get("shape") != list(shape):
            found = entry.get("shape") if isinstance(entry, dict) else None
            raise _field(key, f"has shape {found}, expected {list(shape)}")
        if str(entry.get("dtype")) not in DTYPES:
            raise _field(key, f"has type {entry.get('dtype')!r}, expected one of {sorted(DTYPES)}")


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise _field(key, "holds values that are not finite")


def _first_shapes(shapes: Mapping[str, tuple[int, ...]], header: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The same for a file of the first version, with as many prompts as it holds."""
    features = shapes["novelty.centre"][0]
    entry = header.get("novelty.points")
    shape = entry.get("shape") if isinstance(entry, Mapping) else None
    points = shape[0] if isinstance(shape, list) and len(shape) == 2 and isinstance(shape[0], int) else 0
    if points < LEAST_POINTS:
        raise _field("novelty.points", f"holds {points} prompts, expected {LEAST_POINTS} or more")
    own = {"novelty.spread": (features,), "novelty.points": (points, features)}
    return {**{key: shape for key, shape in shapes.items() if key != "novelty.whitening"}, **own}


def _with_distribution(
    description: Description, tensors: Mapping[str, Tensor]
) -> tuple[Description, dict[str, Tensor]]:
    """What version 2 holds, fitted to every second prompt and measured on those between."""
    kept = dict(tensors)
    summaries = kept.pop("novelty.points") * kept.pop("novelty.spread") + kept.pop("novelty.centre")
    if not summaries.abs().max() < MAX_WHITENING:
        raise _field("novelty.points", f"holds a value above {MAX_WHITENING:g}")
    known = fit_out_of_distribution(summaries[::2], summaries[1::2])
    kept |= {"novelty.centre": known.centre, "novelty.whitening": known.whitening}
    return description.model_copy(update={"novelty_limit": known.limit}), kept


def _build(description: Description, tensors: Mapping[str, Tensor]) -> Planner:
    whitening = tensors["novelty.whitening"].abs()
    if not (whitening.amax(0) > 0).all() or whitening.max() > MAX_WHITENING:
        raise _field("novelty.whitening", f"has a column of zeros or a value above {MAX_WHITENING:g}")
    if any((tensors[key] < 0).any() for key in tensors if key.endswith(".baseline")):
        raise _field("baseline", "holds negative values")
    return Planner(
        name=description.name,
        setting=description.setting,
        grid=description.grid,
        metrics=description.metrics,
        scale=description.scale,
        backends={metric: description.backends[metric] for metric in description.metrics},
        projection=Projection(
            *(tensors[f"projection.{k}"] for k in ("token_mean", "token_weight", "pooled_mean", "pooled_weight"))
        ),
        networks=tuple(_network(description, tensors, i) for i in range(description.sizes.networks)),
        risk_table=description.risk.table(),
        out_of_distribution=OutOfDistribution(
            tensors["novelty.centre"], tensors["novelty.whitening"], description.novelty_limit
        ),
        provenance=description.provenance,
    )


def _network(description: Description, tensors: Mapping[str, Tensor], index: int) -> CurvePredictor:
    prefix = f"network.{index}."
    network = description.network()
    network.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return network.eval().requires_grad_(False)
