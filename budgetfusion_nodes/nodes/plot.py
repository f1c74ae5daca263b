"""The Probe's plot. Matplotlib is imported on use: it would cost the host a quarter of a second at start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..core.plan import Plan, metric_words
from ..planning.probe import Probe, prediction_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (9.6, 4.8)
DPI = 100


def draw(result: Probe, plan: Plan | None) -> Tensor:
    """IMAGE [1, 480, 960, 3]: distances on the left; on the right measured quality over the predicted curve."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no pyplot: it keeps state and may want a window
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(1, 1 if result.quality is None else 2, squeeze=False)[0]
    _distances(panels[0], result)
    if result.quality is not None:
        _quality(panels[1], result, plan)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(np.float32) / 255.0
    return torch.from_numpy(pixels.copy())[None]


def _distances(axes: Axes, result: Probe) -> None:
    for metric, values in result.distances.items():
        peak = max(values) or 1.0  # each in shares of its largest value: dB and cosines have no common axis
        axes.plot(result.steps, [v / peak for v in values], marker="o", label=f"{metric_words(metric)}, max {peak:.3g}")
    axes.set_ylabel("distance from the reference / its largest")
    axes.set_ylim(bottom=0.0)
    _finish(axes, result)


def _quality(axes: Axes, result: Probe, plan: Plan | None) -> None:
    title = "quality"
    if plan is not None and plan.decision is not None:
        axes.fill_between(plan.grid, plan.quality_low, plan.quality_high, alpha=0.2, label="predicted range")
        axes.plot(plan.decision.counts, plan.decision.quality, label="predicted")
        axes.axhline(plan.quality, linestyle="--", linewidth=1.0, color="gray", label=f"wanted {plan.quality:.2f}")
        axes.axvline(plan.steps, linestyle=":", linewidth=1.0, color="black", label=f"planned {plan.steps} steps")
        error = prediction_error(result, plan)
        title = title if error is None else f"quality, mean error of the prediction {error:.3f}"
    axes.plot(result.steps, result.quality or (), "o", color="black", label="measured")
    axes.set_title(title, fontsize=10)
    axes.set_ylim(0.0, 1.02)
    _finish(axes, result)


def _finish(axes: Any, result: Probe) -> None:
    axes.set_xlabel("steps" if result.counted else "image")
    if result.counted:
        axes.set_xscale("log")
        axes.set_xticks(result.steps, [str(n) for n in result.steps])
        axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
