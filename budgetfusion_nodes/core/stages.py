"""Which part of the pack an unforeseen error comes from: what a node says of it, beside the log's traceback."""

from __future__ import annotations

import traceback
from pathlib import Path

PACK = Path(__file__).parents[1]


def told(error: BaseException) -> str:
    """One line: the error's kind and text, and the stage."""
    first = (str(error).strip() or "-").splitlines()[0]
    stage = stage_of(error)
    return f"{type(error).__name__}: {first}" + (f" [{stage}]" if stage else "")


def stage_of(error: BaseException) -> str:
    """The innermost function of this pack in which it happened; as in "host/identity.py read_identity". Empty where
    none of the pack did."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if PACK in Path(one.filename).parents]
    named = [one for one in frames if not one.name.startswith("<")]  # a function, and no comprehension in one
    return f"{Path(named[-1].filename).relative_to(PACK).as_posix()} {named[-1].name}" if named else ""
