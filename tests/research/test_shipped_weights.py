"""The shipped generator and planner belong together and are what their provenance says."""

from __future__ import annotations

import json
import math

from safetensors import safe_open

from budgetfusion_nodes.predictor.planner_file import load_planner
from research.options import WEIGHTS
from research.sweeps.rendering import file_digest

CHECKPOINT = WEIGHTS / "checkpoints" / "tiny_scenes.safetensors"
PLANNER = WEIGHTS / "planners" / "tiny_scenes_dpmpp_2m.safetensors"
MEGABYTE = 1_000_000


def test_generator_is_as_small_as_it_should_be() -> None:
    provenance = json.loads(CHECKPOINT.with_suffix(".json").read_text(encoding="utf-8"))
    with safe_open(CHECKPOINT, "pt") as file:
        sizes = {key: math.prod(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    unet = sum(size for key, size in sizes.items() if key.startswith("model.diffusion_model."))
    assert unet == provenance["parameters"]["unet"]
    assert 5 * MEGABYTE <= unet <= 12 * MEGABYTE
    assert CHECKPOINT.stat().st_size <= 40 * MEGABYTE


def test_planner_was_fitted_to_the_shipped_generator() -> None:
    provenance = json.loads(PLANNER.with_suffix(".json").read_text(encoding="utf-8"))
    assert provenance["sha256"] == file_digest(PLANNER)
    assert provenance["data"]["spec"]["checkpoint_sha256"] == file_digest(CHECKPOINT)
    assert provenance["setting"] == load_planner(PLANNER).setting.to_dict()
    assert provenance["held_out"]
