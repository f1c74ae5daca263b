"""Planner files: one safetensors file, tensors plus JSON metadata. Everything is checked before anything is built.

Layout: metadata {"format": FORMAT, "version": VERSION, "planner": JSON}; tensors projection.*, novelty.*,
network.<i>.*. No pickle anywhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..core.curves import METRICS, validate_grid
from ..core.errors import InputError, PlannerFileError
from ..core.files import in_one_piece
from ..core.messages import Message, message
from ..core.risk import RiskTable
from ..core.setting import Setting, first_fault, with_precision
from .features import MAX_WIDTH, Novelty, Projection
from .network import QUANTILES, CurvePredictor, PredictorSize, parameter_shapes
from .planner import Planner

FORMAT = "budgetfusion.planner"
VERSION = "2"  # 1 had the calibration prompts themselves in novelty.*
MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_HEADER_BYTES = 2 * 1024 * 1024
MAX_NETWORKS = 16
DTYPES = {"F16", "F32"}
LARGEST = 1e30
MAX_WHITENING = 1e12
MOST_NUMBERS = 10_000


def _increasing(values: tuple[float, ...]) -> tuple[float, ...]:
    if any(a >= b for a, b in pairwise(values)):
        raise ValueError("the numbers must increase")
    return values


def _grid(counts: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return validate_grid(counts)
    except InputError as error:
        raise ValueError(str(error)) from error


Finite = Annotated[float, Field(allow_inf_nan=False, gt=-LARGEST, lt=LARGEST)]
Positive = Annotated[float, Field(allow_inf_nan=False, gt=0, lt=LARGEST)]
Share = Annotated[float, Field(gt=0, lt=1)]
Shares = Annotated[tuple[Share, ...], Field(min_length=1, max_length=MOST_NUMBERS), AfterValidator(_increasing)]
Threshold = Annotated[float, Field(allow_inf_nan=False, ge=0, lt=LARGEST)]
Width = Annotated[int, Field(ge=1, le=65536)]
Inner = Annotated[int, Field(ge=1, le=1024)]


class _Part(BaseModel):
    """A JSON object of a planner file. No text for numbers, no true for 1; keys of later versions are left alone."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


class _Sizes(_Part):
    """Limited: a foreign file must not make us allocate."""

    token_in: Width
    token_width: Annotated[int, Field(ge=1, le=MAX_WIDTH)]
    pooled_in: Annotated[int, Field(ge=0, le=65536)]
    pooled_width: Annotated[int, Field(ge=0, le=MAX_WIDTH)]
    heads: Annotated[int, Field(ge=1, le=64)]
    context: Inner
    hidden: Inner
    networks: Annotated[int, Field(ge=1, le=MAX_NETWORKS)]


class _Risk(_Part):
    alphas: Shares
    qualities: Shares
    theta: Annotated[
        tuple[Annotated[tuple[Threshold, ...], Field(max_length=MOST_NUMBERS)], ...], Field(max_length=MOST_NUMBERS)
    ]
    prompts: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _is_table(self) -> _Risk:
        if len(self.theta) != len(self.alphas) or any(len(row) != len(self.qualities) for row in self.theta):
            raise ValueError("theta needs one row for each risk, and in it one number for each quality")
        if any(a < b for row in self.theta for a, b in pairwise(row)):
            raise ValueError("thresholds must fall with quality")
        if any(a > b for column in zip(*self.theta, strict=True) for a, b in pairwise(column)):
            raise ValueError("thresholds must rise with risk")
        return self

    def table(self) -> RiskTable:
        return RiskTable(self.alphas, self.qualities, self.theta, self.prompts)


class _Description(_Part):
    """The JSON part of a planner, checked."""

    name: str
    setting: Setting
    grid: Annotated[tuple[Annotated[int, Field(lt=10**6)], ...], Field(max_length=1000), AfterValidator(_grid)]
    metrics: Annotated[tuple[str, ...], Field(min_length=1, max_length=len(METRICS))]
    scale: tuple[Positive, ...]
    backends: dict[str, str]
    quantiles: tuple[Finite, ...]
    sizes: _Sizes
    risk: _Risk
    novelty_limit: Positive
    provenance: dict[str, Any]

    @model_validator(mode="after")
    def _fits(self) -> _Description:
        if len(set(self.metrics)) != len(self.metrics) or not set(self.metrics) <= set(METRICS):
            raise ValueError(f"metrics are {list(self.metrics)}; expected some of {list(METRICS)}, each once")
        if len(self.scale) != len(self.metrics):
            raise ValueError(f"{len(self.scale)} scales for {len(self.metrics)} metrics")
        if self.quantiles != QUANTILES:
            raise ValueError(f"quantiles are {list(self.quantiles)}; expected {list(QUANTILES)}")
        if not set(self.metrics) <= set(self.backends):
            raise ValueError("backends must name what measured each metric")
        return self

    @property
    def size(self) -> PredictorSize:
        return PredictorSize(**{key: getattr(self.sizes, key) for key in PredictorSize(1, 1).to_dict()})

    def network(self) -> CurvePredictor:
        with torch.random.fork_rng(devices=[]):  # its initial weights are replaced: leave the host's random state alone
            return CurvePredictor(self.size, self.grid, self.metrics)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The name and shape of every tensor the file must hold, no more and no less."""
        sizes = self.sizes
        features = 2 * sizes.token_width + sizes.pooled_width
        shapes: dict[str, tuple[int, ...]] = {
            "projection.token_mean": (sizes.token_in,),
            "projection.token_weight": (sizes.token_in, sizes.token_width),
            "projection.pooled_mean": (sizes.pooled_in,),
            "projection.pooled_weight": (sizes.pooled_in, sizes.pooled_width),
            "novelty.centre": (features,),
            "novelty.whitening": (features, features),
        }
        weights = parameter_shapes(self.size, len(self.grid), len(self.metrics))
        for index in range(sizes.networks):
            shapes |= {f"network.{index}.{key}": shape for key, shape in weights.items()}
        return shapes


def save_planner(path: str | os.PathLike[str], planner: Planner, provenance: Mapping[str, Any] | None = None) -> None:
    """Writes `path` in one piece (a killed run leaves no half file). provenance replaces the planner's own."""
    description = _describe(planner, planner.provenance if provenance is None else provenance)
    metadata = {"format": FORMAT, "version": VERSION, "planner": json.dumps(description, allow_nan=False)}
    with in_one_piece(Path(path)) as partial:
        partial.write_bytes(save(_tensors(planner), metadata))


def load_planner(path: str | os.PathLike[str]) -> Planner:
    """The planner in `path`, or PlannerFileError saying what is wrong with it. Nothing is built from a bad file."""
    file = Path(path)
    content = _read(file)
    try:
        header = _header(content)
        description = _checked(_metadata(header))
        _check_tensor_table(header, description.shapes())
        tensors = load(content)
        return _build(description, {key: value.float() for key, value in tensors.items()})
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


def _read(file: Path) -> bytes:
    try:
        if not file.is_file():
            raise _failure(file, message("file_absent" if not file.exists() else "file_no_file"))
        size = file.stat().st_size
        if size > MAX_FILE_BYTES:
            raise _failure(file, message("file_too_large", bytes=size, limit=MAX_FILE_BYTES))
        return file.read_bytes()
    except OSError as error:
        raise unreadable(file, error) from error


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


def _metadata(header: Mapping[str, Any]) -> str:
    """The description, which is JSON."""
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise _Reason(message("file_foreign"))
    if metadata.get("version") != VERSION:
        raise _Reason(message("file_version", found=str(metadata.get("version")), known=VERSION))
    text = metadata.get("planner")
    if not isinstance(text, str):
        raise _field("planner", "is missing")
    _json_object(text, "planner")
    return text


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


def _describe(planner: Planner, provenance: Mapping[str, Any]) -> dict[str, Any]:
    projection, novelty, table = planner.projection, planner.novelty, planner.risk_table
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
        "novelty_limit": novelty.limit,
        "provenance": dict(provenance),
    }


def _tensors(planner: Planner) -> dict[str, Tensor]:
    projection, novelty = planner.projection, planner.novelty
    tensors = {
        "projection.token_mean": projection.token_mean,
        "projection.token_weight": projection.token_weight,
        "projection.pooled_mean": projection.pooled_mean,
        "projection.pooled_weight": projection.pooled_weight,
        "novelty.centre": novelty.centre,
        "novelty.whitening": novelty.whitening,
    }
    for index, network in enumerate(planner.networks):
        tensors |= {f"network.{index}.{key}": value for key, value in network.state_dict().items()}
    return {key: value.detach().cpu().float().contiguous() for key, value in tensors.items()}


def _field(field: str, detail: str) -> _Reason:
    return _Reason(message("file_field", field=field, detail=detail))


def _checked(text: str) -> _Description:
    try:
        description = _Description.model_validate_json(text)
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


def _build(description: _Description, tensors: Mapping[str, Tensor]) -> Planner:
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise _field(key, "holds values that are not finite")
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
        novelty=Novelty(tensors["novelty.centre"], tensors["novelty.whitening"], description.novelty_limit),
        provenance=description.provenance,
    )


def _network(description: _Description, tensors: Mapping[str, Tensor], index: int) -> CurvePredictor:
    prefix = f"network.{index}."
    network = description.network()
    network.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return network.eval().requires_grad_(False)
