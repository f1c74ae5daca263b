"""Checks every row of a store that comes from elsewhere, so that none of them fails where it is read later."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, Json, JsonValue, ValidationError

from ..core.errors import InputError
from ..core.schedule import NestedSchedule
from ..core.setting import Setting, first_fault
from ..core.sources import SOURCES
from ..predictor.features import MAX_TOKENS
from ..predictor.memory_space import SIGNATURE
from .records import Encoded

MOST_STEPS = 10_000
"""Beyond what a sampler node takes."""
MOST_NUMBERS = 1 << 12
"""Of one kept prediction: 2 K + 1 for a grid of K counts."""


def _setting(data: dict[str, JsonValue]) -> dict[str, JsonValue]:
    try:
        Setting.from_dict(data)
    except InputError as error:
        raise ValueError(str(error)) from error
    return data


def _schedule(text: str) -> str:
    try:
        NestedSchedule.from_text(text)
    except InputError as error:
        raise ValueError(str(error)) from error
    return text


def _features(content: bytes) -> bytes:
    """Empty for a prompt that was only remembered."""
    if not content:
        return content
    try:
        found = Encoded.from_bytes(content)
    except Exception as error:  # safetensors raises a kind of its own
        raise ValueError("no tensors of a prompt") from error
    parts = [found.tokens, *([] if found.pooled is None else [found.pooled])]
    shapes = found.tokens.ndim == 2 and 1 <= len(found.tokens) <= MAX_TOKENS and parts[-1].ndim == 3 - len(parts)
    typed = all(part.dtype in (torch.float32, torch.bfloat16) and part.numel() for part in parts)
    if not (shapes and typed and all(torch.isfinite(part).all() for part in parts)):
        raise ValueError("no tensors of a prompt")
    return content


def _numbers(kind: type[Any], most: int) -> Any:
    def check(content: bytes) -> bytes:
        size = np.dtype(kind).itemsize
        if len(content) % size or not 1 <= len(content) // size <= most:
            raise ValueError(f"{len(content)} bytes are no numbers of a prompt")
        if not np.isfinite(np.frombuffer(content, kind)).all():
            raise ValueError("a number that is not finite")
        return content

    return Annotated[bytes, AfterValidator(check)]


Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Seconds = Annotated[FiniteFloat, Field(ge=0.0)]
Flag = Annotated[int, Field(ge=0, le=1)]


class _Row(BaseModel):
    """Columns and what they may hold. SQLite itself takes anything in any column."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _Settings(_Row):
    digest: str
    setting: Json[Annotated[dict[str, JsonValue], AfterValidator(_setting)]]
    schedule: Json[dict[str, JsonValue]]
    target: Steps
    facts: Json[dict[str, str]]
    created: FiniteFloat


class _Prompts(_Row):
    digest: str
    features: Annotated[bytes, AfterValidator(_features)]
    category: str
    text: str | None


class _Trajectories(_Row):
    setting_id: int
    prompt_id: int
    seed: int


class _Backends(_Row):
    names: Json[dict[str, str]]


class _Measurements(_Row):
    steps: Steps
    distances: Json[dict[str, FiniteFloat]]
    l_snr: FiniteFloat
    evaluations: Annotated[int, Field(ge=0)]
    render_seconds: Seconds
    measure_seconds: Seconds


class _SetAside(_Row):
    steps: Steps
    reason: str
    at: FiniteFloat


class _Signatures(_Row):
    vector: _numbers(np.float16, SIGNATURE)  # pyright: ignore[reportInvalidTypeForm]


class _Memories(_Row):
    at: FiniteFloat
    source: Literal[SOURCES]  # pyright: ignore[reportInvalidTypeForm]
    predictor: str | None
    predicted: _numbers(np.float32, MOST_NUMBERS) | None  # pyright: ignore[reportInvalidTypeForm]


class _Choices(_Row):
    key: str
    label: str
    question: str
    quality: FiniteFloat
    chose_full: Flag
    coin: Flag
    full_left: Flag
    facts: Json[dict[str, JsonValue]]
    at: FiniteFloat


class _Tables(_Row):
    asked: int


class _FoundSchedules(_Row):
    schedule: Annotated[str, AfterValidator(_schedule)]
    tables: Json[_Tables]
    made: FiniteFloat


ROWS: Mapping[str, type[_Row]] = {
    "settings": _Settings,
    "prompts": _Prompts,
    "trajectories": _Trajectories,
    "backends": _Backends,
    "measurements": _Measurements,
    "set_aside": _SetAside,
    "signatures": _Signatures,
    "memories": _Memories,
    "choices": _Choices,
    "found_schedules": _FoundSchedules,
}
"""Table -> what its rows have to be; those that an import takes, and of them the columns that it takes."""


def check_rows(connection: sqlite3.Connection) -> None:
    """ValueError names the first row that is not as it has to be, and why; sqlite3.Error where a table or a column is
    missing or a text cannot be decoded."""
    for table, wanted in ROWS.items():
        names = tuple(wanted.model_fields)
        for number, *values in connection.execute(f"SELECT rowid, {', '.join(names)} FROM {table}"):
            try:
                wanted.model_validate(dict(zip(names, values, strict=True)))
            except ValidationError as error:
                field, detail = first_fault(error)
                raise ValueError(f"row {number} of {table} has a wrong {field}: {detail}") from error
