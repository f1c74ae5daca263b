from __future__ import annotations

import numpy as np
import pytest
import torch

from budgetfusion_nodes.predictor.dataset import select
from budgetfusion_nodes.predictor.fit import FitOptions, fit_planner
from research.bench.ablations import figures, jobs, promise_by_metric
from research.bench.evidence import gather
from research.bench.synthetic import known_steps, plateau_dataset, plateau_experiment

QUICK = FitOptions(networks=1, epochs=30, patience=10)


@pytest.fixture(scope="module")
def evidence(make_dataset):
    data = make_dataset(60, 60, 60)
    return gather(data, fit_planner(data, 0, options=QUICK))


def test_every_choice_of_the_issue_is_there(evidence):
    listed = [(group, name) for group, name, _ in jobs(evidence, 0, QUICK)]
    assert len(set(listed)) == len(listed)
    groups = {group: [name for g, name in listed if g == group] for group, _ in listed}
    assert groups["metrics"] == [
        "all",
        "l_snr alone",
        "d_sim alone",
        "i_clip alone",
        "without l_snr",
        "without d_sim",
        "without i_clip",
    ]
    assert groups["quantile level"] == ["0.1", "0.5", "0.9"]
    assert groups["LSTM direction"] == ["plain", "forward", "backward"]
    assert groups["training prompts"] == ["25", "50", "60"]
    assert len(groups["conditioning"]) == 4 and len(groups["reference"]) == 3


def test_unchanged_variants_give_our_own_scores(evidence):
    found = {(group, name): scores for group, name, scores in jobs(evidence, 0, QUICK)}
    for key in (("metrics", "all"), ("quantile level", "0.9")):
        np.testing.assert_allclose(found[key](), evidence.upper, atol=1e-6)
    ours = figures(evidence, evidence.upper, 0.9, 0.1)
    assert ours["at_our_promise"]["mean_steps"] == pytest.approx(ours["at_our_cost"]["mean_steps"])
    assert ours["at_our_promise"]["missed"] == pytest.approx(ours["at_our_cost"]["missed"])


def test_a_metric_left_out_is_not_in_the_maximum(evidence):
    found = {name: scores() for group, name, scores in jobs(evidence, 0, QUICK) if group == "metrics"}
    alone = np.stack([found[f"{metric} alone"] for metric in evidence.dataset.metrics])
    # before interpolation the maximum is exact: on the grid
    at = np.array(evidence.dataset.grid) - 2
    np.testing.assert_allclose(found["without l_snr"][:, at], alone[1:].max(axis=0)[:, at], atol=1e-6)
    np.testing.assert_allclose(found["all"][:, at], alone.max(axis=0)[:, at], atol=1e-6)


def test_the_prompt_is_what_helps(evidence):
    """With the conditioning of another prompt the gain is gone."""
    found = {name: scores for group, name, scores in jobs(evidence, 0, QUICK) if group in ("conditioning", "reference")}
    right = figures(evidence, found["seed 0"](), 0.9, 0.1)["at_our_cost"]["missed"]
    wrong = figures(evidence, found["of another prompt"](), 0.9, 0.1)["at_our_cost"]["missed"]
    assert right < wrong - 0.05


def test_few_prompts_still_give_scores_at_every_count(evidence):
    for group, name, scores in jobs(evidence, 0, QUICK):
        if (group, name) == ("training prompts", "25"):
            found = scores()
            assert found.shape == evidence.upper.shape
            held_rows = np.concatenate([evidence.rows["calibration"], evidence.rows["test"]])
            assert np.isfinite(found[held_rows]).all() and (found[held_rows][:, -1] == 0).all()
            assert figures(evidence, found, 0.9, 0.1)["at_our_promise"]["missed"] < 0.35


def test_a_promise_about_one_metric_costs_less_and_says_less(evidence):
    whole = figures(evidence, evidence.upper, 0.9, 0.1)["at_our_promise"]
    for row in promise_by_metric(evidence, 0.9, 0.1).values():
        assert row["mean_steps"] <= whole["mean_steps"] + 1.0
        assert row["whole_promise_missed"] >= whole["missed"] - 0.02


def test_select_keeps_rows_whole(evidence):
    data = evidence.dataset
    found = select(data, np.array([5, 2]))
    assert found.prompts == (data.prompts[5], data.prompts[2]) and found.grid == data.grid
    np.testing.assert_array_equal(found.shortfall[1], data.shortfall[2])


def test_known_plateaus_are_the_laws_own():
    """t* of the measured curves, found by the product's own rule, is the known one."""
    from budgetfusion_nodes.core.curves import all_counts
    from budgetfusion_nodes.predictor.dataset import true_quality
    from research.bench.synthetic import SIZES
    from research.statistics.oracles import needed

    data, plateau = plateau_dataset(5, 5, 60, 0)
    found = needed(np.array(all_counts(data.grid)), true_quality(data, SIZES), 0.9)
    wanted = known_steps(plateau, 0.9)[:, None]
    assert np.abs(found - wanted).max() <= 3  # between grid counts the curve is interpolated
    assert np.abs(found - wanted).mean() < 0.8


def test_the_predictor_finds_known_plateaus():
    torch.manual_seed(0)
    found = plateau_experiment(0, train=150, options=FitOptions(networks=1, epochs=60))
    assert found["correlation"] > 0.95
    assert 1.0 <= found["median_ratio"] < 1.35  # a promise at risk .1 leans to the safe side
    assert found["too_few"] <= 0.2
