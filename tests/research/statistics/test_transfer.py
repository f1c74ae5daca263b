from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.predictor.fit import FitOptions, fit_planner
from budgetfusion_nodes.predictor.planner_file import save_planner
from research import cli
from research.statistics.fit_report import fit_and_report
from research.statistics.transfer import Side, transfer

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
    quality = tail_min(slow.held.calibration_quality)  # [N, S, C]
    losses = np.nanmean(np.where(np.isnan(quality), np.nan, quality < 0.9), axis=1)  # [N, C]
    kept = (losses.sum(axis=0) + 1) / (len(losses) + 1) <= 0.1
    expected = slow.held.counts[int(kept.argmax())]
    steps = on_slow["rules"]["mean_curve_100"]["steps"]
    assert steps == {"value": expected, "low": expected, "high": expected}


def test_own_figures_are_those_of_the_planners_report(make_dataset):
    dataset = make_dataset(60, 40, 40)
    planner, report = fit_and_report(dataset, 2, options=QUICK)
    side = Side(dataset, planner)
    own = transfer(side, side, 0.9, 0.1, 1, shots=(16,), splits=2)["rules"]["own"]
    reported = report["by_quality"]["0.90"]["methods"]["planner"]
    assert own["steps"]["value"] == pytest.approx(reported["mean_steps"]["value"])
    assert own["violation"]["value"] == pytest.approx(reported["violation"]["value"])


def test_models_that_were_measured_otherwise_are_not_compared(sides):
    one, two = sides
    others = {"l_snr": "a", "d_sim": "b", "i_clip": "c"}
    with pytest.raises(InputError, match="different backends"):
        transfer(one, replace(two, planner=replace(two.planner, backends=others)), 0.9, 0.1, 1)
    with pytest.raises(InputError, match="step counts differ"):
        transfer(one, replace(two, planner=replace(two.planner, grid=(*two.planner.grid[:-1], 60))), 0.9, 0.1, 1)


def test_the_command_writes_both_directions(sides, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["transfer", "--splits", "5", "--out", str(tmp_path / "t.md"), "--json", str(tmp_path / "t.json")]
    for number, side in enumerate(sides):
        data, planner = tmp_path / f"{number}.safetensors", tmp_path / f"planner{number}.safetensors"
        side.dataset.save(data)
        save_planner(planner, side.planner, {"made": "by the tests"})
        arguments += ["--model", str(data), str(planner)]
    assert cli.main(arguments[:-3]) == 2
    assert "give it twice" in capsys.readouterr().err
    assert cli.main(arguments) == 0
    found = json.loads((tmp_path / "t.json").read_text())
    assert [f["target"] for f in found] == [side.dataset.setting.describe() for side in sides]
    report = (tmp_path / "t.md").read_text()
    for figures in found:
        assert f"## {figures['target']}" in report
        assert f"{figures['rules']['other']['steps']['value']:.1f} (" in report
    # a planner of another sweep is refused
    arguments[-1] = str(tmp_path / "planner0.safetensors")
    assert cli.main(arguments) == 2
