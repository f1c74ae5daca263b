"""What Python says about a plan is among the sentences that the page can tell in other languages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from budgetfusion_nodes.core.errors import BudgetFusionError
from budgetfusion_nodes.core.plan import Decision
from budgetfusion_nodes.core.planner import Planner, Prediction
from budgetfusion_nodes.core.setting import Setting, differences
from budgetfusion_nodes.host import planning
from budgetfusion_nodes.host.conditioning import _extras_notes
from budgetfusion_nodes.host.planning import _check_serves
from budgetfusion_nodes.host.sampling import check_sampler

LOCALES = Path(__file__).parents[2] / "locales"
ENGLISH = json.loads((LOCALES / "en" / "main.json").read_text(encoding="utf-8"))["budgetfusion"]
SETTING = Setting("abc", "dpmpp_2m", "karras", 3.0, 64, 64, model_name="tiny_scenes")


def known(sentence: str) -> list[str]:
    """Keys of the messages that this sentence is, names in braces standing for any text."""
    patterns = {
        key: "(.+?)".join(re.escape(part) for part in re.split(r"\{\w+\}", text))
        for key, text in ENGLISH.items()
        if key.startswith("host_")
    }
    return [key for key, pattern in patterns.items() if re.fullmatch(pattern, sentence, re.DOTALL)]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"scheduler": "normal"}, "host_differs"),
        ({"sampler_name": "euler"}, "host_differs"),
        ({"cfg": 7.0}, "host_differs"),
        ({"denoise": 0.5}, "host_differs"),
        ({"width": 128}, "host_size"),
        ({"model": "other"}, "host_changed"),
    ],
)
def test_differences_from_the_calibration(changes: dict, key: str) -> None:
    (sentence,) = differences(SETTING, replace(SETTING, **changes))
    assert key in known(sentence), sentence


def refusals() -> Iterator[tuple[str, BudgetFusionError]]:
    for sampler, key in (("dpm_adaptive", "host_dpm_adaptive"), ("euler_ancestral", "host_noisy_sampler")):
        with pytest.raises(BudgetFusionError) as refused:
            check_sampler(sampler)
        yield key, refused.value
    for changes, key in (
        ({"model": "x", "model_name": "sd15"}, "host_other_model"),
        ({"sampler_name": "euler"}, "host_other_sampler"),
    ):
        with pytest.raises(BudgetFusionError) as refused:
            _check_serves("planner", SETTING, replace(SETTING, **changes))
        yield key, refused.value


def test_refusals_to_plan() -> None:
    for key, error in refusals():
        assert key in known(str(error)), str(error)


def test_no_planner_for_this_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_readable_planners", lambda: ([], ()))
    with pytest.raises(BudgetFusionError) as refused:
        planning._automatic(replace(SETTING, model="x", model_name="sd15"))
    assert known(str(refused.value)) == ["host_no_planner"], str(refused.value)


@pytest.mark.parametrize(
    ("extras", "key"),
    [
        ({"area": (8, 8, 0, 0)}, "host_area"),
        ({"mask": torch.ones(1, 8, 8)}, "host_mask"),
        ({"start_percent": 0.2}, "host_range"),
        ({"control": object()}, "host_controlnet"),
    ],
)
def test_notes_on_the_conditioning(extras: dict, key: str) -> None:
    (note,) = _extras_notes(extras, "positive")
    assert known(note) == [key], note


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"quality": 0.99, "max_steps": 3}, "host_max_too_low"),
        ({"max_steps": 80}, "host_beyond_target"),
        ({"min_steps": 60}, "host_min_decides"),
        ({"risk": 0.001}, "host_not_vouched"),
        ({"distance": 1.5}, "host_unlike"),
        ({"pooled": None}, "host_no_pooled"),
    ],
)
def test_warnings_of_the_planner(changes: dict, key: str) -> None:
    wanted = {"quality": 0.9, "risk": 0.1, "min_steps": 2, "max_steps": 50, "distance": 0.5, "pooled": torch.zeros(4)}
    wanted |= changes
    planner = SimpleNamespace(
        target_steps=50,
        risk_table=SimpleNamespace(prompts=200, enough_prompts=lambda risk: risk >= 0.05),
        projection=SimpleNamespace(pooled_mean=torch.zeros(4)),
        setting=SETTING,
    )
    decision = Decision.from_curves(
        (3, 10, 50), {"d_sim": (0.5, 0.2, 0.0)}, (0.6, 0.9, 1.0), [(0.5, 0.5), (0.99, 0.01)]
    )
    (warning,) = Planner._warnings(
        cast(Planner, planner),
        decision,
        cast(Prediction, SimpleNamespace(distance=wanted["distance"])),
        wanted["quality"],
        wanted["risk"],
        wanted["min_steps"],
        wanted["max_steps"],
        SETTING,
        wanted["pooled"],
    )
    assert known(warning) == [key], warning


def test_what_is_unknown_is_known_to_be() -> None:
    assert known("Something that Python never says.") == []
