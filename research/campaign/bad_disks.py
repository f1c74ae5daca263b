"""Disks that are full, read-only, or lack what a database needs: the real thing where this system allows it."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from budgetfusion_nodes.core.errors import BudgetFusionError
from research.options import ROOT

from .killing import forked
from .part import NotRunError

SHIM = Path(__file__).with_name("lockless.c")


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system in memory of `size` bytes, mounted at `folder`. NotRunError where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    if not _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)):
        raise NotRunError("Mounting a file system is not allowed here.")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def set_writable(disk: Path, writable: bool) -> None:
    """Of `small_disk`."""
    if not _mount("-o", f"remount,{'rw' if writable else 'ro'}", str(disk)):
        raise NotRunError("Remounting a file system is not allowed here.")


def _mount(*arguments: str) -> bool:
    if shutil.which("mount") is None:
        return False
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0


def fill_up(disk: Path, leave: int) -> Path:
    """A file that takes all of a disk but `leave` bytes."""
    filler = disk / "filler"
    status = os.statvfs(disk)
    with filler.open("wb") as file:
        file.write(bytes(max(0, status.f_bavail * status.f_frsize - leave)))
    return filler


def limit_files(size: int) -> None:
    """No file of this process may grow beyond `size` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def sentence_of(work: Callable[[], object], note: Path) -> str:
    """What `work` says in a process of its own where it ends with an error that is meant for artists; empty where it
    ends well. RuntimeError for any other end. note: a file for the sentence, on a good disk."""
    note.unlink(missing_ok=True)
    child, reading = forked(lambda: _noting(work, note))
    os.close(reading)
    child.join()
    if child.exitcode:
        raise RuntimeError(f"the process ended with status {child.exitcode}, without a sentence")
    return note.read_text(encoding="utf-8") if note.is_file() else ""


def _noting(work: Callable[[], object], note: Path) -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        work()
    except BudgetFusionError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        note.write_text(str(error), encoding="utf-8")


def without(what: str, scratch: Path, code: str, arguments: Sequence[str]) -> tuple[int, str]:
    """Runs Python code on a file system without `locks` or `memory`: (status, what it printed). NotRunError without a C
    compiler."""
    compiler, library = shutil.which("cc") or shutil.which("gcc"), scratch / "lockless.so"
    if compiler is None or not sys.platform.startswith("linux"):
        raise NotRunError("A file system without locks needs Linux and a C compiler here.")
    if not library.is_file():
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SHIM), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "CAMPAIGN_WITHOUT": what}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr
