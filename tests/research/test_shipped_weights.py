"""The shipped generator and planner belong together and are what their provenance says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from budgetfusion_nodes.core.schedule import NestedSchedule
from budgetfusion_nodes.predictor.planner_file import load_planner
from research.options import WEIGHTS
from research.shipped_models import FLOW, MODELS, ShippedModel
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


CALIBRATED = sorted((WEIGHTS / "planners").glob("*_nested.safetensors"))
"""Made by Calibrate from a store."""


@pytest.mark.parametrize("path", CALIBRATED, ids=[path.stem for path in CALIBRATED])
def test_a_planner_that_calibrate_made_is_what_its_provenance_says(path: Path) -> None:
    provenance = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    planner = load_planner(path)
    assert provenance["sha256"] == file_digest(path)
    assert provenance["checkpoint_sha256"] == file_digest(CHECKPOINT)
    assert provenance["setting"] == planner.setting.to_dict() and planner.setting.precision == "fp32"
    nested = NestedSchedule.from_text(planner.setting.schedule)
    assert nested is not None and planner.grid[1] == nested.prefix_steps + 1
    assert planner.risk_table.prompts == provenance["calibration"]["prompts"]["calibration"]
    unseen = provenance["leave_one_out"]
    assert unseen["0.90"]["violations"] <= unseen["risk"]
    assert {"captions_sha256", "captions_command", "command", "commit", "source"} <= set(provenance)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_planner_was_fitted_to_the_shipped_generator(model: ShippedModel) -> None:
    path = WEIGHTS / "planners" / model.planner
    provenance = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert provenance["sha256"] == file_digest(path)
    checkpoint = WEIGHTS / "checkpoints" / model.checkpoint
    assert provenance["data"]["spec"]["checkpoint_sha256"] == file_digest(checkpoint)
    setting = load_planner(path).setting.to_dict()
    assert provenance["setting"] == setting
    assert {key: setting[key] for key in model.setting} == model.setting
    assert setting["precision"] == "fp32"
    assert provenance["held_out"]
