"""The shipped generator and planner belong together and are what their provenance says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from budgetfusion_nodes.core.schedule import NestedSchedule
from budgetfusion_nodes.predictor.planner_file import load_planner
from research.options import WEIGHTS
from research.shipped_models import EPS, FLOW, MODELS, ShippedModel
from research.sweeps.rendering import file_digest

CHECKPOINT = WEIGHTS / "checkpoints" / "tiny_scenes.safetensors"
MEGABYTE = 1_000_000


def test_generator_is_as_small_as_it_should_be() -> None:
    provenance = json.loads(CHECKPOINT.with_suffix(".json").read_text(encoding="utf-8"))
    with safe_open(CHECKPOINT, "pt") as file:
        sizes = {key: math.prod(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    unet = sum(size for key, size in sizes.items() if key.startswith("model.diffusion_model."))
    assert unet == provenance["parameters"]["unet"]
    assert 5 * MEGABYTE <= unet <= 12 * MEGABYTE
    assert CHECKPOINT.stat().st_size <= 40 * MEGABYTE


def test_flow_is_what_its_provenance_says() -> None:
    path = WEIGHTS / "checkpoints" / FLOW.checkpoint
    provenance = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    weights = load_file(path)
    denoiser = sum(value.numel() for key, value in weights.items() if key.startswith("model.diffusion_model."))
    assert denoiser == provenance["parameters"]["denoiser"]
    assert provenance["sha256"] == file_digest(path)
    assert path.stat().st_size <= 40 * MEGABYTE
    # the text encoder's split file holds the same weights
    prefix = "text_encoders.clip_tiny.transformer."
    text = load_file(WEIGHTS / "text_encoders" / FLOW.loaders["CLIPLoader"]["clip_name"])
    text.pop("tiny_scenes_text")
    inside = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    assert text.keys() == inside.keys()
    assert all(text[key].equal(value) for key, value in inside.items())


SHIPPED = sorted((WEIGHTS / "planners").glob("*.safetensors"))


def provenance_of(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_a_planner_is_what_its_provenance_says(path: Path) -> None:
    provenance, planner = provenance_of(path), load_planner(path)
    model = FLOW if "flow" in path.stem else EPS
    assert provenance["sha256"] == file_digest(path)
    assert provenance["setting"] == planner.setting.to_dict() and planner.setting.precision == "fp32"
    checkpoint = provenance.get("checkpoint_sha256") or provenance["data"]["spec"]["checkpoint_sha256"]
    assert checkpoint == file_digest(WEIGHTS / "checkpoints" / model.checkpoint)
    nested = NestedSchedule.from_text(planner.setting.schedule)
    assert (nested is not None) == path.stem.endswith("_nested")
    assert nested is None or planner.grid[1] == nested.prefix_steps + 1


@pytest.mark.parametrize(
    "path", [path for path in SHIPPED if "leave_one_out" in provenance_of(path)], ids=lambda path: path.stem
)
def test_a_planner_that_calibrate_made_keeps_its_risk_where_each_prompt_is_left_out(path: Path) -> None:
    provenance = provenance_of(path)
    assert load_planner(path).risk_table.prompts == provenance["calibration"]["prompts"]["calibration"]
    unseen = provenance["leave_one_out"]
    assert unseen["0.90"]["violations"] <= unseen["risk"]
    assert {"captions_sha256", "captions_command", "command", "commit", "source"} <= set(provenance)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_the_stock_planner_is_for_the_setting_that_is_shown(model: ShippedModel) -> None:
    setting = load_planner(WEIGHTS / "planners" / model.planner).setting.to_dict()
    assert {key: setting[key] for key in model.setting} == model.setting
