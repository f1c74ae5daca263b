from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from budgetfusion_nodes.core.curves import all_counts
from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.plan import threshold_at
from budgetfusion_nodes.predictor.dataset import true_quality, true_shortfall
from budgetfusion_nodes.predictor.fit import FitOptions, fit_planner, fit_scale, project_prompts, upper_curves
from budgetfusion_nodes.predictor.planner_file import load_planner, save_planner
from research.statistics.allocation import (
    HeldOut,
    best_fixed,
    outcome,
    per_prompt,
    permuted,
    planned_index,
    uniform,
)
from research.statistics.bootstrap import bootstrap, interval, mean_difference

QUICK = FitOptions(networks=2, epochs=40, patience=10)


@pytest.fixture(scope="module")
def dataset(make_dataset):
    return make_dataset(200, 100, 100)


@pytest.fixture(scope="module")
def fitted(dataset):
    return fit_planner(dataset, 3, name="synthetic", options=QUICK)


def on_test_prompts(dataset, planner, q=0.9, risk=0.1):
    """(planned [N] steps and violations on the test prompts, their truth)."""
    rows = dataset.rows("test")
    held = HeldOut(np.asarray(all_counts(dataset.grid)), true_shortfall(dataset, planner.scale)[rows])
    upper = upper_curves(planner, project_prompts(dataset, planner.projection))[rows]
    theta = threshold_at(planner.risk_table.thresholds(risk), q)
    return per_prompt(held, planned_index(upper, theta), q), held


def first(dataset, row):
    return torch.from_numpy(dataset.tokens[row]), torch.from_numpy(dataset.pooled[row])


def test_the_scale_is_the_calibration_median_at_the_smallest_count(dataset):
    rows = dataset.rows("calibration")
    expected = np.nanmedian(dataset.shortfall[rows][:, :, 0].reshape(-1, 3), axis=0)
    np.testing.assert_allclose(fit_scale(dataset), expected, rtol=1e-6)


def test_the_planner_beats_one_count_where_the_prompt_tells(dataset, fitted):
    planned, held = on_test_prompts(dataset, fitted)
    assert planned["steps"].mean() < 0.92 * best_fixed(held, 0.9, float(planned["violation_controlled"].mean()))


def test_without_trust_every_prompt_gets_the_mean_curve(dataset):
    """And with half of it, curves that differ less from prompt to prompt than with all."""
    spread = {}
    for trust in (0.0, 0.5, 1.0):
        planner = fit_planner(dataset, 3, options=replace(QUICK, networks=1, epochs=15, trust=trust))
        curves = upper_curves(planner, project_prompts(dataset, planner.projection))
        spread[trust] = float(np.log(curves[:, 8] + 0.02).std())
    assert spread[0.0] == pytest.approx(0.0, abs=1e-6)
    assert 0.05 < spread[0.5] < 0.8 * spread[1.0]


@pytest.mark.parametrize("q", [0.8, 0.9, 0.95])
def test_the_guarantee_holds_on_held_out_prompts(dataset, fitted, q):
    violations = on_test_prompts(dataset, fitted, q)[0]["violation_controlled"]
    assert bootstrap(violations, 0)["low"] <= 0.12  # calibration is random too


def test_at_equal_mean_steps_fewer_renders_violate_than_under_uniform_or_permuted(dataset, fitted):
    planned, held = on_test_prompts(dataset, fitted)
    index = planned["steps"].astype(np.int64) - held.counts[0]
    for rival in (uniform(held, float(planned["steps"].mean())), permuted(held, index)):
        other = outcome(held, rival, 0.9)
        assert interval(mean_difference, 0, planned["violation"], other["violation"])["high"] < 0
        assert planned["shortfall"].mean() < other["shortfall"].mean()


def test_the_fitted_planner_plans_as_its_curves_say(fitted, dataset):
    """Planner.plan, prompt by prompt, gives the counts behind the mean."""
    rows = dataset.rows("test")
    steps = [fitted.plan(*first(dataset, row), quality=0.9, min_steps=2, max_steps=50).steps for row in rows]
    planned, _ = on_test_prompts(dataset, fitted)
    assert np.mean(steps) == pytest.approx(planned["steps"].mean(), abs=0.05)  # batches round otherwise in the last bit
    assert len(set(steps)) > 5


def test_upper_curves_are_the_planners_own(fitted, dataset):
    curves = upper_curves(fitted, project_prompts(dataset, fitted.projection))
    plan = fitted.plan(*first(dataset, 5))
    np.testing.assert_allclose(curves[5], plan.decision.upper, atol=1e-4)


def test_provenance_travels_with_the_file(fitted, tmp_path):
    save_planner(tmp_path / "p.safetensors", fitted)
    loaded = load_planner(tmp_path / "p.safetensors")
    assert loaded.provenance["data"]["train"] == 200
    assert loaded.provenance["data"]["made"] == "synthetic"
    assert loaded.provenance["fit"]["seed"] == 3
    assert loaded.backends["d_sim"] == "d_sim-synthetic"
    assert loaded.setting.model_name == "synthetic"


def test_the_same_seed_gives_the_same_planner_and_leaves_random_state_alone(make_dataset):
    data = make_dataset(30, 20, 10)
    short = FitOptions(networks=1, epochs=3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, other, third = (fit_planner(data, seed, options=short) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [planner.networks[0].state_dict() for planner in (one, other, third)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not all(torch.equal(weights[0][key], weights[2][key]) for key in weights[0])


def test_where_the_prompt_tells_nothing_the_planner_claims_nothing(make_dataset):
    """Conditioning shuffled over prompts: about as many steps as one curve for all, and the guarantee still holds."""
    data = make_dataset(100, 100, 100, seed=4)
    order = np.random.default_rng(0).permutation(300)
    blind = replace(data, tokens=data.tokens[order], pooled=data.pooled[order])
    planned, held = on_test_prompts(blind, fit_planner(blind, 0, options=QUICK))
    everyone = best_fixed(held, 0.9, float(planned["violation_controlled"].mean()))
    assert abs(planned["steps"].mean() - everyone) < 0.25 * everyone
    assert bootstrap(planned["violation_controlled"], 0)["low"] <= 0.12


def test_without_pooled_output_a_planner_is_fitted_too(make_dataset):
    data = make_dataset(20, 20, 5)
    data = replace(data, pooled=np.zeros((45, 0), np.float32))
    planner = fit_planner(data, 0, options=FitOptions(networks=1, epochs=2))
    assert planner.plan(torch.from_numpy(data.tokens[0]), max_steps=50).warnings == ()


def test_too_little_data_says_so(make_dataset):
    with pytest.raises(InputError, match="3 calibration prompts; at least 10"):
        fit_planner(make_dataset(20, 3, 5), 0)


def test_a_metric_that_never_differs_says_so(make_dataset):
    data = make_dataset(20, 20, 5)
    flat = data.shortfall.copy()
    flat[..., 2] *= 0.0
    with pytest.raises(InputError, match="i_clip does not differ"):
        fit_planner(replace(data, shortfall=flat), 0)


def test_truth_reaches_one_at_the_target(dataset):
    truth = true_quality(dataset, fit_scale(dataset))
    assert (truth[dataset.present][:, -1] == 1.0).all()
