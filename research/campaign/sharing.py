"""A shell beside the servers of `two_servers`, the watch over their store, and what both saw."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from budgetfusion_nodes.calibration.store import Store
from budgetfusion_nodes.calibration.store_file import BUSY_SECONDS

from .old_store import version
from .part import Finding
from .watching import Watch, every

log = logging.getLogger(__name__)

SHORT_LIVED, LASTING = 1.0, (2.0, 2.5, 3.0)
"""cfg of the settings that the shell deletes now and then, and of those that must stay."""
LOOK_SECONDS, WAIT_SECONDS = 2.0, 0.1
MOST_WAIT = 10.0
"""Seconds that a transaction may wait here; the store gives up after BUSY_SECONDS."""
FORGOTTEN = "deleted by another process"
"""Of the sentence that a calibration ends with whose setting was deleted under it."""


class Shell:
    """The commands that an artist types while servers run, one after the other."""

    def __init__(self, watch: Watch, call: Callable[..., int], scratch: Path, seed: int) -> None:
        """call: runs a command with these arguments, gives its status."""
        self._watch, self._call, self._scratch = watch, call, scratch
        self._rng = random.Random(seed)
        self.commands = self.forgotten = 0
        self.longest = 0.0
        self.faults: list[str] = []

    def step(self) -> None:
        """One command, chosen by chance."""
        kind = self._rng.choice((self._info, self._export, self._forget, self._list))
        started = time.monotonic()
        try:
            kind()
        except Exception as error:
            self.faults.append(f"{kind.__name__}: {error}")
            log.exception("two_servers: a command failed")
        self.longest = max(self.longest, time.monotonic() - started)
        self.commands += 1

    def _run(self, *arguments: str) -> None:
        if (status := self._call(*arguments)) != 0:
            self.faults.append(f"{' '.join(arguments[:2])} ended with status {status}")

    def _info(self) -> None:
        self._run("store", "info", "--json")

    def _list(self) -> None:
        self._run("planners", "list", "--json")

    def _export(self) -> None:
        copy = self._scratch / f"export {self.commands}.sqlite3"
        self._run("store", "export", str(copy))
        if version(copy)[1] != "ok":
            self.faults.append("an export was damaged")
        copy.unlink()

    def _forget(self) -> None:
        short = {d: number for d, (number, cfg) in self._watch.settings().items() if cfg == SHORT_LIVED}
        for digest, number in short.items():
            with self._watch.forgetting(digest):
                self._run("store", "forget", str(number))
            self.forgotten += 1


def watched(watch: Watch, shell: Shell, seconds: float, pause: float) -> None:
    """Looks, waits and types commands until the time is over."""
    until = time.monotonic() + seconds
    with Store.at(watch.path) as store:
        kinds = ((LOOK_SECONDS, watch.look), (WAIT_SECONDS, lambda: watch.wait(store)), (pause, shell.step))
        threads = [threading.Thread(target=every, args=(often, until, work)) for often, work in kinds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    watch.look()


def findings(
    watch: Watch, shell: Shell, who: str, faults: Sequence[str], **figures: float | int | str
) -> list[Finding]:
    """What was seen; `who` begins the sentence."""
    (_, check) = version(watch.path)
    faults = [*faults, *shell.faults, *([] if check == "ok" else [f"SQLite's check said: {check}"])]
    told = "no command or calibration failed" if not faults else f"{len(faults)} failed, first: {faults[0]}"
    seen = {"looks": watch.looks, "rows": watch.rows, "settings_deleted": shell.forgotten, **figures}
    waits = {"transactions_timed": watch.waits, "longest_wait_s": round(watch.longest_wait, 2)}
    return [
        Finding("shared", f"{who}: {watch.lost} rows lost that nobody deleted.", watch.lost == 0, seen),
        Finding("shared", f"{who}: {told}.", not faults, {"shell_commands": shell.commands}),
        Finding(
            "shared",
            f"The longest wait for a transaction was {watch.longest_wait:.2f} s; the store gives up after "
            f"{BUSY_SECONDS:.0f} s, and {MOST_WAIT:.0f} s are allowed here.",
            watch.longest_wait < MOST_WAIT,
            {**waits, "longest_command_s": round(shell.longest, 1)},
        ),
    ]
