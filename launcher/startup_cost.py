"""What the pack adds to ComfyUI's start: boots with and without it, alternately, in one run."""

from __future__ import annotations

import re
import statistics

from .comfyui import Host
from .console import say
from .layout import Layout
from .server import PACK_FOLDER, running_host

LIMIT_SECONDS = 0.100
"""The project's promise."""


def _boot(layout: Layout, host: Host, *, pack: bool, cpu: bool) -> tuple[float, float | None]:
    """Seconds until the server answers, and the import time that the host itself reports for the pack."""
    with running_host(layout, host, pack=pack, cpu=cpu) as server:
        log = server.log.read_text(encoding="utf-8", errors="replace")
    reported = re.search(rf"([\d.]+) seconds(.*?): .*{PACK_FOLDER}\s*$", log, re.MULTILINE)
    if reported and "FAILED" in reported.group(2):
        say(f"  The pack failed to load; see {server.log}.")
    return server.seconds, float(reported.group(1)) if reported else None


def run(layout: Layout, host: Host, boots: int, *, cpu: bool) -> int:
    """Prints both medians and their difference; status 1 where the pack costs more than the promise."""
    say(f"{host}: {boots} boots with and {boots} without the pack, alternately, after one unmeasured boot each.")
    for pack in (False, True):
        _boot(layout, host, pack=pack, cpu=cpu)
    without, with_pack, reported = [], [], []
    for number in range(boots):
        # The order changes with each pair, so that a machine that warms up or slows down favours neither.
        for pack in (False, True) if number % 2 == 0 else (True, False):
            seconds, own = _boot(layout, host, pack=pack, cpu=cpu)
            (with_pack if pack else without).append(seconds)
            if own is not None:
                reported.append(own)
        say(f"  pair {number + 1}: without {without[-1]:.3f} s, with {with_pack[-1]:.3f} s")
    median_without, median_with = statistics.median(without), statistics.median(with_pack)
    paired = statistics.median(a - b for a, b in zip(with_pack, without, strict=True))
    say(f"Median without the pack {median_without:.3f} s, with it {median_with:.3f} s.")
    say(f"Spread of the boots without it (half the interquartile range): {_spread(without) * 1000:.0f} ms.")
    if reported:
        say(f"The host's own figure for importing the pack: {statistics.median(reported) * 1000:.0f} ms.")
    promise = f"promised: at most {LIMIT_SECONDS * 1000:.0f} ms"
    say(f"The pack adds {paired * 1000:.0f} ms (median of the paired differences; {promise}).")
    return 0 if paired <= LIMIT_SECONDS else 1


def _spread(values: list[float]) -> float:
    if len(values) < 2:
        return 0.0
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return (upper - lower) / 2
