"""Whether the latest prompts still are what the planner's guarantee was made for: two tests of exchangeability.

A planner's thresholds hold for prompts like those of its calibration. An artist who changes style leaves them. That is
seen in the prompts: too many lie further off than 95 % of the calibration's, and two or three tell. Or, where the words
tell nothing, in measured renders that fall short too often, of which it takes some thirty. Each is a bet against the
calibration's rate; what it won since its best beginning is evidence and place in one (Page 1954, CUSUM; Vovk et al.
2005, ch. 7, conformal test martingales).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log

import numpy as np
from numpy.typing import NDArray

from ..core.risk import RiskTable

EVIDENCE = log(50.0)
"""Won by a bet, in nats, from which on a change is believed."""


@dataclass(frozen=True)
class Bet:
    """On how often something is seen of prompts in turn."""

    usual: float
    changed: float

    def beginning(self, seen: NDArray[np.bool_]) -> int | None:
        """Place in `seen` [N], the latest last, where the change began; None where none is believed."""
        if not len(seen):
            return None
        won = np.where(seen, log(self.changed / self.usual), log((1 - self.changed) / (1 - self.usual)))
        since = np.cumsum(won[::-1])[::-1]
        first = int(since.argmax())
        return first if since[first] > EVIDENCE else None


FAR = Bet(0.05, 0.6)
"""Prompts whose out-of-distribution score is above 1."""
SHORT = Bet(0.1, 0.3)
"""Plans at the nodes' own risk that stop too early."""


def beginning(far: NDArray[np.bool_], short: NDArray[np.bool_]) -> int | None:
    """The earlier of both tests' places; far, short: [N] of the latest prompts."""
    found = [place for place in (FAR.beginning(far), SHORT.beginning(short)) if place is not None]
    return min(found, default=None)


def since_change(measured: RiskTable | None, planner: RiskTable) -> RiskTable:
    """Thresholds after a change: from what was `measured` since, at the risks that so many prompts can guarantee; at
    the others the planner's strictest, which guarantee nothing but are its most careful."""
    strict = np.asarray(planner.theta[0])
    if measured is None:
        return replace(planner, theta=tuple(planner.theta[0] for _ in planner.alphas))
    rows = np.array(
        [
            known if measured.enough_prompts(alpha) else strict
            for alpha, known in zip(measured.alphas, measured.theta, strict=True)
        ]
    )
    rows = np.minimum.accumulate(rows[::-1], axis=0)[::-1]  # no risk may be stricter than a smaller one
    return replace(measured, theta=tuple(map(tuple, rows.tolist())), prompts=planner.prompts)
