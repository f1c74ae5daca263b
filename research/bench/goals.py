"""What the project set out to reach at quality .9 and risk .1, and whether it did."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from .wording import number, share

SAVED_BY_THE_PAPER = 0.639
"""arXiv 2412.05780: 8.00 s -> 2.89 s an image."""


FIXED = "stock KSampler"
FIXED_PEERS = frozenset(f"{FIXED} {steps}" for steps in (20, 30, 50))
"""Counts that artists commonly set; the other counts of a run are there to draw its curve."""


ENOUGH_PROMPTS, ENOUGH_PEER_PROMPTS = 100, 20
"""Fewer leave a verdict to chance; the figure is shown without one."""


Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Goal:
    """One row of the table."""

    name: str
    wanted: str
    found: str
    reached: bool | None
    """None: not measured in this run, or on too few prompts."""
    note: str = ""

    @property
    def verdict(self) -> str:
        return {True: "reached", False: "missed", None: "not measured"}[self.reached]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


def goals(gains: Mapping[str, Any] | None, peers: Mapping[str, Any] | None, alpha: float) -> list[Goal]:
    """gains: of comparison.gains; peers: of peers.summarise. Either may be missing."""
    return [*(_of_gains(gains, alpha) if gains else _unmeasured()), *_of_peers(peers)]


def _unmeasured() -> list[Goal]:
    return [Goal("everything on held-out prompts", "", "not measured", None)]


def _of_gains(gains: Mapping[str, Any], alpha: float) -> list[Goal]:
    saved, missed = gains["saved"], gains["violation_controlled"]
    gain, fixed, gap, tail = (gains[key] for key in ("gain_per_step", "fixed", "gap_to_oracle_b", "worst_tenth"))
    closed = gap["misses_at_our_cost"]
    found = [
        Goal(
            "mean evaluations below the target's",
            f"at least {SAVED_BY_THE_PAPER:.1%}",
            share(saved),
            _at_least(saved["value"], SAVED_BY_THE_PAPER),
            f"{gains['mean_steps']['value']:.1f} of {gains['target']} steps",
        ),
        Goal(
            "renders that miss the quality",
            f"at most {alpha:.0%}, up to sampling error",
            share(missed),
            _at_most(missed["low"], alpha),
        ),
        Goal(
            "quality gain per step over UNIFORM at equal cost",
            "at least 10 % more",
            share(gain["of_means"]),
            _at_least(gain["of_means"]["value"], 0.10),
            f"full quality for every prompt at this cost would be {number(gain['ceiling_of_means'], '+.1%')}; as the "
            f"mean over prompts of gain / steps it is {number(gain['mean_of_ratios']['value'], '+.1%')}, and "
            f"{number(gain['mean_of_ratios_permuted']['value'], '+.1%')} for the same steps dealt to random prompts",
        ),
        Goal(
            "fewer mean steps than the best fixed count with as many misses",
            "at least 25 % fewer",
            share(fixed["fewer_steps_interval"]),
            _at_least(fixed["fewer_steps"], 0.25),
            f"the best fixed count is {fixed['count_at_our_violation']}",
        ),
        Goal(
            "share of the gap UNIFORM to oracle B that is closed",
            "at least 60 %",
            _maybe(closed),
            None if closed is None else _at_least(closed["value"], 0.60),
            "in misses at equal cost; in steps at equal misses "
            + ("no gap" if (part := gap["steps_at_our_violation"]) is None else f"{part:.0%}")
            + ", in the worst tenth's shortfall "
            + _maybe(gap["worst_tenth_at_our_cost"]),
        ),
        Goal(
            "shortfall of the worst tenth over UNIFORM's at equal cost",
            "at most half",
            number(tail["ratio"], ".2f"),
            _at_most(tail["ratio"]["value"], 0.5),
            f"oracle B reaches {number(tail['ratio_oracle_b'], '.2f')}",
        ),
    ]
    return _judged(found, gains["prompts"], ENOUGH_PROMPTS)


def _judged(found: list[Goal], prompts: int, enough: int) -> list[Goal]:
    """Without a verdict where there are too few prompts for one."""
    if prompts >= enough:
        return found
    few = f"{prompts} prompts are too few for a verdict"
    return [replace(goal, reached=None, note="; ".join(filter(None, (goal.note, few)))) for goal in found]


def _at_least(value: float | None, wanted: float) -> bool | None:
    return None if value is None else value >= wanted


def _at_most(value: float | None, wanted: float) -> bool | None:
    return None if value is None else value <= wanted


def _of_peers(peers: Mapping[str, Any] | None) -> list[Goal]:
    names = ("time at equal judged quality, each peer", "ours with EasyCache against either alone")
    wanted = ("at most 0.80 of theirs, in seconds and in evaluations", "below 1, in seconds and in evaluations")
    if peers is None:
        return [Goal(name, want, "not measured", None) for name, want in zip(names, wanted, strict=True)]
    theirs = [row for row in peers["at_their_quality"] if row["ours"] == "ours"]
    together = [row for row in peers["at_our_quality"] if row["ours"] != "ours"]
    ratios = {
        peer: ratio
        for peer, ratio in _worse_cost(slowest_ratios, peers["at_their_quality"]).items()
        if not peer.startswith(FIXED) or peer in FIXED_PEERS
    }
    within = {peer: ratio for peer, ratio in ratios.items() if ratio is not None and ratio <= 0.8}
    hardest = max(ratios, key=lambda peer: _or_never(ratios[peer]), default="")
    combined = _worse_cost(combined_ratios, peers["at_our_quality"])
    found = [
        Goal(
            names[0],
            wanted[0],
            f"{len(within)} of {len(ratios)} settings of peers",
            len(within) == len(ratios) if ratios else None,
            f"hardest: {hardest}, {_ratio(ratios[hardest], theirs, hardest)}" if ratios else "",
        ),
        Goal(
            names[1],
            wanted[1],
            ", ".join(_against(peer, ratio, together) for peer, ratio in combined.items()) or "not measured",
            _below_one(combined.values()),
        ),
    ]
    return _judged(found, peers["prompts"], ENOUGH_PEER_PROMPTS)


def _below_one(ratios: Collection[float | None]) -> bool | None:
    """None where one of them is not known and no other one decides."""
    if any(ratio is not None and ratio >= 1.0 for ratio in ratios):
        return False
    return True if ratios and None not in ratios else None


def _worse_cost(ratios: Callable[..., dict[str, float | None]], rows: Any) -> dict[str, float | None]:
    """The larger of the ratios in seconds and in evaluations: seconds alone hold what else the machine did."""
    by_time, by_count = ratios(rows, cost="seconds"), ratios(rows, cost="nfe")
    return {peer: _larger(ratio, by_count[peer]) for peer, ratio in by_time.items()}


def _or_never(ratio: float | None) -> float:
    return float("inf") if ratio is None else ratio


def _larger(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else max(a, b)


def _against(peer: str, ratio: float | None, rows: Rows) -> str:
    if ratio is None:
        return f"{peer} alone is nearer already at its crudest setting"
    return f"{peer} alone never comes that near" if ratio == 0.0 else f"{_ratio(ratio, rows, peer)} of {peer} alone"


def slowest_ratios(rows: Any, ours: str = "ours", cost: str = "seconds") -> dict[str, float | None]:
    """Peer -> the median over judges of our time over its own at its quality; None where ours never comes near."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["ours"] == ours and row["cost"] == cost:
            found.setdefault(row["peer"], []).append(np.inf if row["ratio"] is None else row["ratio"])
    medians = {peer: float(np.median(values)) for peer, values in found.items()}
    return {peer: value if np.isfinite(value) else None for peer, value in medians.items()}


def combined_ratios(rows: Any, cost: str = "seconds") -> dict[str, float | None]:
    """Family alone -> the median over judges of the time of ours with EasyCache over the family's at that quality. A
    family that never comes that near counts as 0. None where its crudest setting is nearer already: our ratio is then
    larger than the one that was read, by an unknown factor."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["ours"] != "ours" and row["cost"] == cost:
            unknown = row["bound"] == "at most"
            found.setdefault(row["peer"], []).append(np.inf if unknown else row["ratio"] or 0.0)
    medians = {peer: float(np.median(values)) for peer, values in found.items()}
    return {peer: value if np.isfinite(value) else None for peer, value in medians.items()}


def _maybe(part: Mapping[str, float | None] | None) -> str:
    return "no gap" if part is None else number(part, ".0%")


def _ratio(ratio: float | None, rows: Rows, peer: str) -> str:
    """With the interval of the judge that it is the ratio of; a median of an even number of judges has none."""
    if ratio is None:
        return "not reached"
    spans = [row for row in rows if row["peer"] == peer and row["ratio"] == ratio and row["low"] is not None]
    if not spans:
        return f"{ratio:.2f}"
    high = spans[0]["high"]
    return f"{ratio:.2f} ({spans[0]['low']:.2f} to {'not reached' if high is None else f'{high:.2f}'})"
