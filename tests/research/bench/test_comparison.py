"""The tables of the benchmark on a synthetic law, where it is known who must win and what must cancel."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.risk import controlled_theta, critical_thetas
from budgetfusion_nodes.predictor.fit import FitOptions, fit_planner
from research.bench.comparison import at_equal_cost, at_equal_risk, gains
from research.bench.evidence import Evidence, Judges, every_count, gather, load_judges
from research.bench.risk_check import calibration_spread, miss_rate, noticed, redealt, risk_table
from research.bench.rivals import plateau_scores
from research.statistics.allocation import outcome, per_prompt, planned_index, uniform
from research.statistics.baselines import baseline_curves
from research.statistics.bootstrap import draws
from research.sweeps.sweep import Merged, save_merged

QUICK = FitOptions(networks=1, epochs=40, patience=10)


@pytest.fixture(scope="module")
def evidence(make_dataset) -> Evidence:
    data = make_dataset(150, 100, 100)
    planner = fit_planner(data, 3, options=QUICK)
    worst = (data.shortfall / np.array(planner.scale)).max(axis=-1)
    judges = Judges(("twice", "constant"), np.stack([2 * worst, np.where(np.isnan(worst), np.nan, 0.25)], -1))
    return gather(data, planner, judges)


@pytest.fixture(scope="module")
def scores(evidence):
    free = baseline_curves(evidence.dataset, evidence.scale, evidence.summaries)
    return {
        "ours": evidence.upper,
        "mean curve": free["global"],
        "slope": plateau_scores(evidence.median, evidence.dataset.grid),
    }


@pytest.fixture(scope="module")
def table(evidence, scores):
    return at_equal_cost(evidence, scores, 0.9, 0.1, 0)


def test_every_rule_costs_the_same(table):
    for row in table["rules"].values():
        assert row["mean_steps"] == pytest.approx(table["mean_steps"])


def test_our_row_is_the_planners_own_plans(evidence, table):
    index = planned_index(evidence.upper[evidence.rows["test"]], evidence.threshold(0.1, 0.9))
    expected = per_prompt(evidence.held, index, 0.9)
    ours = table["rules"]["ours"]
    for key in ("violation_controlled", "shortfall", "mean_quality"):
        assert ours[key]["value"] == pytest.approx(expected[key].mean())
    assert ours["ours_minus_it"]["shortfall"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    one = evidence.dataset.tokens[evidence.rows["test"][0]], evidence.dataset.pooled[evidence.rows["test"][0]]
    import torch

    plan = evidence.planner.plan(torch.from_numpy(one[0]), torch.from_numpy(one[1]), quality=0.9, risk=0.1)
    assert plan.steps == evidence.counts[index[0]]


def test_the_mean_curve_is_uniform_and_ours_misses_less(table):
    rules = table["rules"]
    assert rules["mean curve"]["shortfall"]["value"] == pytest.approx(rules["UNIFORM"]["shortfall"]["value"])
    for other in ("UNIFORM", "PERMUTED", "mean curve"):
        assert rules[other]["ours_minus_it"]["violation_controlled"]["high"] < 0
        assert rules[other]["ours_minus_it"]["worst_tenth"]["high"] < 0
    assert rules["oracle A"]["worst_tenth"]["value"] < rules["oracle B"]["worst_tenth"]["value"]
    assert rules["oracle B"]["worst_tenth"]["value"] < rules["ours"]["worst_tenth"]["value"]
    fewest = rules["oracle B, fewest misses"]["violation_controlled"]["value"]
    assert (
        fewest <= min(row["violation_controlled"]["value"] for name, row in rules.items() if name != "oracle A") + 1e-9
    )


def test_judges_are_read_at_the_planned_counts(table):
    for row in table["rules"].values():
        assert row["judges"]["constant"]["value"] == pytest.approx(0.25)
        assert row["judges"]["twice"]["value"] == pytest.approx(2 * row["shortfall"]["value"], rel=0.01)


def test_tables_are_json(table):
    assert json.loads(json.dumps(table, allow_nan=False))["quality"] == 0.9


def test_equal_risk_calibrates_every_rule_by_itself(evidence, scores):
    found = at_equal_risk(evidence, scores, 0.9, 0.1, 0)
    assert found["ours"]["steps"]["value"] < 0.92 * found["mean curve"]["steps"]["value"]
    critical = critical_thetas(
        scores["mean curve"][evidence.rows["calibration"]], evidence.held.calibration_quality, 0.9
    )
    index = planned_index(scores["mean curve"][evidence.rows["test"]], controlled_theta(critical, 0.1))
    assert found["mean curve"]["steps"]["value"] == evidence.counts[index].mean()


def test_the_gains_interval_draws_each_prompt_with_its_own_start(evidence):
    """Found again by drawing prompts by hand; with one start for all, the interval is another one."""
    found = gains(evidence, 0.9, 0.1, 0)["gain_per_step"]["of_means"]
    held = evidence.held
    index = planned_index(evidence.upper[evidence.rows["test"]], evidence.threshold(0.1, 0.9))
    ours = per_prompt(held, index, 0.9)
    alike = outcome(held, uniform(held, ours["steps"].mean()), 0.9)["mean_quality"]
    start = np.nanmean(held.test_quality[..., 0], axis=1)
    assert np.ptp(start) > 0, "else this shows nothing"
    drawn = [
        (ours["mean_quality"][rows] - start[rows]).mean() / (alike[rows] - start[rows]).mean() - 1
        for rows in draws(len(start), 0)
    ]
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))))


def test_gains_by_another_route(evidence):
    found = gains(evidence, 0.9, 0.1, 0)
    held = evidence.held
    index = planned_index(evidence.upper[evidence.rows["test"]], evidence.threshold(0.1, 0.9))
    ours = per_prompt(held, index, 0.9)
    cost = ours["steps"].mean()
    assert found["mean_steps"]["value"] == pytest.approx(cost)
    assert found["saved"]["value"] == pytest.approx(1 - cost / 50)
    alike = outcome(held, uniform(held, cost), 0.9)
    start = np.nanmean(held.test_quality[..., 0])
    by_hand = (ours["mean_quality"].mean() - start) / (alike["mean_quality"].mean() - start) - 1
    assert found["gain_per_step"]["of_means"]["value"] == pytest.approx(by_hand)
    assert found["gain_per_step"]["of_means"]["value"] <= found["gain_per_step"]["ceiling_of_means"]
    assert 0.05 < found["fixed"]["fewer_steps"] < 1
    assert found["fixed"]["fewer_steps_interval"]["value"] == pytest.approx(found["fixed"]["fewer_steps"])
    assert 0 < found["gap_to_oracle_b"]["steps_at_our_violation"] < 1
    closed = found["gap_to_oracle_b"]["misses_at_our_cost"]
    assert 0 < closed["value"] <= 1 and closed["low"] < closed["value"] < closed["high"]
    b = found["worst_tenth"]["ratio_oracle_b"]
    assert b["low"] <= b["value"] <= b["high"] and b["value"] < found["worst_tenth"]["ratio"]["value"]
    assert found["prompts"] == len(held.test)
    assert found["worst_tenth"]["ratio"]["value"] == pytest.approx(
        found["worst_tenth"]["ours"] / found["worst_tenth"]["uniform"]
    )
    json.dumps(found, allow_nan=False)


def test_risk_rows_count_misses_of_the_shipped_thresholds(evidence):
    rows = risk_table(evidence, (0.05, 0.2), (0.8, 0.9), 0)
    assert [(row["risk"], row["quality"]) for row in rows] == [(0.05, 0.8), (0.05, 0.9), (0.2, 0.8), (0.2, 0.9)]
    truth = 1 - evidence.held.test
    for row in rows:
        index = planned_index(evidence.upper[evidence.rows["test"]], evidence.threshold(row["risk"], row["quality"]))
        by_hand = np.mean(
            [
                np.mean([(curve[i:] < row["quality"]).any() for curve in curves])
                for i, curves in zip(index, truth, strict=True)
            ]
        )
        assert row["missed"]["value"] == pytest.approx(by_hand)
        assert row["holds"] == (row["missed"]["low"] <= row["risk"])
    assert rows[0]["mean_steps"] > rows[2]["mean_steps"]  # less risk costs more


def test_the_guarantee_holds_on_average_over_deals(evidence):
    for row in redealt(evidence, (0.05, 0.1, 0.2), (0.8, 0.9), 0, times=100):
        assert row["missed"] <= row["risk"] + 0.01
        assert row["missed"] >= row["risk"] - 0.03  # and it is not bought with needless steps


def test_steps_over_deals_are_those_of_the_rule(evidence):
    """A rule that says one count for all costs a whole count in every deal; one that knows the prompts costs less than
    the mean curve where the prompt decides, as in these data."""
    limits = np.where(np.arange(evidence.upper.shape[1]) < 10, 1.0, 0.0)  # 12 steps or more are enough for everybody
    scores = np.broadcast_to(limits, evidence.upper.shape)
    (row,) = redealt(evidence, (0.2,), (0.8,), 0, times=20, other=scores)
    assert row["other"]["mean_steps"] == 12.0 and row["other"]["steps_spread"] == 0.0
    assert row["more_steps"]["mean"] == pytest.approx(row["mean_steps"] - 12.0)
    assert row["more_steps"]["spread"] == pytest.approx(row["steps_spread"])
    mean_curve = baseline_curves(evidence.dataset, evidence.scale, evidence.summaries)["global"]
    (row,) = redealt(evidence, (0.1,), (0.9,), 0, times=20, other=mean_curve)
    assert row["mean_steps"] < 0.9 * row["other"]["mean_steps"]
    single = risk_table(evidence, (0.1,), (0.9,), 0)[0]["mean_steps"]
    assert abs(single - row["mean_steps"]) < 4 * row["steps_spread"] + 1.0
    (same,) = redealt(evidence, (0.1,), (0.9,), 0, times=20, other=evidence.upper)
    assert same["more_steps"] == {"mean": 0.0, "spread": 0.0} and same["other"]["missed"] == same["missed"]


def test_a_broken_promise_is_seen(evidence):
    """The same table on prompts that need three times the steps: the risk is exceeded and the row says so."""
    data = evidence.dataset
    harder = np.minimum(data.shortfall * 3.0, data.shortfall[:, :, :1])
    broken = gather(replace(data, shortfall=harder.astype(np.float32)), evidence.planner)
    assert not any(row["holds"] for row in risk_table(broken, (0.05, 0.1), (0.8, 0.9), 0))


def test_miss_rate_by_hand():
    critical = np.array([[0.1, 0.3], [np.inf, np.nan]])
    assert miss_rate(critical, 0.2) == 0.25
    assert miss_rate(critical, np.inf) == 0.5
    assert miss_rate(critical, 0.0) == 0.0


def test_calibration_spread_is_that_of_the_beta_law():
    from scipy.stats import beta

    assert calibration_spread(0.1, 200) == pytest.approx(beta(20, 181).std())
    assert calibration_spread(0.1, 5) == 0.0


def test_a_shift_of_the_prompts_is_noticed(evidence):
    data = evidence.dataset
    moved = gather(replace(data, tokens=(data.tokens + 3.0).astype(np.float16)), evidence.planner)
    assert noticed(evidence)["share_warned"] < 0.2
    assert noticed(moved)["share_warned"] > 0.9
    assert noticed(moved)["median_distance"] > noticed(evidence)["median_distance"]


def test_foreign_data_are_refused(evidence):
    other = replace(evidence.dataset, setting=replace(evidence.dataset.setting, cfg=7.0))
    with pytest.raises(InputError, match="planner that belongs to it"):
        gather(other, evidence.planner)
    with pytest.raises(InputError, match="measured with"):
        gather(replace(evidence.dataset, backends=dict.fromkeys(evidence.dataset.metrics, "x")), evidence.planner)


def test_every_count_keeps_gaps_and_grid_values():
    values = np.array([[1.0, 0.5, 0.0], [np.nan] * 3])
    found = every_count(values, (2, 4, 8))
    np.testing.assert_allclose(found[0, [0, 2, 6]], [1.0, 0.5, 0.0])
    assert np.isnan(found[1]).all()


def test_judges_are_read_from_a_sweeps_file(evidence, tmp_path):
    dataset = evidence.dataset
    values = np.zeros((*dataset.seeds.shape, len(dataset.grid), 3), np.float32)
    save_merged(Merged(dataset, values), tmp_path)
    found = load_judges(tmp_path / "judges.safetensors")
    assert found.names == ("latent_rmse", "mdsi", "ms_ssim") and found.values.shape == values.shape
    with pytest.raises(InputError, match="judges of a sweep"):
        load_judges(tmp_path / "dataset.safetensors")
