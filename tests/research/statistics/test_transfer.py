from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.predictor.dataset import true_quality
from budgetfusion_nodes.predictor.fit import FitOptions, fit_planner
from research import cli
from research.statistics.transfer import Side, transfer
from research.transfer import section

QUICK = FitOptions(networks=1, epochs=15)
SPLITS = 60


def slower(dataset, factor: float):
    """The same prompts on a model whose curves fall later: what this one does at n steps, it does at n / factor."""
    grid = np.array(dataset.grid, float)
    stretched = np.array([grid[0], *(np.clip(grid[1:-1] / factor, grid[0], None)), grid[-1]])
    moved = np.empty_like(dataset.shortfall)
    for index in np.ndindex(*dataset.shortfall.shape[:2], dataset.shortfall.shape[3]):
        row = (*index[:2], slice(None), index[2])
        moved[row] = np.interp(np.log(stretched), np.log(grid), dataset.shortfall[row])
    setting = replace(dataset.setting, model="another", model_name="slower")
    return replace(dataset, shortfall=moved, setting=setting)


@pytest.fixture(scope="module")
def sides(make_dataset) -> tuple[Side, Side]:
    fast = make_dataset(120, 100, 120)
    slow = slower(fast, 2.0)
    return tuple(Side(d, fit_planner(d, 1, options=QUICK)) for d in (fast, slow))  # pyright: ignore[reportReturnType]


@pytest.fixture(scope="module")
def on_slow(sides):
    return transfer(sides[1], sides[0], 0.9, 0.1, 1, splits=SPLITS)


def test_a_planner_of_a_faster_model_stops_too_early(on_slow):
    rules = on_slow["rules"]
    assert rules["other"]["steps"]["high"] < rules["own"]["steps"]["low"]
    assert rules["other"]["violation_controlled"]["low"] > 0.2
    assert rules["own"]["violation_controlled"]["low"] <= 0.1


def test_a_planner_of_a_slower_model_only_costs_steps(sides):
    rules = transfer(sides[0], sides[1], 0.9, 0.1, 1, splits=SPLITS)["rules"]
    assert rules["other"]["violation_controlled"]["value"] < 0.05
    assert rules["other"]["steps"]["value"] > 1.2 * rules["own"]["steps"]["value"]


def test_few_prompts_keep_the_risk_on_average_and_more_cost_less(on_slow):
    """Conformal risk control bounds the mean over draws, whatever the number of prompts; with 16 it must be careful."""
    rules = on_slow["rules"]
    for kind in ("other_recalibrated", "mean_curve"):
        few, some = rules[f"{kind}_16"], rules[f"{kind}_64"]
        assert few["violation_controlled"]["value"] < 0.1 + 0.03
        assert few["steps"]["value"] > some["steps"]["value"]
        widths = [rule["steps"]["high"] - rule["steps"]["low"] for rule in (few, some)]
        assert widths[0] > widths[1] > 0
    # the order of the prompts carries over to the slower model, which one curve for all cannot know
    assert rules["other_recalibrated_64"]["steps"]["value"] < rules["mean_curve_64"]["steps"]["value"]


def test_the_mean_curve_of_all_prompts_is_the_smallest_count_that_keeps_the_risk(sides, on_slow):
    """One curve gives one count: found here by trying each on the calibration prompts."""
    from budgetfusion_nodes.core.curves import tail_min

    slow = sides[1]
    truth = true_quality(slow.dataset, slow.planner.scale)[slow.dataset.rows("calibration")]
    quality = tail_min(truth)  # [N, S, C]
    losses = np.nanmean(np.where(np.isnan(quality), np.nan, quality < 0.9), axis=1)  # [N, C]
    kept = (losses.sum(axis=0) + 1) / (len(losses) + 1) <= 0.1
    expected = slow.held.counts[int(kept.argmax())]
    steps = on_slow["rules"]["mean_curve_100"]["steps"]
    assert steps == {"value": expected, "low": expected, "high": expected}


def test_models_that_were_measured_otherwise_are_not_compared(sides):
    one, two = sides
    others = {"l_snr": "a", "d_sim": "b", "i_clip": "c"}
    with pytest.raises(InputError, match="different backends"):
        transfer(one, replace(two, planner=replace(two.planner, backends=others)), 0.9, 0.1, 1)
    with pytest.raises(InputError, match="other step counts"):
        transfer(one, replace(two, planner=replace(two.planner, grid=(*two.planner.grid[:-1], 60))), 0.9, 0.1, 1)


def test_a_section_names_every_rule(on_slow):
    text = section(on_slow)
    assert on_slow["target"] in text
    for name in ("its own planner", "the other's planner, as it is", "its own mean curve, from 16 prompts"):
        assert f"| {name} |" in text
    assert f"{on_slow['rules']['other']['steps']['value']:.1f} (" in text


def test_the_command_wants_two_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["transfer", "--model", str(tmp_path), str(tmp_path / "p.safetensors")]) == 2
    assert "give it twice" in capsys.readouterr().err
