"""Files that a killed run leaves whole or not at all."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

ABANDONED = 3600.0
"""Seconds after which nobody writes to a draft any more: its process was killed."""


def remove_abandoned(folder: Path, beginning: str, ending: str) -> None:
    """Deletes drafts that killed processes left in `folder`."""
    drafts = [one for one in folder.iterdir() if one.name.startswith(beginning) and one.name.endswith(ending)]
    for draft in drafts:
        with contextlib.suppress(OSError):  # another process was faster
            if time.time() - draft.stat().st_mtime > ABANDONED:
                draft.unlink()


@contextlib.contextmanager
def in_one_piece(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` when the block ends without an error. The name
    holds the process's id, so that two processes never write into each other's file."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    with contextlib.suppress(OSError):  # what is wrong with the folder, writing says
        remove_abandoned(path.parent, f"{path.name}.", ".part")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
