"""What a planner is good for at the moment, as values and as sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..core.curves import FloatArray, all_counts, interpolate_log_n
from ..core.messages import Message, message
from ..core.schedule import least_steps
from ..predictor.dataset import SweepDataset
from ..predictor.fit import FitOptions, fit_planner, level_curves, project_prompts
from ..predictor.mean_curve import LEAST, Comparison, compare_in_folds, fit_mean_curve
from ..predictor.planner import Planner

QUALITY, RISK = 0.90, 0.10
"""The defaults of the nodes: what the report speaks of."""
LEAST_GUIDES = 25
"""Guide prompts from which on the prompt is asked for help; with fewer there are hardly 50 prompts in all."""
MEAN_CURVE, NETWORK = "mean_curve", "bilstm"


@dataclass(frozen=True)
class Standing:
    """A planner and what it is good for."""

    planner: Planner
    kind: str
    """MEAN_CURVE or NETWORK."""
    steps: Mapping[float, float]
    """Quality -> mean planned steps over the calibration prompts at RISK; with MEAN_CURVE the one count for all."""
    comparison: Comparison | None
    """Of both kinds in cross-validation; None with too few prompts."""

    def messages(self) -> tuple[Message, ...]:
        planner = self.planner
        prompts, target = planner.risk_table.prompts, planner.target_steps
        steps = self.steps[QUALITY]
        values: dict[str, Any] = {"risk": f"{RISK:.0%}", "quality": f"{QUALITY:.2f}", "prompts": prompts}
        if self.kind == MEAN_CURVE:
            found = [message("calibrate_one_count", steps=round(steps), target=target, **values)]
        else:
            found = [message("calibrate_by_prompt", steps=f"{steps:.1f}", target=target, **values)]
        if self.comparison is None:
            return (*found, message("calibrate_few_prompts", least=LEAST_GUIDES))
        low, high = (f"{100 * end:.0f}" for end in self.comparison.saved[1:])
        saved = f"{100 * self.comparison.saved[0]:.0f}"
        verdict = message(
            "calibrate_prompt_helps" if self.kind == NETWORK else "calibrate_prompt_no_help",
            saved=saved,
            low=low,
            high=high,
            prompts=self.comparison.prompts,
        )
        return (*found, verdict)

    def figures(self) -> dict[str, Any]:
        """JSON-safe, for the planner file and the store."""
        comparison = None if self.comparison is None else self.comparison.to_dict()
        steps = {f"{q:.2f}": value for q, value in self.steps.items()}
        return {"predictor": self.kind, "risk": RISK, "mean_steps": steps, "cross_validation": comparison}


def make_standing(
    dataset: SweepDataset,
    name: str,
    known: Comparison | None,
    compare: bool,
    options: FitOptions | None = None,
    before_fold: Callable[[], None] = lambda: None,
) -> Standing | None:
    """The best planner that the data allow; None below LEAST calibration prompts.

    known: a comparison that was made before with nearly as many prompts; compare: whether to make one now.
    """
    if len(dataset.rows("calibration")) < LEAST:
        return None
    options = options or FitOptions()
    comparison = known
    if compare and len(dataset.rows("train")) >= LEAST_GUIDES:
        comparison = compare_in_folds(dataset, 0, replace(options, networks=1), before_fold=before_fold)
    better = comparison is not None and comparison.network_is_better
    planner = fit_planner(dataset, 0, name=name, options=options) if better else fit_mean_curve(dataset, name=name)
    kind = NETWORK if better else MEAN_CURVE
    return Standing(planner, kind, mean_steps(planner, dataset), comparison)


def mean_steps(planner: Planner, dataset: SweepDataset) -> dict[float, float]:
    """Quality -> mean planned steps over the calibration prompts at RISK."""
    from ..core.curves import tail_max
    from ..core.plan import threshold_at

    rows = dataset.rows("calibration")
    features = project_prompts(dataset, planner.projection)
    upper = tail_max(level_curves(planner.networks, [features[i] for i in rows], planner.grid))  # [N, C]
    least, counts = least_steps(planner.setting.schedule), all_counts(planner.grid)
    knots = planner.risk_table.thresholds(RISK)
    found: dict[float, float] = {}
    for q in (0.80, QUALITY, 0.95):
        enough = upper <= threshold_at(knots, q)
        enough[:, -1] = True
        found[q] = float(sum(max(counts[int(row.argmax())], least) for row in enough) / len(enough))
    return found


def quality_curves(planner: Planner) -> tuple[tuple[int, ...], FloatArray]:
    """(counts, [3, C] low, median and high quality) of the mean prompt, for the picture."""
    import torch

    from ..predictor.features import ConditioningFeatures, collate
    from ..predictor.network import ensemble_quantiles

    projection = planner.projection
    width, pooled = projection.token_weight.shape[1], projection.pooled_weight.shape[1]
    middle = ConditioningFeatures(torch.zeros(1, width), torch.zeros(pooled), pooled > 0)
    levels = ensemble_quantiles(planner.networks, collate([middle]))[0].double().numpy().max(axis=1)  # [K, 3]
    quality = (1.0 - levels).clip(0.0, 1.0).T[::-1]
    counts = all_counts(planner.grid)
    return counts, interpolate_log_n(planner.grid, quality, counts)
