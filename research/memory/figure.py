"""The figure of `study memory`: what memory saves at each size, and whether the guarantee holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill

import numpy as np

KINDS = {"recurring": "tab:blue", "rephrased": "tab:orange", "new": "tab:green"}

Found = Mapping[str, Mapping[str, Mapping[str, tuple[float, float, float]]]]
"""Case ("100", "1000 + 30 in a new style") -> kind of prompt -> figure of Tally -> (value, low, high)."""


def draw(found: Found, risk: float, file: Path) -> None:
    """Savings above, violations with memory (filled) and without (hollow) below, with 95 % intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for place, (kind, colour) in enumerate(KINDS.items()):
        at = np.arange(len(found)) + 0.18 * (place - 1)
        marks = ((above, "saved", "o"), (below, "violations", "o"), (below, "violations without", "d"))
        for axes, name, mark in marks:
            middle, low, high = 100.0 * np.array([kinds[kind][name] for kinds in found.values()]).T
            spread = np.maximum([middle - low, high - middle], 0.0)
            filled = colour if mark == "o" else "white"
            label = kind if name == "saved" else None
            axes.errorbar(at, middle, spread, color=colour, fmt=mark, mfc=filled, capsize=2, lw=1, label=label)
    above.axhline(0.0, color="grey", lw=0.8)
    below.axhline(100.0 * risk, color="tab:red", lw=0.8)
    above.set_ylabel("% of steps saved")
    below.set_ylabel("% of plans too short\n(hollow: without memory)")
    below.set_xticks(range(len(found)), [fill(case, 14) for case in found], fontsize=8)
    above.legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)
