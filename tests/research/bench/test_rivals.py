from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from budgetfusion_nodes.core.curves import DEFAULT_GRID, all_counts
from budgetfusion_nodes.core.risk import controlled_theta, critical_thetas
from budgetfusion_nodes.predictor.dataset import true_shortfall
from budgetfusion_nodes.predictor.fit import FitOptions, fit_scale, fit_token_projection, project_prompts, summaries
from budgetfusion_nodes.predictor.network import CurvePredictor, PredictorSize
from research.bench.rivals import (
    exceedance,
    knee_index,
    least_sufficient_class,
    network_scores,
    plateau_scores,
    step_classifier_scores,
    with_body,
)
from research.statistics.allocation import HeldOut, per_prompt, planned_index
from research.statistics.baselines import baseline_curves

QUICK = FitOptions(networks=1, epochs=40, patience=10)
COUNTS = np.array(all_counts(DEFAULT_GRID))


@pytest.fixture(scope="module")
def known(make_dataset):
    """A data set in which the prompt decides nearly everything, its scale, features and held-out truth."""
    data = make_dataset(120, 60, 60, noise=0.05)
    scale = fit_scale(data)
    features = project_prompts(data, fit_token_projection(data, 0))
    truth = true_shortfall(data, scale)
    held = HeldOut(COUNTS, truth[data.rows("test")], truth[data.rows("calibration")])
    return data, scale, features, held


def cost(known, scores, q=0.9, alpha=0.1):
    """Mean steps and violation of a rule under the same risk control as the planner."""
    data, _, _, held = known
    theta = controlled_theta(critical_thetas(scores[data.rows("calibration")], held.calibration_quality, q), alpha)
    found = per_prompt(held, planned_index(scores[data.rows("test")], theta), q)
    return found["steps"].mean(), found["violation_controlled"].mean()


@pytest.mark.parametrize("kind", ["plain", "forward", "backward"])
def test_other_bodies_have_the_same_size_and_shape(kind):
    size = PredictorSize(8, 4)
    ours = CurvePredictor(size, DEFAULT_GRID, ("l_snr", "d_sim", "i_clip"))
    count = sum(p.numel() for p in ours.parameters())
    other = with_body(CurvePredictor(size, DEFAULT_GRID, ("l_snr", "d_sim", "i_clip")), kind)
    assert sum(p.numel() for p in other.parameters()) == pytest.approx(count, rel=0.03)
    assert with_body(ours, "bilstm") is ours


def test_one_way_bodies_see_one_side_only():
    torch.manual_seed(0)
    inputs = torch.randn(1, 6, 10)
    changed = inputs.clone()
    changed[:, 3] += 1.0
    for kind, same in (("forward", slice(0, 3)), ("backward", slice(4, 6)), ("plain", [0, 1, 2, 4, 5])):
        network = with_body(CurvePredictor(PredictorSize(8, 4, context=8, hidden=16), range(2, 8), ("a",)), kind)
        before, after = network.lstm(inputs)[0], network.lstm(changed)[0]
        assert torch.equal(before[:, same], after[:, same])
        assert not torch.equal(before[:, 3], after[:, 3])


@pytest.mark.parametrize("kind", ["plain", "forward"])
def test_trained_rivals_beat_one_curve_for_all_where_the_prompt_tells(known, kind):
    data, scale, features, _ = known
    everyone = baseline_curves(data, scale, summaries(features).double().numpy())["global"]
    steps, violation = cost(known, network_scores(data, features, scale, 0, QUICK, kind))
    assert steps < 0.85 * cost(known, everyone)[0]
    assert violation <= 0.25


def test_the_step_classifier_learns_the_needed_count(known):
    data, scale, features, _ = known
    scores = step_classifier_scores(data, features, scale, 0.9, 0, QUICK)
    everyone = baseline_curves(data, scale, summaries(features).double().numpy())["global"]
    assert scores.shape == (240, len(COUNTS)) and (scores[:, -1] == 0).all()
    assert (np.diff(scores, axis=1) <= 1e-9).all()
    steps, violation = cost(known, scores)
    assert steps < 0.9 * cost(known, everyone)[0] and violation <= 0.25


def test_nearest_prompts_of_known_groups(make_dataset):
    """Two groups of prompts with two curves: neighbours are of the own group, so their curve is the group's."""
    data = make_dataset(60, 10, 10, noise=0.0)
    group = np.arange(80) % 2
    curve = np.stack([0.5 ** np.arange(12), 0.9 ** np.arange(12)])
    curve = curve - curve[:, -1:]
    shortfall = np.where(data.present[..., None, None], curve[group][:, None, :, None] * np.ones(3), np.nan)
    data = replace(data, shortfall=shortfall.astype(np.float32))
    points = np.random.default_rng(0).normal(size=(80, 3)) * 0.1 + 5.0 * group[:, None]
    found = baseline_curves(data, (1.0, 1.0, 1.0), points)
    on_grid = found["nearest_prompts"][:, np.array(DEFAULT_GRID) - 2]
    np.testing.assert_allclose(on_grid, curve[group], atol=1e-6)
    np.testing.assert_allclose(found["global"][0][np.array(DEFAULT_GRID) - 2], curve.max(axis=0), atol=1e-6)


def test_prompt_length_finds_a_law_of_length(make_dataset):
    data = make_dataset(140, 40, 40, noise=0.0)
    words = np.array([len(prompt.split()) for prompt in data.prompts])
    curve = (words[:, None] / 8.0) * (2.0 / np.array(DEFAULT_GRID) - 2.0 / 50)
    shortfall = np.where(data.present[..., None, None], curve[:, None, :, None] * np.ones(3), np.nan)
    data = replace(data, shortfall=shortfall.astype(np.float32))
    found = baseline_curves(data, (1.0, 1.0, 1.0), np.zeros((220, 2)))["prompt_length"]
    np.testing.assert_allclose(found[:, 0], curve[:, 0], atol=1e-6)


def test_least_sufficient_class_by_hand():
    worst = torch.tensor([[[0.5, 0.05, 0.2, 0.0], [0.05, 0.04, 0.03, 0.0], [0.5, 0.2, 0.1, 0.0]]])
    targets = torch.stack([worst, worst / 2], dim=-1)
    assert least_sufficient_class(targets, 0.9).tolist() == [[3, 0, 2]]


def test_exceedance_is_one_minus_the_share_of_smaller_classes():
    shares = np.array([[0.2, 0.3, 0.5, 0.0]])
    found = exceedance(shares, (2, 3, 4, 8))
    np.testing.assert_allclose(found[0, [0, 1, 2, 6]], [0.8, 0.5, 0.0, 0.0], atol=1e-12)


def test_knee_of_a_hinge_is_its_corner():
    """Falls in a straight line to a plateau at 10 steps: the knee is there; of two metrics the later one counts."""
    grid = tuple(range(2, 51))
    early = np.clip((10 - np.array(grid)) / 8.0, 0.0, None)
    late = np.clip((20 - np.array(grid)) / 18.0, 0.0, None)
    median = np.stack([np.stack([early, early], -1), np.stack([early, late], -1)])
    assert COUNTS[knee_index(median, grid)].tolist() == [10, 20]


def test_plateau_scores_are_slopes():
    grid = tuple(range(2, 51))
    line = np.clip((10 - np.array(grid)) / 8.0, 0.0, None)
    scores = plateau_scores(np.stack([np.stack([line, 0.5 * line], -1)]), grid)
    np.testing.assert_allclose(scores[0, :8], 1 / 8)
    np.testing.assert_allclose(scores[0, 8:], 0.0, atol=1e-12)
    assert COUNTS[planned_index(scores, 0.01)].tolist() == [10]
