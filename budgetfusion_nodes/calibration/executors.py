"""Who measures trajectories: this process, or (in a module of its own) many machines.

An executor takes works one by one as it has room for them, so the job may end the stream at any time, and gives events
back as they happen. It writes nothing: the job does, so there is one writer whatever the number of machines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from .records import Encoded, Subject
from .trajectory import Event, Renderer, Work, run_trajectory


class Executor(Protocol):
    """What a job needs of whoever renders."""

    @property
    def subject(self) -> Subject: ...

    @property
    def backends(self) -> Mapping[str, str]:
        """Metric -> name of what measures it, with the digest of its weights; the metrics in their order."""
        ...

    def encode(self, text: str) -> Encoded: ...

    def run(self, works: Iterable[Work]) -> Iterator[tuple[Work, Event]]:
        """Measures each work; events of one work keep their order, those of several may mix."""
        ...


class InlineExecutor:
    """One trajectory after the other, in this process."""

    def __init__(self, renderer: Renderer, subject: Subject, backends: Mapping[str, str]) -> None:
        self._renderer = renderer
        self.subject = subject
        self.backends = backends

    def encode(self, text: str) -> Encoded:
        return self._renderer.encode(text)

    def run(self, works: Iterable[Work]) -> Iterator[tuple[Work, Event]]:
        for work in works:
            for event in run_trajectory(self._renderer, work):
                yield work, event
