"""The worst plans, as pictures with their curves: too few steps (quality missed most), and too many (most wasted)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from budgetfusion_nodes.core.curves import limiting_metric
from research.statistics.allocation import at_index, planned_index
from research.statistics.oracles import needed_steps
from research.sweeps.prompts import PromptList
from research.sweeps.strips import read_strip, strip_path

from .evidence import Evidence

UNDER, OVER = "too few steps", "too many steps"


@dataclass(frozen=True)
class Failure:
    """One render of a test prompt."""

    kind: str
    prompt: str
    row: int
    """Of the data set."""
    seed: int
    """The noise seed."""
    column: int
    """Of the data set's seeds."""
    planned: int
    needed: int
    quality: float
    """Reached at the planned count."""
    wanted: float
    set_by: str
    """The metric that is worst at the planned count (nearest rendered one)."""
    other_seeds: tuple[int, ...]
    """What the prompt's other seeds needed."""
    distance: float
    """From the prompts that the planner was made with; above 1 the node warns."""
    groups: int
    """Groups of objects in the caption's scene, by the commas and joining words of its key."""


def worst_failures(evidence: Evidence, prompts: PromptList, q: float, alpha: float, count: int = 10) -> list[Failure]:
    """The `count` worst of each kind, at most one for each prompt and kind."""
    held, rows = evidence.held, evidence.rows["test"]
    index = planned_index(evidence.upper[rows], evidence.threshold(alpha, q))
    reached = 1.0 - at_index(held.test, index)  # [N, S]
    needed = needed_steps(held, q)
    planned = held.counts[index][:, None]
    missed = np.where(needed > planned, q - reached, -np.inf)
    wasted = np.where(np.isnan(needed), -np.inf, np.log(planned / np.nan_to_num(needed, nan=1.0)))
    keys = {prompt.text: prompt.key for prompt in prompts.prompts}
    return [
        _failure(evidence, keys, kind, q, int(rows[n]), n, int(np.argmax(score[n])), index, reached, needed)
        for kind, score in ((UNDER, missed), (OVER, wasted))
        for n in _worst_rows(score, count)
    ]


def _worst_rows(score: NDArray[np.float64], count: int) -> list[int]:
    best = np.nan_to_num(score, nan=-np.inf).max(axis=1)
    return [int(n) for n in np.argsort(-best, kind="stable")[:count] if best[n] > 0]


def _failure(
    evidence: Evidence,
    keys: dict[str, str],
    kind: str,
    q: float,
    row: int,
    n: int,
    s: int,
    index: NDArray[np.int64],
    reached: NDArray[np.float64],
    needed: NDArray[np.float64],
) -> Failure:
    dataset = evidence.dataset
    planned = int(evidence.counts[index[n]])
    k = _nearest(dataset.grid, planned)
    others = [int(x) for i, x in enumerate(needed[n]) if i != s and not np.isnan(x)]
    text = dataset.prompts[row]
    return Failure(
        kind=kind,
        prompt=text,
        row=row,
        seed=int(dataset.seeds[row, s]),
        column=s,
        planned=planned,
        needed=int(needed[n, s]),
        quality=float(reached[n, s]),
        wanted=q,
        set_by=dataset.metrics[int(limiting_metric(dataset.shortfall[row, s, k], evidence.scale))],
        other_seeds=tuple(others),
        distance=float(evidence.planner.out_of_distribution.score(evidence.features[row])),
        groups=keys.get(text, "").count("|"),
    )


def _nearest(grid: tuple[int, ...], count: int) -> int:
    return int(np.abs(np.log(np.array(grid) / count)).argmin())


def reasons(failures: list[Failure], kind: str) -> dict[str, Any]:
    """What the failures of one kind have in common. `of_the_seed` counts those whose prompt has another seed that the
    plan served (or did not exceed): no rule that sees the prompt alone could have got both right. JSON-safe."""
    chosen = [failure for failure in failures if failure.kind == kind]
    metrics = {metric: sum(f.set_by == metric for f in chosen) for metric in sorted({f.set_by for f in chosen})}
    return {
        "count": len(chosen),
        "of_the_seed": sum(any(_served(f, needed) for needed in f.other_seeds) for f in chosen),
        "with_several_seeds": sum(bool(f.other_seeds) for f in chosen),
        "unlike_calibration": sum(f.distance > 1.0 for f in chosen),
        "by_metric": metrics,
        "mean_groups": float(np.mean([f.groups for f in chosen])) if chosen else None,
    }


def _served(failure: Failure, needed: int) -> bool:
    return needed <= failure.planned if failure.kind == UNDER else needed >= failure.planned


def to_dict(failure: Failure) -> dict[str, Any]:
    return {**asdict(failure), "other_seeds": list(failure.other_seeds)}


def draw(evidence: Evidence, failures: list[Failure], sweep: Path, prompts: PromptList, path: Path) -> bool:
    """One row each: the picture at the rendered count nearest to the plan, the full-step picture, and the curves. False
    where there is nothing to draw. Pictures are missing where the sweep kept none."""
    from matplotlib.figure import Figure

    if not failures:
        return False
    places = {prompt.text: index for index, prompt in enumerate(prompts.prompts)}
    figure = Figure(figsize=(9.0, 1.75 * len(failures)), dpi=100)
    axes = figure.subplots(len(failures), 3, squeeze=False, width_ratios=(1.0, 1.0, 3.2))
    grid = evidence.dataset.grid
    for line, failure in zip(axes, failures, strict=True):
        k = _nearest(grid, failure.planned)
        strip = strip_path(sweep, places[failure.prompt], failure.seed)
        images = read_strip(strip, len(grid)) if strip.is_file() else None
        for axis, place, title in ((line[0], k, f"{grid[k]} steps"), (line[1], -1, f"{grid[-1]} steps")):
            axis.axis("off")
            axis.set_title(title, fontsize=8)
            if images is not None:
                axis.imshow(images[place].movedim(0, -1).numpy(), interpolation="nearest")
        _draw_curves(line[2], evidence, failure)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return True


def _draw_curves(axis: Any, evidence: Evidence, failure: Failure) -> None:
    row = failure.row
    n = int(np.flatnonzero(evidence.rows["test"] == row)[0])
    counts = evidence.counts
    axis.plot(counts, np.clip(1 - evidence.held.test[n].T, 0, 1), color="0.75", lw=0.8)
    axis.plot(counts, np.clip(1 - evidence.held.test[n, failure.column], 0, 1), color="C0", label="measured")
    axis.plot(counts, np.clip(1 - evidence.upper[row], 0, 1), color="C1", ls="--", label="predicted, cautious")
    axis.axhline(failure.wanted, color="0.5", lw=0.6)
    axis.axvline(failure.planned, color="C3", lw=1.2, label=f"planned {failure.planned}")
    axis.axvline(failure.needed, color="C2", lw=1.2, ls=":", label=f"needed {failure.needed}")
    axis.set_xscale("log")
    axis.set_xticks([2, 5, 10, 20, 50], ["2", "5", "10", "20", "50"])
    axis.minorticks_off()
    axis.set_ylim(0, 1.02)
    axis.tick_params(labelsize=7)
    axis.legend(fontsize=6, loc="lower right")
    axis.set_title(failure.prompt[:78].replace("$", r"\$"), fontsize=7)  # no formulas
