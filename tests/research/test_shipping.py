"""Leave-one-out figures of a planner on data whose law is known."""

from __future__ import annotations

from typing import Any

import numpy as np

from budgetfusion_nodes.predictor.dataset import select
from budgetfusion_nodes.predictor.mean_curve import fit_mean_curve
from research.shipping import leave_one_out


def test_violations_of_unseen_prompts_stay_within_the_risk_and_fall_with_more_steps(make_dataset: Any) -> None:
    data = make_dataset(train=0, calibration=120, test=0)
    planner = fit_mean_curve(data, name="mean")
    found = leave_one_out(planner, select(data, data.rows("calibration")))
    assert found["prompts"] == 120 and found["seeds"] == 240
    steps = [found[f"{q:.2f}"]["mean_steps"] for q in (0.80, 0.90, 0.95)]
    assert steps == sorted(steps) and steps[0] < steps[-1]
    for q in (0.80, 0.90, 0.95):
        row = found[f"{q:.2f}"]
        assert 0.0 < row["violations"] <= 0.1
        # with one curve for all, a prompt left out moves the count by a step at most
        assert abs(row["mean_steps"] - row["one_count"]) <= 1.5
    assert np.isfinite(steps).all()
