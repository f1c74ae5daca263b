from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from budgetfusion_nodes.predictor.fit import fit_scale
from research.statistics.variance import OVERALL, crossed_shares, is_crossed, variance_report, variance_share


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_one_way_recovers_a_known_share(share):
    rng = np.random.default_rng(3)
    values = np.sqrt(share) * rng.normal(size=(3000, 1)) + np.sqrt(1 - share) * rng.normal(size=(3000, 4))
    values[:1000, 2:] = np.nan
    assert variance_share(values) == pytest.approx(share, abs=0.03)


def test_one_way_of_constants_and_single_seeds_is_unknown():
    assert variance_share(np.ones((5, 2))) is None
    assert variance_share(np.full((30, 7), np.log(13.0))) is None
    assert variance_share(np.array([[1.0, np.nan], [2.0, np.nan]])) is None


@pytest.mark.parametrize(("prompt", "seed"), [(0.6, 0.0), (0.3, 0.3), (0.0, 0.5)])
def test_two_way_recovers_known_shares(prompt, seed):
    rng = np.random.default_rng(0)
    found = []
    for _ in range(200):
        values = np.sqrt(prompt) * rng.normal(size=(150, 1)) + np.sqrt(seed) * rng.normal(size=(1, 8))
        values = values + np.sqrt(1 - prompt - seed) * rng.normal(size=(150, 8))
        found.append(crossed_shares(values))
    assert np.mean([f["prompt"] for f in found]) == pytest.approx(prompt, abs=0.04)
    assert np.mean([f["seed"] for f in found]) == pytest.approx(seed, abs=0.04)
    assert all(sum(f.values()) == pytest.approx(1.0) for f in found)


def test_two_way_by_hand():
    """Means 1, 3 and 5 of prompts and no other difference: all of it is the prompt's."""
    values = np.array([[1.0, 1.0], [3.0, 3.0], [5.0, 5.0]])
    assert crossed_shares(values) == pytest.approx({"prompt": 1.0, "seed": 0.0, "rest": 0.0})
    assert crossed_shares(values.T) == pytest.approx({"prompt": 0.0, "seed": 1.0, "rest": 0.0})
    assert crossed_shares(np.ones((3, 2))) is None
    assert crossed_shares(np.ones((3, 1))) is None
    assert crossed_shares(np.full((30, 8), np.log(13.0))) is None  # rounding is no variance


def test_crossed_means_the_same_seeds_in_the_same_places():
    assert is_crossed(np.array([[1, 2], [1, 2]]))
    assert not is_crossed(np.array([[1, 2], [2, 1]]))
    assert not is_crossed(np.array([[1, -1], [1, -1]]))


def test_report_of_a_known_law(make_dataset):
    """In the synthetic law the metrics differ by a factor alone, and the prompt's share falls with the seeds' noise."""
    shares = []
    for noise in (0.05, 0.6):
        data = make_dataset(20, 30, 150, noise=noise)
        report = variance_report(data, fit_scale(data), (0.8, 0.9), data.rows("test"))
        assert report["prompts"] == 150 and report["seeds"] == 4 and not report["same_noise_for_all_prompts"]
        figures = report["by_quality"]["0.90"][OVERALL]
        assert figures["prompt"] + figures["seed_and_rest"] == pytest.approx(1.0)
        assert figures["tenth"] <= figures["median"] <= figures["nine_tenths"]
        shares.append(figures["prompt"])
        assert set(report["by_quality"]["0.80"]) == {OVERALL, *data.metrics}
        assert all(check["rises"] == 0.0 for check in report["checks"].values())
        assert sum(check["sets_the_budget"] for check in report["checks"].values()) == pytest.approx(1.0)
    assert shares[0] > 0.85 and shares[1] < 0.5


def test_crossed_data_is_split_three_ways(make_dataset):
    data = make_dataset(20, 30, 40)
    rows = data.rows("test")
    seeds = data.seeds.copy()
    seeds[rows] = np.arange(4)
    report = variance_report(replace(data, seeds=seeds), fit_scale(data), (0.9,), rows)
    figures = report["by_quality"]["0.90"][OVERALL]
    assert report["same_noise_for_all_prompts"]
    assert figures["prompt"] + figures["seed"] + figures["rest"] == pytest.approx(1.0)
    assert figures["seed"] < 0.05  # the law has no noise pattern that is hard for every prompt


def test_checks_see_saturation_and_noise(make_dataset):
    data = make_dataset(20, 30, 40)
    shortfall = data.shortfall.copy()
    shortfall[:, :, -2, 1] = 0.05 * fit_scale(data)[1]  # as much is left at the last count as the tolerance at .95
    shortfall[:, :, 0, 2] *= 10
    noisy = replace(data, shortfall=shortfall)
    checks = variance_report(noisy, fit_scale(data), (0.9, 0.95), data.rows("test"))["checks"]
    assert checks["d_sim"]["last_step"] == pytest.approx(1.0, rel=1e-4)
    assert checks["i_clip"]["saturated"] == 1.0
    assert checks["d_sim"]["rises"] > 0.0
