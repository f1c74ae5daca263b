"""What a planner predicts for one prompt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.curves import FloatArray, limiting_metric, quality


@dataclass(frozen=True)
class Prediction:
    """Predicted curves of one prompt."""

    grid: tuple[int, ...]
    metrics: tuple[str, ...]
    scale: tuple[float, ...]
    normalised: FloatArray
    """[K, M, 3] low, median and high quantile of shortfall / scale."""
    distance: float
    """Above 1 the prompt is unlike those that the planner was made with."""

    def quality(self, level: int) -> tuple[float, ...]:
        """Q at each grid count from quantile `level` of the shortfall: 0 gives the high, 2 the low quality curve."""
        return tuple(quality(self.normalised[..., level], np.ones(len(self.metrics))).tolist())

    def shortfall_median(self) -> dict[str, tuple[float, ...]]:
        """Metric -> median predicted distance to the full-step image, in the metric's unit."""
        columns = zip(self.metrics, self.normalised[..., 1].T, self.scale, strict=True)
        return {metric: tuple((column * scale).tolist()) for metric, column, scale in columns}

    def high(self) -> dict[str, list[float]]:
        """Metric -> upper quantile of shortfall / scale at each grid count."""
        return {metric: self.normalised[:, m, 2].tolist() for m, metric in enumerate(self.metrics)}

    def limiting(self) -> tuple[str, ...]:
        """The metric that sets the upper curve at each grid count."""
        index = limiting_metric(self.normalised[..., 2], np.ones(len(self.metrics)))
        return tuple(self.metrics[i] for i in index.tolist())
