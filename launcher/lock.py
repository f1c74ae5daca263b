"""One set-up at a time in one run folder, across processes; freed by the system when a process dies."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

from .console import say
from .errors import LaunchError
from .layout import Layout

WAIT_SECONDS = 1800.0


def _try_lock(descriptor: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def set_up_lock(layout: Layout) -> Iterator[None]:
    """Waits for another set-up of the same folder to end, and says so."""
    try:
        layout.run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(layout.lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise LaunchError(
            f"The folder {layout.run_dir} cannot be written to ({error.strerror}).",
            "Change its permissions, or set BUDGETFUSION_RUN_DIR to a folder that can be written to.",
        ) from error
    try:
        if not _try_lock(descriptor):
            say("Another run.py is setting up in the same folder; waiting for it.")
            deadline = time.monotonic() + WAIT_SECONDS
            while not _try_lock(descriptor):
                if time.monotonic() > deadline:
                    raise LaunchError(
                        f"Another run.py has been setting up in {layout.run_dir} for half an hour.",
                        "End it and run the same command again.",
                    )
                time.sleep(0.5)
        yield
    finally:
        os.close(descriptor)
