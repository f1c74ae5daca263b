"""Tables of the calibration store, their version, and how a database of an older version becomes today's."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    literal,
    select,
)

APPLICATION_ID = 0x42464331
"""SQLite's `application_id`: a database with another one belongs to another program."""

metadata = MetaData()

settings = Table(
    "settings",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("digest", Text, nullable=False, unique=True),
    Column("setting", JSON, nullable=False),
    Column("schedule", JSON, nullable=False),  # {"kind": "stock"}, or "nested" with its numbers
    Column("target", Integer, nullable=False),
    Column("facts", JSON, nullable=False),  # what else moves the picture, as digests: negative, extras, VAE
    Column("created", Float, nullable=False),
)
prompts = Table(
    "prompts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("digest", Text, nullable=False, unique=True),  # of the conditioning, which settings of one encoder share
    Column("features", LargeBinary, nullable=False),  # safetensors: tokens [L, D], pooled [P]; float32 or bfloat16
    Column("category", Text, nullable=False),
    Column("text", Text),  # only where the artist turned it on
)
trajectories = Table(
    "trajectories",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("setting_id", ForeignKey("settings.id", ondelete="CASCADE"), nullable=False),
    Column("prompt_id", ForeignKey("prompts.id", ondelete="CASCADE"), nullable=False),
    Column("seed", Integer, nullable=False),
    Column("latent", LargeBinary),  # the target picture's, until its trajectory is finished
    UniqueConstraint("setting_id", "prompt_id", "seed"),
)
backends = Table(
    "backends",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("names", Text, nullable=False, unique=True),  # JSON: metric -> name with the digest of its weights
)
measurements = Table(
    "measurements",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("trajectory_id", ForeignKey("trajectories.id", ondelete="CASCADE"), nullable=False),
    Column("backends_id", ForeignKey("backends.id"), nullable=False),
    Column("steps", Integer, nullable=False),
    Column("distances", JSON, nullable=False),  # metric -> distance to the target picture
    Column("l_snr", Float, nullable=False),  # dB of the picture itself
    Column("evaluations", Integer, nullable=False),
    Column("render_seconds", Float, nullable=False),
    Column("measure_seconds", Float, nullable=False),
    UniqueConstraint("trajectory_id", "backends_id", "steps"),
)
set_aside = Table(
    "set_aside",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("trajectory_id", ForeignKey("trajectories.id", ondelete="CASCADE"), nullable=False, unique=True),
    Column("steps", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", Float, nullable=False),
)
planners = Table(
    "planners",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("setting_id", ForeignKey("settings.id", ondelete="CASCADE"), nullable=False),
    Column("file", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("prompts", Integer, nullable=False),
    Column("figures", JSON, nullable=False),
    Column("made", Float, nullable=False),
)
choices = Table(
    "choices",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("key", Text, nullable=False, unique=True),  # digest of the two pictures, label and question: judged once
    Column("label", Text, nullable=False),
    Column("question", Text, nullable=False),  # "better", or "nearer" to a reference
    Column("quality", Float, nullable=False),  # of the picture with fewer steps
    Column("chose_full", Boolean, nullable=False),
    Column("coin", Boolean, nullable=False),  # no difference was seen, and a coin chose
    Column("full_left", Boolean, nullable=False),
    Column("facts", JSON, nullable=False),  # of the plan, where one was connected
    Column("at", Float, nullable=False),
)

signatures = Table(
    "signatures",
    metadata,
    Column("prompt_id", ForeignKey("prompts.id", ondelete="CASCADE"), primary_key=True),
    Column("vector", LargeBinary, nullable=False),  # float16, predictor/memory_space.py
)
memories = Table(
    "memories",
    metadata,
    Column("trajectory_id", ForeignKey("trajectories.id", ondelete="CASCADE"), primary_key=True),
    Column("at", Float, nullable=False),  # when it was measured
    Column("source", Text, nullable=False),  # what measured it: core.sources
    Column("predictor", Text),  # fingerprint of the predictor that said ...
    Column("predicted", LargeBinary),  # ... before: float32 [2 K], [2 K + 1] since the score stands behind
)
memories_at = Index("memories_at", memories.c.at)  # on the way to every plan: what came since the last
claims = Table(
    "claims",
    metadata,
    Column("trajectory_id", ForeignKey("trajectories.id", ondelete="CASCADE"), primary_key=True),
    Column("owner", Text, nullable=False),  # the process that renders it: claims.py
    Column("until", Float, nullable=False),
)
search_looks = Table(
    "search_looks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("setting_id", ForeignKey("settings.id", ondelete="CASCADE"), nullable=False),  # of the stock schedule
    Column("backends_id", ForeignKey("backends.id"), nullable=False),
    Column("prompt_id", ForeignKey("prompts.id", ondelete="CASCADE"), nullable=False),
    Column("seed", Integer, nullable=False),
    Column("run", Text, nullable=False),  # digest of the sigmas
    Column("distances", JSON, nullable=False),  # metric -> distance to the dense picture, or level
    Column("l_snr", Float, nullable=False),
    Column("features", LargeBinary, nullable=False),  # safetensors: what sets of pictures are compared by
    Column("picture", LargeBinary, nullable=False),  # PNG of a few pixels
    Column("latent", LargeBinary),  # of the dense run
    Column("seconds", Float, nullable=False),
    UniqueConstraint("setting_id", "backends_id", "prompt_id", "seed", "run"),
)
found_schedules = Table(
    "found_schedules",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("setting_id", ForeignKey("settings.id", ondelete="CASCADE"), nullable=False),  # of the stock schedule
    Column("backends_id", ForeignKey("backends.id"), nullable=False),
    Column("schedule", Text, nullable=False),  # as a Setting holds it; stock: there is no nested one
    Column("tables", JSON, nullable=False),  # what was tried
    Column("made", Float, nullable=False),
    UniqueConstraint("setting_id", "backends_id"),
)


def _calibration(connection: Connection) -> None:
    """Version 1: everything that a calibration measures."""
    first = (settings, prompts, trajectories, backends, measurements, set_aside, planners)
    metadata.create_all(connection, tables=first)


def _claims(connection: Connection) -> None:
    """Who renders what now."""
    claims.create(connection, checkfirst=True)


def _blind_test(connection: Connection) -> None:
    """Choices of the Blind Test."""
    choices.create(connection, checkfirst=True)


def _remember_what_is_there(connection: Connection) -> None:
    """Finished trajectories can be looked up."""
    from ..predictor.memory_space import signature
    from .records import Encoded

    for table in (signatures, memories):
        table.create(connection, checkfirst=True)
    for row in connection.execute(select(prompts.c.id, prompts.c.features)).all():
        encoded = Encoded.from_bytes(row.features)
        vector = signature(encoded.tokens, encoded.pooled).tobytes()
        connection.execute(signatures.insert().values(prompt_id=row.id, vector=vector))
    finished = select(trajectories.c.id, settings.c.created, literal("calibrate")).join_from(trajectories, settings)
    measured = select(measurements.c.trajectory_id)
    finished = finished.where(trajectories.c.latent.is_(None), trajectories.c.id.in_(measured))
    connection.execute(memories.insert().from_select(["trajectory_id", "at", "source"], finished))


def _search(connection: Connection) -> None:
    """What the search for a nested schedule saw and found."""
    for table in (search_looks, found_schedules):
        table.create(connection, checkfirst=True)


def _search_again(connection: Connection) -> None:
    """What was found under a weaker rule is judged again; pictures that were seen are kept."""
    connection.execute(found_schedules.delete())


def _latest_first(connection: Connection) -> None:
    """What was remembered since a plan is told without reading the rest."""
    memories_at.create(connection, checkfirst=True)


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (
    _calibration,
    _claims,
    _blind_test,
    _remember_what_is_there,
    _search,
    _search_again,
    _latest_first,
)
"""MIGRATIONS[v] makes a database of version v one of version v + 1. Version 0 is an empty file. One that has shipped is
never changed: a later table or column gets a migration of its own."""


def version_of(connection: Connection) -> int:
    """SQLite's `user_version`, which holds the schema's."""
    return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())


def migrate(connection: Connection) -> None:
    """Brings the database to today's version, inside the caller's transaction."""
    for version in range(version_of(connection), len(MIGRATIONS)):
        MIGRATIONS[version](connection)
    connection.exec_driver_sql(f"PRAGMA user_version = {len(MIGRATIONS)}")
    connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
