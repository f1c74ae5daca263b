"""Lines on the terminal: one line a step, rewritten in place where the terminal allows it."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from types import TracebackType

REDRAW_SECONDS = 0.5
HEARTBEAT_SECONDS = 20.0
"""How often a step says that it is alive where lines cannot be rewritten (a CI log)."""


def say(text: str) -> None:
    print(text, flush=True)


def use_tolerant_output() -> None:
    """A console that lacks a character shows a question mark, rather than ending the command."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


class Step:
    """`with Step("Installing packages") as step: step.note("torch")` shows the note and the seconds that passed."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._note = ""
        self._started = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._redraw, daemon=True)
        self._live = sys.stdout.isatty()

    def note(self, text: str) -> None:
        self._note = " ".join(text.split())

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def _redraw(self) -> None:
        while not self._stop.wait(REDRAW_SECONDS if self._live else HEARTBEAT_SECONDS):
            self._show(f"{self.title} ... {self.seconds:.0f} s  {self._note}")

    def _show(self, line: str, *, last: bool = False) -> None:
        if not self._live:
            say(line)
            return
        width = shutil.get_terminal_size().columns - 1
        sys.stdout.write("\r" + line[:width].ljust(width) + ("\n" if last else ""))
        sys.stdout.flush()

    def __enter__(self) -> Step:
        self._show(f"{self.title} ...")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        ending = "done" if kind is None else "stopped"
        self._show(f"{self.title}: {ending} after {self.seconds:.1f} s", last=True)
