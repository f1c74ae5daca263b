"""Plans with memory and without it, against what renders really needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 200


@dataclass
class Tally:
    """Renders of one kind, planned both ways. A violation is one by the rule that the guarantee bounds: the plan stops
    before the least count from which on the quality holds."""

    steps: list[int] = field(default_factory=list)
    without: list[int] = field(default_factory=list)
    needed: list[int] = field(default_factory=list)
    prompt_needs: list[float] = field(default_factory=list)
    """What nine in ten of the prompt's own renders need, where that is known."""
    groups: list[int] = field(default_factory=list)
    """What is resampled together: a world, or a prompt."""

    def add(self, steps: int, without: int, needed: int, group: int, prompt_need: float = np.nan) -> None:
        for values, value in zip(
            (self.steps, self.without, self.needed, self.groups, self.prompt_needs),
            (steps, without, needed, group, prompt_need),
            strict=True,
        ):
            values.append(value)  # type: ignore[arg-type]

    def figures(self, seed: int = 0) -> dict[str, tuple[float, float, float]]:
        """Name -> (value, ends of its 95 % interval by resampling groups)."""
        groups = np.unique(self.groups)
        place = {group: np.flatnonzero(np.asarray(self.groups) == group) for group in groups}
        rng = np.random.default_rng(seed)
        draws = [np.concatenate([place[g] for g in rng.choice(groups, len(groups))]) for _ in range(RESAMPLES)]
        everything = np.arange(len(self.steps))
        found = {}
        for name, figure in self._figures().items():
            values = [figure(rows) for rows in draws]
            found[name] = (figure(everything), float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975)))
        return found

    def _figures(self) -> dict[str, Callable[[NDArray[np.intp]], float]]:
        steps, without, needed = (np.asarray(v, float) for v in (self.steps, self.without, self.needed))
        own = np.abs(steps - np.asarray(self.prompt_needs, float))

        def off_prompt(rows: NDArray[np.intp]) -> float:
            known = own[rows][np.isfinite(own[rows])]
            return float(np.median(known)) if len(known) else np.nan

        return {
            "steps": lambda rows: float(steps[rows].mean()),
            "saved": lambda rows: float(1.0 - steps[rows].mean() / without[rows].mean()),
            "violations": lambda rows: float((steps[rows] < needed[rows]).mean()),
            "violations without": lambda rows: float((without[rows] < needed[rows]).mean()),
            "off its own t*": lambda rows: float(np.median(np.abs(steps[rows] - needed[rows]))),
            "off its prompt's t*": off_prompt,
        }


def row(name: str, tally: Tally) -> str:
    """One line of a Markdown table."""
    found = tally.figures()

    def cell(key: str, form: str) -> str:
        value, low, high = found[key]
        return f"{value:{form}} ({low:{form}} to {high:{form}})"

    wide = [("steps", ".2f"), ("saved", ".1%"), ("violations", ".1%"), ("violations without", ".1%")]
    off, prompt = found["off its own t*"][0], found["off its prompt's t*"][0]
    cells = [name, *(cell(*one) for one in wide), f"{off:.1f}", "" if np.isnan(prompt) else f"{prompt:.1f}"]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| prompts | steps | saved | violations | violations without memory | median off own t* | off the prompt's t* |\n"
    "|---|---|---|---|---|---|---|"
)
