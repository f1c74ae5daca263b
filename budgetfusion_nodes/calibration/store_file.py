"""Opens the store's database: journal, transactions, version; one that cannot be used is set aside, never deleted."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import URL, Engine, create_engine, event, inspect
from sqlalchemy.exc import DatabaseError

from ..core.errors import BudgetFusionError
from ..core.messages import Message, message
from . import schema

BUSY_SECONDS = 60.0
"""A transaction takes milliseconds; another process that holds the file for this long hangs."""
LOOK_SECONDS = 1.0
"""After which a lock that does not come is looked into."""
COMPANIONS = ("-journal", "-wal", "-shm", "")
"""In the order in which they are set aside: a journal beside which no database lies would be deleted by SQLite. A -wal
holds what was committed last, a -journal what a transaction that was cut off has to put back."""
MAGIC = b"SQLite format 3\0"
"""What every database begins with (sqlite.org/fileformat.html, 1.3)."""
ATTEMPTS = 3
"""To open a database, where another one was set aside before."""


class StoreError(BudgetFusionError):
    """The store cannot be used where it lies, and not set aside either."""


Said = Callable[[str, str], Message]
"""(the database's name, the name under which it is set aside) -> the sentence."""


def _damaged(file: str, other: str) -> Message:
    return message("store_damaged", file=file, other=other)


def _foreign(file: str, other: str) -> Message:
    return message("store_foreign", file=file, other=other)


def _newer(file: str, other: str) -> Message:
    return message("store_newer", file=file, other=other)


def _read_only(file: str, other: str) -> Message:
    return message("store_read_only", file=file, other=other)


class _Unusable(Exception):
    """This database cannot be used."""

    def __init__(self, said: Said) -> None:
        super().__init__(said.__name__)
        self.said = said


def open_engine(path: Path) -> tuple[Engine, Message | None]:
    """An engine for the database at `path`, made or migrated if need be; and what is to be said where another one lay
    there and was set aside. StoreError where nothing can be written there at all, and for what passes (a full disk, a
    lock): then nothing is moved."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_folder(path, error) from error
    said: Message | None = None
    for _ in range(ATTEMPTS):
        looked_at = _which(path)
        try:
            return _opened(path), said
        except _Unusable as found:
            if said is not None:  # nor can a new one be made
                raise _no_folder(path, found) from found
            if _which(path) == looked_at:  # else another process has set it aside, and begun a new one
                said = _moved_away(path, found.said)
    raise StoreError(message("store_locked"))


def _which(path: Path) -> int | None:
    """Tells one file from another of the same name; None where there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _no_folder(path: Path, error: object) -> StoreError:
    return StoreError(message("store_folder", file=path.name, folder=str(path.parent), error=str(error)))


def _opened(path: Path) -> Engine:
    _check_begins(path)
    engine = new_engine(path)
    try:
        with engine.begin() as connection:
            _check_owner(connection.connection.dbapi_connection)
            version = schema.version_of(connection)
            if version > len(schema.MIGRATIONS):
                raise _Unusable(_newer)
            schema.migrate(connection)
            if version and not inspect(connection).has_table(schema.settings.name):
                raise _Unusable(_damaged)
    except (DatabaseError, sqlite3.DatabaseError) as error:
        engine.dispose()
        said = _kind_of(error)
        if said is None:
            raise explained(error, path) from error
        raise _Unusable(said) from error
    except BaseException:
        engine.dispose()
        raise
    return engine


def _check_begins(path: Path) -> None:
    """Before SQLite opens it: closing what is no database, it takes away the -wal beside it."""
    if path.with_name(path.name + "-journal").exists():  # of which SQLite may put the beginning back
        return
    try:
        with path.open("rb") as file:
            begins = file.read(len(MAGIC))
    except OSError:  # not there, or SQLite says why it cannot be read
        return
    if begins and begins != MAGIC:
        raise _Unusable(_damaged)


def _check_owner(connection: object) -> None:
    assert isinstance(connection, sqlite3.Connection)
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if owner != schema.APPLICATION_ID and (owner or tables):
        raise _Unusable(_foreign)
    (check,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if check != "ok":
        raise _Unusable(_damaged)


def _kind_of(error: Exception) -> Said | None:
    """None for what says nothing about the database: a full disk, a lock, a disk that does not answer."""
    text = str(error).lower()
    if "readonly" in text or "read-only" in text:
        return _read_only
    if "malformed" in text or "not a database" in text or "no such table" in text:
        return _damaged
    return None


def explained(error: Exception, path: Path) -> StoreError:
    """What SQLite met while the store was in use, and what to do. What was committed before stays."""
    text = str(getattr(error, "orig", None) or error)
    low = text.lower()
    if "is full" in low:
        return StoreError(message("store_full", file=path.name))
    if "is locked" in low:
        return StoreError(message("store_locked"))
    if _kind_of(error) is _damaged:
        return StoreError(message("store_damaged_in_use", file=path.name))
    if _kind_of(error) is _read_only or "unable to open" in low:
        return _no_folder(path, text)
    return StoreError(message("store_failed", file=path.name, reason=text))


def _moved_away(path: Path, said: Said) -> Message:
    """Renames the database and its journal, both or neither; the sentence says why and where it is now."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    other = path.with_name(f"{path.stem}.set-aside-{stamp}{path.suffix}")
    number = 1
    while other.exists():
        number += 1
        other = path.with_name(f"{path.stem}.set-aside-{stamp}-{number}{path.suffix}")
    moved: list[tuple[Path, Path]] = []
    try:
        for companion in COMPANIONS:
            old, new = path.with_name(path.name + companion), other.with_name(other.name + companion)
            with contextlib.suppress(FileNotFoundError):
                moved.append((old, old.rename(new)))
    except OSError as error:  # Windows renames no file that another process holds open, such as a virus scanner
        for old, new in reversed(moved):
            with contextlib.suppress(OSError):
                new.rename(old)
        raise _no_folder(path, error) from error
    return said(path.name, other.name)


def new_engine(path: Path) -> Engine:
    """One writer at a time, and `BEGIN IMMEDIATE`, so that no transaction fails halfway for want of a lock."""
    engine = create_engine(URL.create("sqlite", database=str(path)), creator=lambda: _connected(path))

    @event.listens_for(engine, "begin")
    def on_begin(connection: object) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # type: ignore[attr-defined]

    return engine


def _connected(path: Path) -> sqlite3.Connection:
    """In WAL; with the plain journal where the file system has no shared memory (network drives, folders shared with a
    virtual machine). StoreError where it has no locks: SQLite would wait for one in vain."""
    connection = _connect(path)
    try:
        _look(connection)
    except sqlite3.OperationalError as error:
        connection.close()
        text = str(error).lower()
        if "locked" in text and not has_locks(path.parent):
            raise StoreError(message("store_no_locks", file=path.name, folder=str(path.parent))) from error
        if "i/o error" in text or "locking protocol" in text:
            _leave_wal(path)
        elif "locked" not in text:
            raise
        connection = _connect(path)
    except BaseException:
        connection.close()  # a damaged database is set aside next, and Windows renames no open file
        raise
    for pragma in (f"busy_timeout = {1000 * BUSY_SECONDS:.0f}", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    # no isolation level: SQLAlchemy's own BEGIN, not the driver's; its pool hands a connection to any thread
    return sqlite3.connect(path, timeout=LOOK_SECONDS, isolation_level=None, check_same_thread=False)


def _look(connection: sqlite3.Connection) -> None:
    """The first access; a new database begins in WAL."""
    if connection.execute("PRAGMA page_count").fetchone() == (0,):
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()


def _leave_wal(path: Path) -> None:
    """What is in WAL can be read without shared memory by one process that holds it all, from its first access on."""
    with contextlib.closing(_connect(path)) as connection:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = DELETE")


def has_locks(folder: Path) -> bool:
    """Whether files of this folder can be locked; True where that cannot be told."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            fcntl.lockf(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EROFS, errno.EACCES, errno.ENOSPC)
    return True


@contextlib.contextmanager
def outside_transactions(engine: Engine) -> Iterator[sqlite3.Connection]:
    """The driver's own connection, for statements that SQLite takes in no transaction, such as VACUUM."""
    pooled = engine.raw_connection()
    try:
        connection = pooled.driver_connection
        assert isinstance(connection, sqlite3.Connection)
        yield connection
    finally:
        pooled.close()


@contextlib.contextmanager
def disposing(engine: Engine) -> Iterator[Engine]:
    """The engine, its connections closed at the end: Windows renames no open file."""
    try:
        yield engine
    finally:
        engine.dispose()
