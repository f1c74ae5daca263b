"""Planner files: one safetensors file, tensors plus JSON metadata. Everything is checked before anything is built.

Layout: metadata {"format": FORMAT, "version": VERSION, "planner": JSON}; tensors projection.*, novelty.*,
network.<i>.*. No pickle anywhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..core.curves import METRICS, validate_grid
from ..core.errors import BudgetFusionError, PlannerFileError
from ..core.files import in_one_piece
from ..core.risk import RiskTable
from ..core.setting import Setting, with_precision
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
REMEDY = "Choose another planner, or fit this one again with 'python -m research study train'."
# the largest value of each size that is accepted: a foreign file must not make us allocate
SIZE_LIMITS = {
    "token_in": 65536,
    "token_width": MAX_WIDTH,
    "pooled_in": 65536,
    "pooled_width": MAX_WIDTH,
    "heads": 64,
    "context": 1024,
    "hidden": 1024,
    "networks": MAX_NETWORKS,
}
MAY_BE_ZERO = {"pooled_in", "pooled_width"}


@dataclass(frozen=True)
class _Description:
    """The JSON part of a planner, checked."""

    name: str
    setting: Setting
    grid: tuple[int, ...]
    metrics: tuple[str, ...]
    scale: tuple[float, ...]
    backends: dict[str, str]
    sizes: dict[str, int]
    risk: RiskTable
    novelty_limit: float
    provenance: dict[str, Any]

    @property
    def size(self) -> PredictorSize:
        return PredictorSize(**{key: self.sizes[key] for key in PredictorSize(1, 1).to_dict()})

    def network(self) -> CurvePredictor:
        with torch.random.fork_rng(devices=[]):  # its initial weights are replaced: leave the host's random state alone
            return CurvePredictor(self.size, self.grid, self.metrics)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The name and shape of every tensor the file must hold, no more and no less."""
        sizes = self.sizes
        features = 2 * sizes["token_width"] + sizes["pooled_width"]
        shapes: dict[str, tuple[int, ...]] = {
            "projection.token_mean": (sizes["token_in"],),
            "projection.token_weight": (sizes["token_in"], sizes["token_width"]),
            "projection.pooled_mean": (sizes["pooled_in"],),
            "projection.pooled_weight": (sizes["pooled_in"], sizes["pooled_width"]),
            "novelty.centre": (features,),
            "novelty.whitening": (features, features),
        }
        weights = parameter_shapes(self.size, len(self.grid), len(self.metrics))
        for index in range(sizes["networks"]):
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
        raise _failure(file, f"its tensors cannot be read ({error})") from error
    except _Reason as error:
        raise _failure(file, str(error)) from error
    except BudgetFusionError as error:
        raise _failure(file, f"its description is wrong ({error})") from error


class _Reason(Exception):
    """What is wrong with a file; load_planner adds which file and what to do."""


def _failure(file: Path, reason: str) -> PlannerFileError:
    return PlannerFileError(f"Planner file {file.name}: {reason}. {REMEDY}")


def _read(file: Path) -> bytes:
    try:
        if not file.is_file():
            raise _failure(file, "there is no such file" if not file.exists() else "it is not a file")
        size = file.stat().st_size
        if size > MAX_FILE_BYTES:
            raise _failure(file, f"it has {size:,} bytes; a planner has at most {MAX_FILE_BYTES:,}")
        return file.read_bytes()
    except OSError as error:
        raise _failure(file, f"it cannot be read ({error.strerror})") from error


def _header(content: bytes) -> dict[str, Any]:
    """The safetensors header: 8 bytes of length, then JSON."""
    if content[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05"):
        raise _Reason("it is a pickle or zip file (.pt, .ckpt), which is never opened; a planner is a safetensors file")
    if len(content) < 8:
        raise _Reason("it is empty or cut off; expected a safetensors file")
    length = int.from_bytes(content[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise _Reason(f"its header claims {length:,} bytes (at most {MAX_HEADER_BYTES:,}); it is no planner or damaged")
    if length > len(content) - 8:
        raise _Reason(f"it is cut off: {len(content) - 8:,} bytes follow where its header alone needs {length:,}")
    return _json_object(content[8 : 8 + length], "header")


def _metadata(header: Mapping[str, Any]) -> dict[str, Any]:
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise _Reason("it is a safetensors file, but not a BudgetFusion planner (a model or LoRA, perhaps)")
    if metadata.get("version") != VERSION:
        raise _Reason(
            f"it has planner version {metadata.get('version')!r}, this BudgetFusion reads version {VERSION!r}; "
            "update BudgetFusion if the file is newer"
        )
    text = metadata.get("planner")
    if not isinstance(text, str):
        raise _Reason("its description is missing")
    return _json_object(text, "description")


def _json_object(text: bytes | str, what: str) -> dict[str, Any]:
    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not a number")

    try:
        value = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise _Reason(f"its {what} is not valid JSON; it is no planner or damaged") from error
    if not isinstance(value, dict):
        raise _Reason(f"its {what} is not a JSON object; it is no planner or damaged")
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


def _checked(data: Mapping[str, Any]) -> _Description:
    grid = validate_grid(_numbers(data, "grid", lambda n: float(n).is_integer() and abs(n) < 1e6, int))
    metrics = _texts(data, "metrics")
    if not metrics or len(set(metrics)) != len(metrics) or not set(metrics) <= set(METRICS):
        raise _Reason(f"its metrics are {list(metrics)}; expected some of {list(METRICS)}, each once")
    scale = _numbers(data, "scale", lambda s: s > 0)
    if len(scale) != len(metrics):
        raise _Reason(f"it has {len(scale)} scales for {len(metrics)} metrics")
    if _numbers(data, "quantiles") != QUANTILES:
        raise _Reason(f"its quantiles are {data.get('quantiles')}; expected {list(QUANTILES)}")
    backends = _object(data, "backends")
    if not all(isinstance(backends.get(metric), str) for metric in metrics):
        raise _Reason("it does not name the backend that measured each metric")
    limit = data.get("novelty_limit")
    if not _is_number(limit) or limit <= 0:
        raise _Reason(f"its novelty_limit is {limit!r}; expected a positive number")
    if not isinstance(data.get("name"), str):
        raise _Reason("it has no name")
    provenance = _object(data, "provenance")
    return _Description(
        name=data["name"],
        setting=with_precision(Setting.from_dict(_object(data, "setting")), provenance.get("data")),
        grid=grid,
        metrics=metrics,
        scale=scale,
        backends={metric: backends[metric] for metric in metrics},
        sizes=_sizes(_object(data, "sizes")),
        risk=_risk_table(_object(data, "risk")),
        novelty_limit=float(limit),
        provenance=provenance,
    )


def _sizes(data: Mapping[str, Any]) -> dict[str, int]:
    for key, limit in SIZE_LIMITS.items():
        value, least = data.get(key), 0 if key in MAY_BE_ZERO else 1
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= limit:
            raise _Reason(f"its size {key} is {value!r}; expected a whole number from {least} to {limit}")
    return {key: data[key] for key in SIZE_LIMITS}


def _risk_table(data: Mapping[str, Any]) -> RiskTable:
    alphas = _numbers(data, "alphas", lambda a: 0 < a < 1)
    qualities = _numbers(data, "qualities", lambda q: 0 < q < 1)
    prompts = data.get("prompts")
    rows = data.get("theta")
    if isinstance(prompts, bool) or not isinstance(prompts, int) or prompts < 1:
        raise _Reason(f"its number of calibration prompts is {prompts!r}")
    if not _increasing(alphas) or not _increasing(qualities) or not isinstance(rows, list) or len(rows) != len(alphas):
        raise _Reason("its risk table is damaged: risks and qualities must increase, with one row for each risk")
    theta = tuple(_numbers({"theta": row}, "theta", lambda t: t >= 0) for row in rows)
    if any(len(row) != len(qualities) for row in theta):
        raise _Reason("its risk table is damaged: a row has another length than the list of qualities")
    if any(not _increasing([-t for t in row], strict=False) for row in theta) or any(
        not _increasing(column, strict=False) for column in zip(*theta, strict=True)
    ):
        raise _Reason("its risk table is damaged: thresholds must fall with quality and rise with risk")
    return RiskTable(alphas, qualities, theta, prompts)


def _check_tensor_table(header: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    entries = {key: value for key, value in header.items() if key != "__metadata__"}
    missing, extra = sorted(set(shapes) - set(entries)), sorted(set(entries) - set(shapes))
    if missing or extra:
        raise _Reason(f"its tensors do not fit its description (missing: {missing[:3]}, unknown: {extra[:3]})")
    for key, shape in shapes.items():
        entry = entries[key]
        if not isinstance(entry, dict) or entry.get("shape") != list(shape):
            found = entry.get("shape") if isinstance(entry, dict) else None
            raise _Reason(f"tensor {key} has shape {found}, expected {list(shape)}")
        if str(entry.get("dtype")) not in DTYPES:
            raise _Reason(f"tensor {key} has type {entry.get('dtype')!r}, expected one of {sorted(DTYPES)}")


def _build(description: _Description, tensors: Mapping[str, Tensor]) -> Planner:
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise _Reason(f"tensor {key} holds values that are not finite")
    whitening = tensors["novelty.whitening"].abs()
    if not (whitening.amax(0) > 0).all() or whitening.max() > MAX_WHITENING:
        raise _Reason(f"tensor novelty.whitening has a column of zeros or a value above {MAX_WHITENING:g}")
    if any((tensors[key] < 0).any() for key in tensors if key.endswith(".baseline")):
        raise _Reason("a baseline curve holds negative values")
    return Planner(
        name=description.name,
        setting=description.setting,
        grid=description.grid,
        metrics=description.metrics,
        scale=description.scale,
        backends=description.backends,
        projection=Projection(
            *(tensors[f"projection.{k}"] for k in ("token_mean", "token_weight", "pooled_mean", "pooled_weight"))
        ),
        networks=tuple(_network(description, tensors, i) for i in range(description.sizes["networks"])),
        risk_table=description.risk,
        novelty=Novelty(tensors["novelty.centre"], tensors["novelty.whitening"], description.novelty_limit),
        provenance=description.provenance,
    )


def _network(description: _Description, tensors: Mapping[str, Tensor], index: int) -> CurvePredictor:
    prefix = f"network.{index}."
    network = description.network()
    network.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return network.eval().requires_grad_(False)


def _is_number(value: Any) -> TypeGuard[int | float]:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < LARGEST  # also False for NaN; a whole number in JSON may exceed every float


def _numbers(
    data: Mapping[str, Any], key: str, allowed: Callable[[float], bool] = lambda _: True, kind: type = float
) -> tuple[Any, ...]:
    values = data.get(key)
    if not isinstance(values, list) or not values or len(values) > 10_000:
        raise _Reason(f"its {key} is missing or empty; expected a list of numbers")
    for value in values:
        if not _is_number(value) or not allowed(value):
            raise _Reason(f"its {key} holds {value!r}, which is not allowed there")
    return tuple(kind(value) for value in values)


def _texts(data: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = data.get(key)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise _Reason(f"its {key} is missing; expected a list of names")
    return tuple(values)


def _object(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    if not isinstance(value, dict):
        raise _Reason(f"its {key} is missing; expected a JSON object")
    return value


def _increasing(values: Any, strict: bool = True) -> bool:
    pairs = list(zip(values, list(values)[1:], strict=False))
    return all(a < b if strict else a <= b for a, b in pairs)
