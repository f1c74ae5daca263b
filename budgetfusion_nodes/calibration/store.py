"""The calibration store: what was rendered and measured, for every setting, in one SQLite database.

One transaction a count measured, so a kill loses at most the count in work. Two processes may calibrate at once: what
both measure is kept once. `store_file` opens the database and sets a bad one aside.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, func, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DatabaseError, IntegrityError

from ..core.errors import InputError
from ..core.files import in_one_piece
from ..core.messages import Message
from ..core.setting import Setting
from ..core.sources import CALIBRATED
from ..predictor.memory_space import signature
from . import schema as t
from .records import Encoded, Measurement, SetAside, Subject
from .store_file import disposing, explained, new_engine, open_engine, outside_transactions
from .store_rows import Rows, forgotten


@dataclass(frozen=True)
class Kept:
    """What the store knows of one trajectory."""

    trajectory_id: int
    measured: Mapping[int, Measurement]
    """Count -> what was measured with the backends asked for."""
    latent: bytes | None
    """The target picture's, where the trajectory is not finished."""
    set_aside: SetAside | None


@dataclass(frozen=True)
class KeptPlanner:
    """A planner that was made."""

    file: str
    sha256: str
    prompts: int
    figures: Mapping[str, Any]
    made: float


@dataclass(frozen=True)
class Contents:
    """One setting in `store info`."""

    setting_id: int
    setting: Setting
    target: int
    schedule: Mapping[str, Any]
    prompts: int
    trajectories: int
    measurements: int
    set_aside: int
    render_seconds: float
    planners: tuple[KeptPlanner, ...]


class Store:
    """Open with `Store.at(path)`; close it, or use it in a `with`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        engine, said = open_engine(path)
        self._engine = engine
        self.said: Message | None = said
        """What is to be said where a database lay there that could not be used."""
        self.rows = Rows()

    @classmethod
    def at(cls, path: Path) -> Store:
        """Opens or makes the store. StoreError where that is impossible."""
        return cls(path)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One writer at a time; all of it or nothing. StoreError where SQLite fails."""
        with self._explaining(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:  # a row that another one needs was deleted by another process
            raise forgotten() from error
        except (DatabaseError, sqlite3.DatabaseError) as error:
            raise explained(error, self.path) from error

    # ---------------------------------------------------------------------------------------------------- writing

    def setting_id(self, subject: Subject) -> int:
        """The row of this subject, made if need be."""
        with self.transaction() as connection:
            row = put_setting(connection, subject)
        self.rows.settings[row] = subject.digest()
        return row

    def prompt_id(self, encoded: Encoded, category: str, text: str | None = None) -> int:
        """The row of this conditioning, made if need be. text: only where the artist wants it kept."""
        with self.transaction() as connection:
            row = put_prompt(connection, encoded, category, text)
        self.rows.prompts[row] = encoded.digest()
        return row

    def backends_id(self, names: Mapping[str, str]) -> int:
        """The row of these backends: metric -> name with the digest of its weights."""
        with self.transaction() as connection:
            return put_backends(connection, names)

    def trajectory(self, setting_id: int, prompt_id: int, seed: int, backends_id: int) -> Kept:
        """What is known of a trajectory; its row is made if need be."""
        key = {"setting_id": setting_id, "prompt_id": prompt_id, "seed": seed}
        with self.transaction() as connection:
            self.rows.check_setting(connection, setting_id)
            self.rows.check_prompt(connection, prompt_id)
            connection.execute(insert(t.trajectories).values(key).on_conflict_do_nothing())
            row = connection.execute(select(t.trajectories).filter_by(**key)).one()
            self.rows.trajectories[row.id] = (setting_id, prompt_id, seed)
            return Kept(
                row.id,
                read_measured(connection, row.id, backends_id),
                row.latent,
                _set_aside(connection, t.trajectories.c.id == row.id),
            )

    def record(self, trajectory_id: int, backends_id: int, found: Measurement, latent: bytes | None = None) -> None:
        """One count. latent: with the target's, so that a restart need not render it again."""
        with self.transaction() as connection:
            self.rows.check_trajectory(connection, trajectory_id)
            put_measurement(connection, trajectory_id, backends_id, found)
            if latent is not None:
                _set_latent(connection, trajectory_id, latent)

    def finish(self, trajectory_id: int) -> None:
        """The target's latent is not needed any more, and the curve can be remembered."""
        memory = {"trajectory_id": trajectory_id, "at": time.time(), "source": CALIBRATED}
        with self.transaction() as connection:
            self.rows.check_trajectory(connection, trajectory_id)
            _set_latent(connection, trajectory_id, None)
            connection.execute(insert(t.memories).values(memory).on_conflict_do_nothing())

    def set_aside(self, trajectory_id: int, steps: int, reason: str) -> None:
        """Leaves a trajectory out, with the reason."""
        values = {"trajectory_id": trajectory_id, "steps": steps, "reason": reason, "at": time.time()}
        with self.transaction() as connection:
            self.rows.check_trajectory(connection, trajectory_id)
            connection.execute(insert(t.set_aside).values(values).on_conflict_do_nothing())
            _set_latent(connection, trajectory_id, None)

    def try_again(self, setting_id: int) -> int:
        """Forgets what was set aside, so that it is rendered again; how many there were."""
        own = select(t.trajectories.c.id).where(t.trajectories.c.setting_id == setting_id)
        with self.transaction() as connection:
            return connection.execute(delete(t.set_aside).where(t.set_aside.c.trajectory_id.in_(own))).rowcount

    def record_planner(self, setting_id: int, made: KeptPlanner) -> None:
        values = {**vars(made), "figures": dict(made.figures), "setting_id": setting_id}
        with self.transaction() as connection:
            self.rows.check_setting(connection, setting_id)
            connection.execute(insert(t.planners).values(values))

    def forget(self, setting_id: int) -> bool:
        """Deletes a setting with all its measurements, and prompts that no other setting has. False if unknown."""
        with self.transaction() as connection:
            gone = connection.execute(delete(t.settings).where(t.settings.c.id == setting_id)).rowcount
            used = select(t.trajectories.c.prompt_id).union(select(t.search_looks.c.prompt_id))
            connection.execute(delete(t.prompts).where(t.prompts.c.id.not_in(used)))
        return bool(gone)

    # ---------------------------------------------------------------------------------------------------- reading

    def measured(
        self, setting_id: int, backends_id: int, prompt_ids: Sequence[int]
    ) -> dict[tuple[int, int], dict[int, Measurement]]:
        """(prompt, seed) -> count -> measurement, of trajectories that were not set aside."""
        own, aside = t.trajectories.c, select(t.set_aside.c.trajectory_id)
        query = (
            select(own.prompt_id, own.seed, t.measurements)
            .join_from(t.trajectories, t.measurements)
            .where(own.setting_id == setting_id, own.id.not_in(aside))
            .where(t.measurements.c.backends_id == backends_id, own.prompt_id.in_(list(prompt_ids)))
            .order_by(own.prompt_id, own.seed, t.measurements.c.steps)
        )
        found: dict[tuple[int, int], dict[int, Measurement]] = {}
        with self.transaction() as connection:
            self.rows.check_setting(connection, setting_id)
            for row in connection.execute(query):
                found.setdefault((row.prompt_id, row.seed), {})[row.steps] = _measurement(row)
        return found

    def encoded(self, prompt_ids: Sequence[int]) -> dict[int, Encoded]:
        """Prompt -> its conditioning."""
        query = select(t.prompts.c.id, t.prompts.c.features).where(t.prompts.c.id.in_(list(prompt_ids)))
        with self.transaction() as connection:
            return {row.id: Encoded.from_bytes(row.features) for row in connection.execute(query)}

    def all_set_aside(self, setting_id: int) -> tuple[SetAside, ...]:
        with self.transaction() as connection:
            return tuple(_all_set_aside(connection, t.trajectories.c.setting_id == setting_id))

    def begun(self, setting_id: int) -> int:
        """Trajectories that have a row."""
        query = select(func.count()).where(t.trajectories.c.setting_id == setting_id)
        with self.transaction() as connection:
            return int(connection.execute(query).scalar_one())

    def order(self, setting_id: int) -> tuple[tuple[int, ...], dict[int, list[int]]]:
        """(prompts in the order in which they were begun, prompt -> its seeds)."""
        own = t.trajectories.c
        query = select(own.prompt_id, own.seed).where(own.setting_id == setting_id).order_by(own.id)
        seeds: dict[int, list[int]] = {}
        with self.transaction() as connection:
            for row in connection.execute(query):
                seeds.setdefault(row.prompt_id, []).append(row.seed)
        return tuple(seeds), seeds

    def contents(self) -> tuple[Contents, ...]:
        """Every setting, the newest first."""
        with self.transaction() as connection:
            rows = connection.execute(select(t.settings).order_by(t.settings.c.created.desc())).all()
            return tuple(_contents(connection, row) for row in rows)

    # ------------------------------------------------------------------------------------------- export and import

    def export(self, path: Path, with_text: bool = False) -> None:
        """A copy of the database without the prompts' texts, unless asked for."""
        if path.exists():
            raise InputError(f"{path.name} is there already. Choose another name.")
        if not path.parent.is_dir():
            raise InputError(f"There is no folder {path.parent}. Make it, or choose another one.")
        with self._explaining(), in_one_piece(path) as draft:  # a kill leaves no file of that name with texts in it
            with outside_transactions(self._engine) as connection:
                connection.execute("VACUUM INTO ?", (str(draft),))
            if not with_text:
                _without_text(draft)

    def attach(self, path: Path, statements: Sequence[str]) -> int:
        """Runs statements that may read the database at `path` as `other`; how many measurements came in."""
        with self._explaining(), outside_transactions(self._engine) as connection:
            connection.execute("ATTACH DATABASE ? AS other", (str(path),))
            try:
                (before,) = connection.execute("SELECT count(*) FROM measurements").fetchone()
                connection.execute("BEGIN IMMEDIATE")
                for statement in statements:
                    connection.execute(statement)
                (after,) = connection.execute("SELECT count(*) FROM measurements").fetchone()
                connection.execute("COMMIT")
                return int(after - before)
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                for table in ("same_trajectory", "ours"):
                    connection.execute(f"DROP TABLE IF EXISTS temp.{table}")
                connection.execute("DETACH DATABASE other")


def _without_text(path: Path) -> None:
    with disposing(new_engine(path)) as engine:
        with engine.begin() as copy:
            copy.execute(update(t.prompts).values(text=None))
        with outside_transactions(engine) as connection:
            connection.execute("VACUUM")  # else the old pages still hold the texts
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def put_setting(connection: Connection, subject: Subject) -> int:
    """See `Store.setting_id`."""
    values = {
        "digest": subject.digest(),
        "setting": subject.setting.to_dict(),
        "schedule": dict(subject.schedule),
        "target": subject.target,
        "facts": dict(subject.facts),
        "created": time.time(),
    }
    connection.execute(insert(t.settings).values(values).on_conflict_do_nothing())
    wanted = select(t.settings.c.id).where(t.settings.c.digest == values["digest"])
    return int(connection.execute(wanted).scalar_one())


def put_prompt(
    connection: Connection, encoded: Encoded, category: str, text: str | None, with_features: bool = True
) -> int:
    """See `Store.prompt_id`. with_features: whether a planner may be fitted to it; memory needs its signature alone."""
    values = {"digest": encoded.digest(), "features": b"", "category": category, "text": text}
    found = insert(t.prompts).values({**values, "features": encoded.to_bytes()} if with_features else values)
    if with_features:  # a prompt that was only remembered till now, or whose features a disk has damaged
        lacking = t.prompts.c.features != found.excluded.features
        changed = {
            "features": found.excluded.features,
            "category": found.excluded.category,
            "text": found.excluded.text,
        }
        connection.execute(found.on_conflict_do_update(index_elements=["digest"], set_=changed, where=lacking))
    else:
        connection.execute(found.on_conflict_do_nothing())
    wanted = select(t.prompts.c.id).where(t.prompts.c.digest == values["digest"])
    prompt_id = int(connection.execute(wanted).scalar_one())
    place = {"prompt_id": prompt_id, "vector": signature(encoded.tokens, encoded.pooled).tobytes()}
    connection.execute(insert(t.signatures).values(place).on_conflict_do_nothing())
    return prompt_id


def put_backends(connection: Connection, names: Mapping[str, str]) -> int:
    """See `Store.backends_id`."""
    text = json.dumps(dict(names), sort_keys=True)
    connection.execute(insert(t.backends).values(names=text).on_conflict_do_nothing())
    return int(connection.execute(select(t.backends.c.id).where(t.backends.c.names == text)).scalar_one())


def put_measurement(connection: Connection, trajectory_id: int, backends_id: int, found: Measurement) -> None:
    """See `Store.record`."""
    values = {
        "trajectory_id": trajectory_id,
        "backends_id": backends_id,
        "steps": found.steps,
        "distances": dict(found.distances),
        "l_snr": found.l_snr,
        "evaluations": found.evaluations,
        "render_seconds": found.render_seconds,
        "measure_seconds": found.measure_seconds,
    }
    connection.execute(insert(t.measurements).values(values).on_conflict_do_nothing())


def read_measured(connection: Connection, trajectory_id: int, backends_id: int) -> dict[int, Measurement]:
    """Count -> measurement of one trajectory."""
    own = t.measurements.c
    query = select(t.measurements).where(own.trajectory_id == trajectory_id, own.backends_id == backends_id)
    return {row.steps: _measurement(row) for row in connection.execute(query.order_by(own.steps))}


def _measurement(row: Any) -> Measurement:
    return Measurement(row.steps, row.distances, row.l_snr, row.evaluations, row.render_seconds, row.measure_seconds)


def _set_aside(connection: Connection, condition: Any) -> SetAside | None:
    return next(_all_set_aside(connection, condition), None)


def _all_set_aside(connection: Connection, condition: Any) -> Iterator[SetAside]:
    own = t.trajectories.c
    query = select(own.prompt_id, own.seed, t.set_aside.c.steps, t.set_aside.c.reason)
    for row in connection.execute(query.join_from(t.trajectories, t.set_aside).where(condition).order_by(own.id)):
        yield SetAside(row.prompt_id, row.seed, row.steps, row.reason)


def _set_latent(connection: Connection, trajectory_id: int, latent: bytes | None) -> None:
    connection.execute(update(t.trajectories).where(t.trajectories.c.id == trajectory_id).values(latent=latent))


def _contents(connection: Connection, row: Any) -> Contents:
    own, measured = t.trajectories.c, t.measurements
    of_setting = own.setting_id == row.id
    trajectories = select(func.count(), func.count(own.prompt_id.distinct())).where(of_setting)
    sums = select(func.count(), func.coalesce(func.sum(measured.c.render_seconds), 0.0))
    rendered, prompts = connection.execute(trajectories).one()
    count, seconds = connection.execute(sums.join_from(t.trajectories, measured).where(of_setting)).one()
    made = select(t.planners).where(t.planners.c.setting_id == row.id).order_by(t.planners.c.made.desc())
    return Contents(
        setting_id=row.id,
        setting=Setting.from_dict(row.setting),
        target=row.target,
        schedule=row.schedule,
        prompts=prompts,
        trajectories=rendered,
        measurements=count,
        set_aside=len(list(_all_set_aside(connection, of_setting))),
        render_seconds=seconds,
        planners=tuple(KeptPlanner(p.file, p.sha256, p.prompts, p.figures, p.made) for p in connection.execute(made)),
    )
