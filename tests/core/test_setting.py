from __future__ import annotations

import json
from dataclasses import replace

import pytest

from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.messages import message, verbatim
from budgetfusion_nodes.core.schedule import described
from budgetfusion_nodes.core.setting import Setting, differences, named, refusal

SETTING = Setting("abc", "dpmpp_2m", "karras", 3.0, 64, 64, model_name="Tiny Scenes", precision="fp32")
FLOW = replace(
    SETTING,
    sampling="CONST ModelSamplingDiscreteFlow, shift 3, sigma 0.003 / 0.75 / 1",
    frames=1,
    guidance=3.5,
    extras=("reference_latents 1", "noise_mask 12%"),
)
FLUX = "CONST ModelSamplingFlux, shift {shift}, sigma 0.001 / 0.6 / 1"


def test_a_setting_survives_json() -> None:
    for setting in (SETTING, FLOW):
        assert Setting.from_dict(json.loads(json.dumps(setting.to_dict()))) == setting


def test_a_setting_of_the_first_version_is_read_and_what_it_does_not_know_is_not_compared() -> None:
    first = {
        "model": "abc", "sampler_name": "dpmpp_2m", "scheduler": "karras", "cfg": 3, "width": 64, "height": None
    }  # fmt: skip
    assert differences(Setting.from_dict(first), replace(FLOW, guidance=None, extras=())) == ()


def test_a_field_of_a_later_version_is_left_alone() -> None:
    assert Setting.from_dict({**SETTING.to_dict(), "weather": "fine"}) == SETTING


@pytest.mark.parametrize(
    ("change", "what", "was", "now"),
    [
        ({"sampler_name": "euler"}, "sampler", "dpmpp_2m", "euler"),
        ({"scheduler": "normal"}, "scheduler", "karras", "normal"),
        ({"schedule": "nested 5@1.0"}, "schedule", message("schedule_stock"), described("nested 5@1.0")),
        ({"schedule": "of a later version"}, "schedule", message("schedule_stock"), verbatim("of a later version")),
        ({"cfg": 7.5}, "cfg", 3.0, 7.5),
        ({"width": 96}, "size", "64 x 64", "96 x 64"),
        ({"frames": 9}, "frames", 1, 9),
        ({"denoise": 0.5}, "denoise", 1.0, 0.5),
        ({"precision": "bf16"}, "precision", "fp32", "bf16"),
        ({"guidance": 30.0}, "guidance", 3.5, 30.0),
        ({"model": "other", "model_name": "SDXL"}, "model", "Tiny Scenes", "SDXL"),
        ({"extras": ("noise_mask 50%", "reference_latents 1")}, "noise_mask", "12%", "50%"),
        ({"sampling": FLOW.sampling.replace("3,", "5,")}, "sampling", FLOW.sampling, FLOW.sampling.replace("3,", "5,")),
    ],
)
def test_each_difference_is_one_message(change: dict, what: str, was: object, now: object) -> None:
    (said,) = differences(FLOW, replace(FLOW, **change))
    assert (said.code, said.values) == ("differs", {"what": named(what), "was": was, "now": now})


def test_a_patched_model_of_the_same_name_is_said_as_such() -> None:
    assert differences(SETTING, replace(SETTING, model="x")) == (message("differs_patched", model="Tiny Scenes"),)


@pytest.mark.parametrize("change", [{"guidance": 3.5}, {"extras": ("control 0.8",)}, {"extras": ("brand_new_key",)}])
def test_what_was_added_or_taken_away_is_named(change: dict) -> None:
    more = replace(SETTING, **change)
    ((added,), (missing,)) = (differences(SETTING, more), differences(more, SETTING))
    assert (added.code, missing.code) == ("added", "missing")
    assert added.values == missing.values
    kind = "guidance" if "guidance" in change else change["extras"][0].split()[0]
    assert added.values["what"] == named(kind)
    assert named("brand_new_key") == message("name_other", key="brand_new_key")


@pytest.mark.parametrize(
    "change",
    [
        *({}, {"cfg": 3.004}, {"width": None, "height": None}, {"model_name": "copy"}, {"precision": ""}),
        *(
            {"guidance": 3.504},
            {"frames": None},
            {"sampling": ""},
            {"extras": ("noise_mask 12%", "reference_latents 1")},
        ),
    ],
)
def test_what_does_not_matter_is_not_reported(change: dict) -> None:
    assert differences(FLOW, replace(FLOW, **change)) == ()


def test_several_differences_are_all_named() -> None:
    found = differences(SETTING, replace(SETTING, sampler_name="heun", cfg=1.0, width=128, height=128))
    assert len(found) == 3


def test_a_shift_that_follows_from_the_size_is_a_size_and_nothing_else() -> None:
    small = replace(SETTING, sampling=FLUX.format(shift=0.6))
    large = replace(SETTING, sampling=FLUX.format(shift=1.1), width=128, height=128)
    assert [said.values["what"] for said in differences(small, large)] == [named("size")]
    assert [said.values["what"] for said in differences(small, replace(large, width=64, height=64))] == [
        named("sampling")
    ], "the same size with another shift is another shift"
    assert refusal("p", small, large) is None


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model": "other", "model_name": "SDXL"}, "other_model"),
        ({"model": "other"}, "other_of_name"),  # never "calibrated for X, and this is X"
        ({"sampler_name": "euler"}, "other_sampler"),
        ({"sampling": "ModelSamplingDiscrete V_PREDICTION, sigma 0.03 / 1 / 15"}, "other_sampling"),
        ({"sampling": FLOW.sampling.replace("3,", "5,")}, None),
        ({"sampling": ""}, None),
        ({"guidance": 30.0, "cfg": 1.0, "width": 96, "extras": ("control",)}, None),
    ],
)
def test_only_another_model_sampler_or_prediction_is_refused(change: dict, code: str | None) -> None:
    found = refusal("p", FLOW, replace(FLOW, **change))
    assert (None if found is None else found.code) == code


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("model", None), ("cfg", "7"), ("cfg", float("nan")), ("cfg", True), ("cfg", 10**400), ("cfg", 1e12)),
        *(("width", -3), ("width", 64.0), ("width", True), ("denoise", "a"), ("precision", 16), ("frames", 0)),
        *(("guidance", "3"), ("sampling", None), ("schedule", 3), ("extras", "control"), ("extras", [3])),
    ],
)
def test_a_damaged_setting_names_the_field(key: str, value: object) -> None:
    with pytest.raises(InputError) as caught:
        Setting.from_dict({**SETTING.to_dict(), key: value})
    assert caught.value.message.code == "setting_field"
    assert str(caught.value.message.values["field"]).split(".")[0] == key


def test_a_missing_field_is_named() -> None:
    data = SETTING.to_dict()
    del data["scheduler"]
    with pytest.raises(InputError) as caught:
        Setting.from_dict(data)
    assert caught.value.message.values["field"] == "scheduler"


def test_describe_names_model_sampler_and_size() -> None:
    assert SETTING.describe() == "Tiny Scenes, dpmpp_2m / karras, cfg 3, 64 x 64, fp32"
    plain = replace(SETTING, width=None, height=None, model_name="", precision="")
    assert plain.describe() == "model abc, dpmpp_2m / karras, cfg 3"
