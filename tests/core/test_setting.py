from __future__ import annotations

import json
from dataclasses import replace

import pytest

from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.setting import Setting, differences

SETTING = Setting("abc", "dpmpp_2m", "karras", 3.0, 64, 64, model_name="Tiny Scenes", precision="fp32")


def test_a_setting_survives_json():
    assert Setting.from_dict(json.loads(json.dumps(SETTING.to_dict()))) == SETTING


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sampler_name": "euler"}, "sampler dpmpp_2m, this render uses euler"),
        ({"scheduler": "normal"}, "scheduler karras, this render uses normal"),
        ({"cfg": 7.5}, "cfg 3, this render uses 7.5"),
        ({"width": 96}, "64 x 64 pixels, this render is 96 x 64"),
        ({"denoise": 0.5}, "denoise 1, this render uses 0.5"),
        ({"precision": "bf16"}, "precision fp32, this render uses bf16"),
        ({"model": "other"}, "Tiny Scenes as it is; this one is changed"),
        ({"model": "other", "model_name": "SDXL"}, "Tiny Scenes, this render uses SDXL"),
    ],
)
def test_each_difference_is_one_sentence(change, said):
    (sentence,) = differences(SETTING, replace(SETTING, **change))
    assert said in sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize(
    "change", [{}, {"cfg": 3.004}, {"width": None, "height": None}, {"model_name": "copy"}, {"precision": ""}]
)
def test_what_does_not_matter_is_not_reported(change):
    assert differences(SETTING, replace(SETTING, **change)) == ()


def test_several_differences_are_all_named():
    found = differences(SETTING, replace(SETTING, sampler_name="heun", cfg=1.0, width=128, height=128))
    assert len(found) == 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", None),
        ("cfg", "7"),
        ("cfg", float("nan")),
        ("cfg", True),
        ("width", -3),
        ("width", 64.0),
        ("denoise", "a"),
        ("precision", 16),
    ],
)
def test_a_damaged_setting_names_the_field(key, value):
    with pytest.raises(InputError, match=key):
        Setting.from_dict({**SETTING.to_dict(), key: value})


def test_a_missing_field_is_named():
    data = SETTING.to_dict()
    del data["scheduler"]
    with pytest.raises(InputError, match="scheduler"):
        Setting.from_dict(data)


def test_describe_names_model_sampler_and_size():
    assert SETTING.describe() == "Tiny Scenes, dpmpp_2m / karras, cfg 3, 64 x 64, fp32"
    assert (
        replace(SETTING, width=None, height=None, model_name="", precision="").describe()
        == "model abc, dpmpp_2m / karras, cfg 3"
    )
