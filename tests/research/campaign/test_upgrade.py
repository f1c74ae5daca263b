"""Specimens of earlier states: tests/host/test_campaign.py has the workflows."""

from __future__ import annotations

from pathlib import Path

import pytest

from budgetfusion_nodes.core.errors import PlannerFileError
from budgetfusion_nodes.predictor.planner_file import load_planner
from research.campaign import upgrade
from tests.predictor.test_planner_file import rewrite


def test_planners_of_earlier_states_open(tmp_path: Path) -> None:
    found = upgrade.planners(tmp_path)
    assert found.held, found


def test_stores_of_earlier_states_open(tmp_path: Path) -> None:
    found = upgrade.stores(tmp_path)
    assert found.held, found


def test_the_first_version_is_checked_like_the_second(tmp_path: Path) -> None:
    (first,) = [path for path in upgrade.unpacked("planner", tmp_path) if path.stem.endswith("95abae1")]
    planner = load_planner(first)
    features = planner.features(*upgrade._conditioning())
    assert 0.0 < planner.out_of_distribution.score(features) < 10.0
    with pytest.raises(PlannerFileError, match=r"missing.*novelty\.points|novelty\.points"):
        load_planner(rewrite(first, drop="novelty.points"))
