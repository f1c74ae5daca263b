"""What a part of the campaign is: an experiment that gives findings, each about one of the ten promises."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

QUICK, LONG = AMOUNTS = ("quick", "long")

PROMISES: Mapping[str, str] = {
    "kept": "What was rendered and measured stays: a kill at any moment loses at most the count in work.",
    "same": "An interrupted calibration, fit, planner file or migration goes on, ends as an undisturbed one would, and "
    "nothing of it stands twice.",
    "shared": "Several servers and a shell work on one store at once: no row is lost, and nobody waits without an end.",
    "set_aside": "A store that cannot be used is set aside under another name and never deleted; one sentence says "
    "what happened, what was kept and what to do.",
    "goes_on": "No fault of a disk, a store, a planner or a stage stops a render: it is made at a count that is said, "
    "with the stage that failed, and the next one works.",
    "refused": "A planner file or an import from anywhere is taken or refused with a reason, within 1 s and 200 MB.",
    "flat": "Thousands of renders leave memory, open files and the time of a plan where they were.",
    "confined": "No web page, workflow or prompt makes the pack read or write outside its planner folders, or run a "
    "script.",
    "once": "On many workers every trajectory is kept exactly once, whichever of them ends on the way.",
    "opens": "Planners, stores and workflows that an earlier released state wrote open in this one.",
}
"""Code -> the promise in one line; docs/reliability.md opens with them."""


class NotRunError(Exception):
    """A part that cannot be run here; the text is the reason, a sentence for the report."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    promise: str
    """A key of PROMISES."""
    what: str
    """One plain sentence with its figure. No paths."""
    held: bool
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Numbers, texts and lists of texts, of which the page shows how long they are; of `bad`, what did not hold, also
    the beginning."""


@dataclass(frozen=True)
class Work:
    """What a part is given."""

    folder: Path
    """Scratch of this part, empty at the start."""
    host: Path | None
    """A genuine ComfyUI; a part that needs one raises NotRunError where it is None."""
    amount: str
    """One of AMOUNTS."""
    seed: int
    until: float = math.inf
    """Unix time from which on a part of many like attempts begins no more of them, and tells how many there were."""

    def is_over(self) -> bool:
        return time.time() >= self.until

    def count(self, *, quick: int, long: int) -> int:
        """How many of something, by the amount."""
        return quick if self.amount == QUICK else long


@dataclass(frozen=True)
class Part:
    """One experiment. Every module that `registry.NAMES` lists exposes one as PART."""

    name: str
    """The module's."""
    title: str
    """Heading in the report, a few words."""
    run: Callable[[Work], Sequence[Finding]]
