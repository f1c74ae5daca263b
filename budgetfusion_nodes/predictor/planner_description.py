"""The JSON part of a planner file, checked field by field. Imported on use: building these classes takes time that no
start of a host should cost."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..core.curves import METRICS, validate_grid
from ..core.errors import InputError
from ..core.risk import RiskTable
from ..core.setting import Setting, first_fault
from .count_planner import CountPlanner, Level
from .features import MAX_WIDTH
from .network import QUANTILES, CurvePredictor, PredictorSize, parameter_shapes

MAX_NETWORKS = 16
LARGEST = 1e30
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
Grid = Annotated[tuple[Annotated[int, Field(lt=10**6)], ...], Field(max_length=1000), AfterValidator(_grid)]
Metrics = Annotated[tuple[str, ...], Field(min_length=1, max_length=len(METRICS))]
Prompts = Annotated[int, Field(ge=1, lt=10**9)]
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
    prompts: Prompts

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


class _Fall(_Part):
    best: Annotated[int, Field(ge=1, lt=10**6)]
    last: Annotated[int, Field(ge=1, lt=10**6)]
    pictures: Prompts


class _Calibration(_Part):
    predictor: str = ""
    fall: _Fall | None = None


class _Provenance(_Part):
    """Of what a planner says of its making, what is read again; the rest may be anything."""

    calibration: _Calibration = _Calibration()


def _known_provenance(told: dict[str, Any]) -> dict[str, Any]:
    try:
        _Provenance.model_validate(told)
    except ValidationError as error:
        raise ValueError(": ".join(first_fault(error))) from error
    return told


Provenance = Annotated[dict[str, Any], AfterValidator(_known_provenance)]


def _check_metrics(metrics: tuple[str, ...], backends: dict[str, str]) -> None:
    if len(set(metrics)) != len(metrics) or not set(metrics) <= set(METRICS):
        raise ValueError(f"metrics are {list(metrics)}; expected some of {list(METRICS)}, each once")
    if not set(metrics) <= set(backends):
        raise ValueError("backends must name what measured each metric")


class Kind(_Part):
    """What kind of planner a file holds; files of before do not say it."""

    kind: Literal["curves", "count"] = "curves"


class _Level(_Part):
    mean: Finite
    low: Finite
    high: Finite

    @model_validator(mode="after")
    def _is_interval(self) -> _Level:
        if not self.low <= self.mean <= self.high:
            raise ValueError("the mean must lie between low and high")
        return self


class CountDescription(_Part):
    """The JSON part of a planner of kind "count", checked. Such a file holds no tensors."""

    kind: Literal["count"]
    name: str
    setting: Setting
    count: Annotated[int, Field(ge=1)]
    grid: Grid
    levels: Annotated[tuple[_Level, ...], Field(max_length=1000)]
    metrics: Metrics
    backends: dict[str, str]
    prompts: Prompts
    why: Literal["steady", "best"]
    provenance: Provenance

    @model_validator(mode="after")
    def _fits(self) -> CountDescription:
        _check_metrics(self.metrics, self.backends)
        if len(self.levels) != len(self.grid):
            raise ValueError(f"{len(self.levels)} levels for {len(self.grid)} counts")
        if self.count not in self.grid:
            raise ValueError(f"count is {self.count}, which is not on the grid")
        return self

    def planner(self) -> CountPlanner:
        return CountPlanner(
            name=self.name,
            setting=self.setting,
            count=self.count,
            grid=self.grid,
            levels=tuple(Level(level.mean, level.low, level.high) for level in self.levels),
            metrics=self.metrics,
            backends={metric: self.backends[metric] for metric in self.metrics},
            prompts=self.prompts,
            why=self.why,
            provenance=self.provenance,
        )


class Description(_Part):
    """The JSON part of a planner of curves, checked."""

    kind: Literal["curves"] = "curves"
    name: str
    setting: Setting
    grid: Grid
    metrics: Metrics
    scale: Annotated[tuple[Positive, ...], Field(max_length=len(METRICS))]
    backends: dict[str, str]
    quantiles: Annotated[tuple[Finite, ...], Field(max_length=len(QUANTILES))]
    sizes: _Sizes
    risk: _Risk
    novelty_limit: Positive
    provenance: Provenance

    @model_validator(mode="after")
    def _fits(self) -> Description:
        _check_metrics(self.metrics, self.backends)
        if len(self.scale) != len(self.metrics):
            raise ValueError(f"{len(self.scale)} scales for {len(self.metrics)} metrics")
        if self.quantiles != QUANTILES:
            raise ValueError(f"quantiles are {list(self.quantiles)}; expected {list(QUANTILES)}")
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
