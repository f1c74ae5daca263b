"""A planner of one count: its plan, its file, and hostile files of its kind."""

from __future__ import annotations

import json
import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from budgetfusion_nodes.core.errors import InputError, PlannerFileError
from budgetfusion_nodes.core.messages import Message
from budgetfusion_nodes.core.plan import Plan
from budgetfusion_nodes.core.setting import Setting
from budgetfusion_nodes.predictor.count_planner import BEST, STEADY, CountPlanner, Level
from budgetfusion_nodes.predictor.planner_file import FORMAT, VERSION, load_any_planner, load_planner, save_planner

SETTING = Setting("weights", "euler_ancestral", "karras", 3.0, 64, 64, model_name="model", precision="fp32")
GRID = (2, 5, 9, 14, 20)
MADE = CountPlanner(
    name="one",
    setting=SETTING,
    count=9,
    grid=GRID,
    levels=tuple(Level(m, m - 0.25, m + 0.5) for m in (2.0, 5.0, 8.0, 8.0, 8.0)),
    metrics=("l_snr",),
    backends={"l_snr": "l_snr:1"},
    prompts=28,
    why=STEADY,
    provenance={"calibration": {"thoroughness": "quick"}},
)
TOKENS = torch.zeros(4, 8)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_planner(tmp_path / "one.safetensors", MADE)
    return tmp_path / "one.safetensors"


def rewritten(path: Path, tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> Path:
    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    known = json.loads(json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]["planner"])
    kept = {key: value for key, value in {**known, **changes}.items() if value is not ...}
    save_file(tensors or {}, path, {"format": FORMAT, "version": VERSION, "planner": json.dumps(kept)})
    return path


@pytest.mark.parametrize(
    ("limits", "steps"), [((2, 20), 9), ((2, 6), 6), ((12, 20), 12), ((9, 9), 9)], ids=["within", "max", "min", "same"]
)
def test_the_count_is_planned_within_the_limits_whatever_quality_says(limits: tuple[int, int], steps: int) -> None:
    plans = [MADE.plan(TOKENS, quality=q, risk=0.3, min_steps=limits[0], max_steps=limits[1]) for q in (0.5, 0.99)]
    assert [plan.steps for plan in plans] == [steps, steps]
    for plan in plans:
        assert plan.is_count
        assert (plan.quality_predicted, plan.decision, plan.quality_median) == (None, None, ())
        assert [one.code for one in plan.warnings] == ["count_steady"]
        assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))).is_count


def test_another_setting_is_a_difference_and_nonsense_is_refused() -> None:
    plan = replace(MADE, why=BEST).plan(TOKENS, setting=replace(SETTING, cfg=5.0), nfe_of=lambda steps: 2 * steps)
    assert [one.code for one in plan.warnings] == ["count_best", "differs"]
    assert plan.nfe == 18
    with pytest.raises(InputError):
        MADE.plan(TOKENS, min_steps=9, max_steps=3)


def test_a_count_survives_its_file_and_is_no_planner_of_curves(saved: Path) -> None:
    assert load_any_planner(saved) == MADE
    with pytest.raises(PlannerFileError):
        load_planner(saved)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"kind": "graph"}, "kind"),
        ({"kind": 1}, "kind"),
        ({"kind": ...}, "scale"),
        ({"count": 10}, ""),
        ({"count": 0}, "count"),
        ({"count": True}, "count"),
        ({"count": "9"}, "count"),
        ({"grid": [2, 2, 5, 9, 14]}, "grid"),
        ({"grid": [2, 9]}, ""),
        ({"levels": []}, ""),
        ({"levels": [{"mean": 1.0, "low": 2.0, "high": 3.0}] * 5}, "levels.0"),
        ({"levels": [{"mean": 10**400, "low": 2.0, "high": 3.0}] * 5}, "levels.0.mean"),
        ({"levels": [{"mean": 1.0, "low": 1.0}] * 5}, "levels.0.high"),
        ({"metrics": []}, "metrics"),
        ({"metrics": ["beauty"]}, ""),
        ({"backends": {}}, ""),
        ({"prompts": 0}, "prompts"),
        ({"why": "because"}, "why"),
        ({"setting": {}}, "setting.model"),
        ({"provenance": []}, "provenance"),
        ({"name": 3}, "name"),
    ],
)
def test_a_damaged_count_file_is_refused(saved: Path, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(PlannerFileError) as caught:
        load_any_planner(rewritten(saved, **changes))
    problem = caught.value.message.values["problem"]
    assert isinstance(problem, Message)
    assert (problem.code, problem.values["field"]) == ("file_field", field)


def test_a_count_file_with_tensors_is_refused(saved: Path) -> None:
    with pytest.raises(PlannerFileError):
        load_any_planner(rewritten(saved, {"surprise": torch.zeros(2)}))


def test_damage_anywhere_is_refused_or_harmless(saved: Path) -> None:
    content = saved.read_bytes()
    rng = random.Random(0)
    refusals = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] = rng.choice(b'[]{}",:0123456789eE-ntf \\\xff\x00')
        saved.write_bytes(damaged)
        try:
            load_any_planner(saved)
        except PlannerFileError:
            refusals += 1
    assert refusals > 150
