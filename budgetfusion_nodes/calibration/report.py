"""What a calibration has to say when it is over: a text, the same as codes, and a picture of the curves."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.messages import Message, message
from ..core.no_reference import Fall
from ..predictor.count_planner import CountPlanner
from .count_job import fall
from .job import Outcome
from .standing import QUALITY, RISK, Standing, quality_curves

SIZE = (9.6, 4.8)
DPI = 100
ROWS, GAP = 2, 6
"""Of the sheet of pairs; the gap in pixels."""


def report_messages(outcome: Outcome) -> tuple[Message, ...]:
    """The report, one sentence after the other."""
    planner, progress = outcome.standing.planner, outcome.progress
    counts = planner.provenance["calibration"]["prompts"]
    found = [
        message("calibrate_done", file=outcome.file, setting=planner.setting.describe()),
        *outcome.standing.messages(),
        message("calibrate_prompts_used", calibration=counts["calibration"], guides=counts["train"]),
        message("calibrate_grid", counts=" ".join(map(str, planner.grid))),
        *(
            message("calibrate_measured_with", metric=metric, backend=planner.backends[metric])
            for metric in planner.metrics
        ),
    ]
    if outcome.stopped_early:
        found.append(message("calibrate_stopped_early", prompts=progress.prompts, wanted=progress.wanted))
    moved = outcome.fall
    if moved is not None:
        drop = f"{moved.drop:.3f}"
        found.append(message("calibrate_moved", best=moved.best, last=moved.last, drop=drop, prompts=moved.pictures))
    elif (fallen := fall(outcome.dataset)) is not None:
        found.append(fallen)
    if progress.renders:
        share, seconds = progress.measuring / max(progress.seconds, 1e-9), round(progress.seconds)
        found.append(message("calibrate_took", renders=progress.renders, seconds=seconds, share=f"{share:.0%}"))
    for reason, count in Counter(outcome.reasons).most_common(3):
        found.append(message("calibrate_left_out", count=count, reason=reason))
    return tuple(found)


def report_dict(outcome: Outcome) -> dict[str, Any]:
    """JSON-safe, for the page: codes, and what the panel draws."""
    return {
        "messages": [one.to_dict() for one in report_messages(outcome)],
        "file": outcome.file,
        "prompts": outcome.progress.prompts,
        "wanted": outcome.progress.wanted,
        "curve": curve_dict(outcome.standing),
        "figures": outcome.standing.figures(),
    }


def draw_levels(planner: CountPlanner) -> Tensor:
    """IMAGE [1, 480, 960, 3]: the level at each count with its interval, and the one count."""
    canvas, axes = _chart(planner.grid, planner.setting.describe())
    counts, levels = planner.grid, planner.levels
    axes.fill_between(counts, [one.low for one in levels], [one.high for one in levels], alpha=0.2)
    axes.plot(counts, [one.mean for one in levels], marker="o", label=f"{planner.metrics[0]}, mean and 90 % interval")
    label = f"one count for all prompts: {planner.count} steps"
    axes.axvline(planner.count, linestyle=":", linewidth=1.0, color="black", label=label)
    axes.set_ylabel(planner.metrics[0])
    return _pixels(canvas, axes)


def draw_pairs(pairs: Sequence[tuple[bytes, bytes]]) -> Tensor:
    """IMAGE [1, 480, 960, 3]: of each pair the stock target's picture (PNG) beside the nested one's."""
    from PIL import Image

    width, height = (round(side * DPI) for side in SIZE)
    columns = -(-len(pairs) // ROWS)
    cell = width // columns
    sheet = Image.new("RGB", (width, height), "white")
    for place, pair in enumerate(pairs):
        left, top = place % columns * cell, place // columns * (height // ROWS)
        for side, content in enumerate(pair):
            picture = Image.open(io.BytesIO(content))
            scale = min((cell // 2 - GAP) / picture.width, (height // ROWS - GAP) / picture.height)
            shown = picture.resize((round(picture.width * scale), round(picture.height * scale)))
            sheet.paste(shown, (left + side * (cell // 2 - GAP // 2), top))
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255.0)[None]


def curve_dict(standing: Standing) -> dict[str, Any]:
    """JSON-safe: predicted quality of the mean prompt by step count, and the mean planned steps at QUALITY and RISK."""
    counts, curves = quality_curves(standing.planner)
    low, median, high = (np.round(curve, 4).tolist() for curve in curves)
    steps = standing.steps[QUALITY]
    return {"counts": list(counts), "quality_low": low, "quality_median": median, "quality_high": high, "steps": steps}


def draw(standing: Standing, fall: Fall | None = None) -> Tensor:
    """IMAGE [1, 480, 960, 3]: predicted quality over the step count, and what is planned at quality .90. fall: why the
    curve ends before the count that was asked for; then the level that decided is drawn up to there."""
    planner = standing.planner
    counts, (low, median, high) = quality_curves(planner)
    canvas, axes = _chart(planner.grid if fall is None else fall.counts, planner.setting.describe())
    axes.fill_between(counts, low, high, alpha=0.2, label="8 of 10 renders")
    axes.plot(counts, median, label="middle")
    axes.axhline(QUALITY, linestyle="--", linewidth=1.0, color="gray")
    steps = standing.steps[QUALITY]
    label = f"quality {QUALITY:.2f}, risk {RISK:.0%}: {steps:.0f} steps"
    axes.axvline(steps, linestyle=":", linewidth=1.0, color="black", label=label)
    axes.set_ylim(0.0, 1.02)
    axes.set_ylabel("quality")
    if fall is not None:
        _draw_fall(axes, fall)
    return _pixels(canvas, axes)


def _draw_fall(axes: Any, fall: Fall) -> None:
    """The level by which more steps are worse, on an axis of its own."""
    mean, low, high = np.array(fall.levels).T
    axes.plot([], [], "s--", color="tab:red", label="fit to the prompt (CLIP score, right), mean and 90 % interval")
    axes.axvline(fall.best, color="tab:red", linewidth=1.0, label=f"best at {fall.best} steps: plans end here")
    right = axes.twinx()
    right.errorbar(fall.counts, mean, np.stack([mean - low, high - mean]), fmt="s--", color="tab:red", capsize=2)
    right.set_ylabel("CLIP score over other prompts'")


def _chart(grid: Sequence[int], title: str) -> tuple[Any, Any]:
    """(canvas, axes) with the step count along the bottom."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: it keeps state and may want a window
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_xticks(grid, [str(n) for n in grid])
    axes.minorticks_off()
    axes.set_xlabel("steps")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    return canvas, axes


def _pixels(canvas: Any, axes: Any) -> Tensor:
    axes.legend(fontsize=8)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(np.float32) / 255.0
    return torch.from_numpy(pixels.copy())[None]
