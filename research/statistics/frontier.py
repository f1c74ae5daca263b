"""Cost at equal quality: where a family of settings reaches a wanted distance, read off its own best points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from budgetfusion_nodes.core.curves import FloatArray

TINY = 1e-9


@dataclass(frozen=True)
class Reached:
    """The cost at which a family reaches a wanted distance."""

    cost: float | None
    """None: it never comes that near."""
    bound: str
    """"at": read between two of its settings; "at most": its crudest setting is better already; "never"."""


def cost_at_distance(cost: FloatArray, distance: FloatArray, wanted: float) -> Reached:
    """cost, distance: [V], one for each setting of a family. Between two settings of the lower envelope, distance is a
    straight line in log cost and log distance, because distances fall about as a power of the steps."""
    order, wanted = np.argsort(cost, kind="stable"), max(wanted, TINY)
    costs, distances = cost[order], np.maximum(distance[order], TINY)
    best = np.minimum.accumulate(distances)
    kept = np.concatenate([[True], best[1:] < best[:-1]])
    costs, best = costs[kept], best[kept]
    if best[0] <= wanted:
        return Reached(float(costs[0]), "at" if best[0] == wanted else "at most")
    if best[-1] > wanted:
        return Reached(None, "never")
    after = int((best <= wanted).argmax())
    low, high = np.log(best[after - 1]), np.log(best[after])
    share = (low - np.log(wanted)) / (low - high)
    return Reached(float(np.exp((1 - share) * np.log(costs[after - 1]) + share * np.log(costs[after]))), "at")
