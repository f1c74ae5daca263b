"""Which part of the pack an unforeseen error comes from: what a node says of it, beside the log's traceback."""

from __future__ import annotations

import traceback
from pathlib import Path

PACK = Path(__file__).parents[1]


def told(error: BaseException, innermost: bool = False) -> str:
    """One line: the error's kind and text, and the stage."""
    first = (str(error).strip() or "-").splitlines()[0]
    stage = stage_of(error, innermost)
    return f"{type(error).__name__}: {first}" + (f" [{stage}]" if stage else "")


def stage_of(error: BaseException, innermost: bool = False) -> str:
    """The function of this pack that failed, of those that the module which catches `error` called; as in
    "host/identity.py read_identity". Empty where none of the pack did. innermost: the one in which it happened, where
    the module that catches it called a whole job."""
    listed = (one for one in traceback.extract_tb(error.__traceback__) if not one.name.startswith("<"))
    frames = [one for one in listed if PACK in Path(one.filename).parents]
    if not frames:
        return ""
    below = (one for one in frames if one.filename != frames[0].filename)
    stage = frames[-1] if innermost else next(below, frames[-1])
    return f"{Path(stage.filename).relative_to(PACK).as_posix()} {stage.name}"
