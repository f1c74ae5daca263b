"""What the pack adds to ComfyUI's start: boots with and without it, alternately, in one run."""

from __future__ import annotations

import os
import re
import statistics
from dataclasses import dataclass

from .comfyui import Host
from .console import say
from .layout import Layout
from .server import PACK_FOLDER, running_host

LIMIT_SECONDS = 0.100
"""What the pack may add to a start, at most."""


@dataclass(frozen=True)
class Boot:
    seconds: float
    """Until the server answers."""
    busy: float
    """Processor seconds of the whole process, which other programs disturb less; 0 where the system does not tell."""
    reported: float | None
    """The import time that the host itself reports for the pack, in its steps of 0.1 s."""


def _busy_seconds() -> float:
    """Processor seconds of the child processes that ended so far."""
    used = os.times()
    return used.children_user + used.children_system


def _boot(layout: Layout, host: Host, *, pack: bool, cpu: bool) -> Boot:
    before = _busy_seconds()
    with running_host(layout, host, pack=pack, cpu=cpu) as server:
        log = server.log.read_text(encoding="utf-8", errors="replace")
    reported = re.search(rf"([\d.]+) seconds(.*?): .*{PACK_FOLDER}\s*$", log, re.MULTILINE)
    if reported and "FAILED" in reported.group(2):
        say(f"  The pack failed to load; see {server.log}.")
    return Boot(server.seconds, _busy_seconds() - before, float(reported.group(1)) if reported else None)


def run(layout: Layout, host: Host, boots: int, *, cpu: bool) -> int:
    """Prints both medians and their difference; status 1 where the pack costs more than it may."""
    say(f"{host}: {boots} boots with and {boots} without the pack, alternately, after one unmeasured boot each.")
    for pack in (False, True):
        _boot(layout, host, pack=pack, cpu=cpu)
    boots_of: dict[bool, list[Boot]] = {False: [], True: []}
    for number in range(boots):
        # The order changes with each pair, so that a machine that warms up or slows down favours neither.
        for pack in (False, True) if number % 2 == 0 else (True, False):
            boots_of[pack].append(_boot(layout, host, pack=pack, cpu=cpu))
        say(
            f"  pair {number + 1}: without {boots_of[False][-1].seconds:.3f} s, with {boots_of[True][-1].seconds:.3f} s"
        )
    without, with_pack = boots_of[False], boots_of[True]
    pairs = list(zip(without, with_pack, strict=True))
    added = statistics.median(b.seconds - a.seconds for a, b in pairs)
    added_busy = statistics.median(b.busy - a.busy for a, b in pairs)
    say(
        f"Median without the pack {statistics.median(one.seconds for one in without):.3f} s, "
        f"with it {statistics.median(one.seconds for one in with_pack):.3f} s."
    )
    say(f"Half the interquartile range of the boots without it: {_spread([a.seconds for a in without]) * 1000:.0f} ms.")
    if reported := [one.reported for one in with_pack if one.reported is not None]:
        say(f"The host's own figure for importing the pack, in steps of 0.1 s: {statistics.median(reported):.1f} s.")
    say(f"Processor time that the pack adds: {added_busy * 1000:.0f} ms (median of the paired differences).")
    wanted = f"wanted: at most {LIMIT_SECONDS * 1000:.0f} ms"
    say(f"The pack adds {added * 1000:.0f} ms (median of the paired differences; {wanted}).")
    return 0 if added <= LIMIT_SECONDS else 1


def _spread(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return (upper - lower) / 2
