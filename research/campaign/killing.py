"""Children that are killed outright at a random moment of their work."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .part import NotRunError


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    killed: bool
    seconds: float
    """After it had begun."""


def forked(work: Callable[[], object]) -> tuple[Any, int]:
    """A child that does `work`, and the reading end of a pipe that gives one byte when it begins. NotRunError where the
    system cannot fork."""
    if "fork" not in multiprocessing.get_all_start_methods():
        raise NotRunError("Killing a process at a moment of its work needs a system that forks.")
    reading, writing = os.pipe()
    child: Any = multiprocessing.get_context("fork").Process(target=_begin, args=(work, writing))
    child.start()
    os.close(writing)
    return child, reading


def _begin(work: Callable[[], object], writing: int) -> None:
    os.write(writing, b"!")
    work()


def kill_within(work: Callable[[], object], seconds: float, rng: random.Random) -> Ended:
    """Starts a child and kills it at a moment drawn uniformly from 0 to `seconds` after it began. RuntimeError where it
    ended by itself with an error: a fault of the work, and none of the kill."""
    child, reading = forked(work)
    try:
        os.read(reading, 1)
    finally:
        os.close(reading)
    started = time.monotonic()
    child.join(rng.uniform(0.0, seconds))
    killed = child.is_alive()
    if killed:
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    if not killed and child.exitcode:
        raise RuntimeError(f"the child ended by itself with status {child.exitcode}")
    return Ended(killed, time.monotonic() - started)


def seconds_of(work: Callable[[], object]) -> float:
    """How long a child takes that nobody kills."""
    child, reading = forked(work)
    os.read(reading, 1)
    os.close(reading)
    started = time.monotonic()
    child.join()
    if child.exitcode:
        raise RuntimeError(f"the child ended by itself with status {child.exitcode}")
    return time.monotonic() - started
