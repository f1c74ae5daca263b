"""What is remembered of renders besides calibrations: written after they are measured, evicted, forgotten."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects.sqlite import insert

from ..core.sources import CALIBRATED
from . import schema as t
from .records import Encoded, Measurement, Subject, signed
from .store import Store, put_backends, put_measurement, put_prompt, put_setting, read_measured

MOST = 10_000
"""Remembered renders that the store keeps besides those of calibrations; the oldest go first."""


@dataclass(frozen=True)
class Remembered:
    """One render that was measured."""

    subject: Subject
    encoded: Encoded
    seed: int
    """0 to 2^64 - 1."""
    backends: Mapping[str, str]
    measured: Sequence[Measurement]
    """At several counts, the target among them."""
    source: str
    """One of core.sources."""
    predictor: str = ""
    """Fingerprint of the predictor; empty where nothing was predicted."""
    predicted: bytes = b""
    """float32 [2, K]: median and high shortfall over the scale, as it said for this prompt."""


def remember(store: Store, found: Remembered, most: int = MOST) -> None:
    """All of it or nothing. A render that is known gets the counts that are new."""
    with store.transaction() as connection:
        setting_id = put_setting(connection, found.subject)
        prompt_id = put_prompt(connection, found.encoded, found.source, None, with_features=False)
        backends_id = put_backends(connection, found.backends)
        key = {"setting_id": setting_id, "prompt_id": prompt_id, "seed": signed(found.seed)}
        connection.execute(insert(t.trajectories).values(key).on_conflict_do_nothing())
        trajectory_id = int(connection.execute(select(t.trajectories.c.id).filter_by(**key)).scalar_one())
        for one in found.measured:
            put_measurement(connection, trajectory_id, backends_id, one)
        said = {"predictor": found.predictor or None, "predicted": found.predicted or None}
        row = {"trajectory_id": trajectory_id, "at": time.time(), "source": found.source, **said}
        connection.execute(
            insert(t.memories)
            .values(row)
            .on_conflict_do_update(index_elements=["trajectory_id"], set_={"at": row["at"]})
        )
        _evict(connection, most)


def measured_of(
    store: Store, subject: Subject, encoded: Encoded, seed: int, backends: Mapping[str, str]
) -> dict[int, Measurement]:
    """Count -> what these backends measured of one render; empty where it is unknown or was set aside."""
    own = t.trajectories.c
    query = (
        select(own.id)
        .join(t.settings, t.settings.c.id == own.setting_id)
        .join(t.prompts, t.prompts.c.id == own.prompt_id)
        .where(t.settings.c.digest == subject.digest(), t.prompts.c.digest == encoded.digest())
        .where(own.seed == signed(seed), own.id.not_in(select(t.set_aside.c.trajectory_id)))
    )
    with store.transaction() as connection:
        row = connection.execute(query).scalar_one_or_none()
        return {} if row is None else read_measured(connection, row, put_backends(connection, backends))


def _evict(connection: Connection, most: int) -> None:
    """Keeps the latest `most` of those that no calibration goes on from. What seems to come from the future was written
    before a clock was set back: it goes before what is written now."""
    own = t.memories.c
    latest = func.min(own.at, time.time()).desc(), own.trajectory_id.desc()
    kept = select(own.trajectory_id).where(own.source != CALIBRATED).order_by(*latest)
    old = list(connection.execute(kept.offset(most).limit(1000)).scalars())
    if old:
        _drop(connection, t.trajectories.c.id.in_(old))


def learned_since(store: Store, source: str, at: float) -> int:
    """Renders from this source since this time, and not from the future, as a clock that was set back tells."""
    own = t.memories.c
    with store.transaction() as connection:
        query = select(func.count()).where(own.source == source, own.at > at, own.at <= time.time())
        return int(connection.execute(query).scalar_one())


def forget_older(store: Store, before: float) -> int:
    """Deletes renders that were measured before this time, those of calibrations too; how many there were."""
    old = select(t.memories.c.trajectory_id).where(t.memories.c.at < before)
    with store.transaction() as connection:
        return _drop(connection, t.trajectories.c.id.in_(old))


def forget_model(store: Store, model: str) -> int:
    """Deletes every setting of a model, by its file name or the beginning of its fingerprint; how many renders."""
    known = [one for one in store.contents() if _is_model(one.setting, model)]
    with store.transaction() as connection:
        ids = [one.setting_id for one in known]
        gone = _drop(connection, t.trajectories.c.setting_id.in_(ids))
        connection.execute(delete(t.settings).where(t.settings.c.id.in_(ids)))
    return gone


def _is_model(setting: object, model: str) -> bool:
    name, fingerprint = getattr(setting, "model_name", ""), getattr(setting, "model", "")
    return bool(model) and (model == name or (len(model) >= 6 and fingerprint.startswith(model)))


def forget_prompt(store: Store, prompt: str) -> int:
    """Deletes a prompt's renders at every setting, by its number or, where it was kept, its text; how many."""
    condition = t.prompts.c.text == prompt
    if prompt.isdecimal():
        condition |= t.prompts.c.id == int(prompt)
    own = select(t.prompts.c.id).where(condition)
    with store.transaction() as connection:
        return _drop(connection, t.trajectories.c.prompt_id.in_(own))


@dataclass(frozen=True)
class PromptRow:
    """One prompt in `store prompts`."""

    prompt_id: int
    text: str | None
    renders: int
    last: float | None
    """When it was last measured, seconds since 1970; None for a calibration that is not finished."""


def prompt_rows(store: Store) -> list[PromptRow]:
    """Every prompt, the one measured last first."""
    last = func.max(t.memories.c.at)
    query = (
        select(t.prompts.c.id, t.prompts.c.text, func.count(), last)
        .join_from(t.prompts, t.trajectories)
        .outerjoin(t.memories, t.memories.c.trajectory_id == t.trajectories.c.id)
        .group_by(t.prompts.c.id)
        .order_by(last.desc())
    )
    with store.transaction() as connection:
        return [PromptRow(*row) for row in connection.execute(query)]


def _drop(connection: Connection, condition: object) -> int:
    """Deletes trajectories, and prompts that none is left of."""
    gone = connection.execute(delete(t.trajectories).where(condition)).rowcount  # type: ignore[arg-type]
    used = select(t.trajectories.c.prompt_id).union(select(t.search_looks.c.prompt_id))
    connection.execute(delete(t.prompts).where(t.prompts.c.id.not_in(used)))
    return int(gone)
