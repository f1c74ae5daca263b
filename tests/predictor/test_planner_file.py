from __future__ import annotations

import json
import pickle
import random
import re
import struct
import zipfile
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from budgetfusion_nodes.core.errors import PlannerFileError
from budgetfusion_nodes.core.messages import Message
from budgetfusion_nodes.predictor import planner_file
from budgetfusion_nodes.predictor.planner_file import FORMAT, VERSION, load_planner, save_planner


@pytest.fixture
def saved(planner, tmp_path):
    path = tmp_path / "good.safetensors"
    save_planner(path, planner)
    return path


def rewrite(path, *, tensors=None, description=None, metadata=None, drop=None):
    """The same file with something changed."""
    with safe_open(path, "pt") as opened:
        known = dict(opened.metadata())
    content = load_file(path) | (tensors or {})
    if drop:
        del content[drop]
    if description is not None:
        known["planner"] = json.dumps(description(json.loads(known["planner"])))
    changed = path.with_name("changed.safetensors")
    save_file(content, changed, known | (metadata or {}))
    return changed


def refused(path, code, said=""):
    """The problem's code, and what its field and detail hold."""
    with pytest.raises(PlannerFileError) as caught:
        load_planner(path)
    said_of_file = caught.value.message
    assert said_of_file.code == "planner_file"
    assert said_of_file.values["file"] == path.name
    problem = said_of_file.values["problem"]
    assert isinstance(problem, Message)
    assert problem.code in code.split("|"), problem
    assert re.search(said, " ".join(map(str, problem.values.values()))), problem
    assert str(path.parent) not in str(caught.value)


def test_a_planner_survives_its_file(planner, saved, conditioning):
    loaded = load_planner(saved)
    for name in ("name", "setting", "grid", "metrics", "scale", "backends", "risk_table", "provenance"):
        assert getattr(loaded, name) == getattr(planner, name)
    before, after = planner.plan(*conditioning), loaded.plan(*conditioning)
    assert replace(before, seconds=0.0) == replace(after, seconds=0.0)
    assert saved.stat().st_size < 1_000_000


@pytest.mark.parametrize(
    ("provenance", "wanted"),
    [({"data": {"spec": {"sampling": {"dtype": "bf16"}}}}, "bf16"), ({"data": "by hand"}, ""), ({}, "")],
)
def test_an_older_file_names_its_precision_in_its_provenance(planner, tmp_path, provenance, wanted):
    path = tmp_path / "older.safetensors"
    save_planner(path, replace(planner, setting=replace(planner.setting, precision="")), provenance)
    older = rewrite(
        path, description=lambda d: {**d, "setting": {k: v for k, v in d["setting"].items() if k != "precision"}}
    )
    assert load_planner(older).setting == replace(planner.setting, precision=wanted)


def test_provenance_can_be_given_at_saving(planner, tmp_path):
    save_planner(tmp_path / "p.safetensors", planner, {"commit": "abc", "data": {"prompts": 800}})
    assert load_planner(tmp_path / "p.safetensors").provenance == {"commit": "abc", "data": {"prompts": 800}}


def test_saving_leaves_nothing_beside_the_file(saved):
    assert [p.name for p in saved.parent.iterdir()] == ["good.safetensors"]


def test_half_precision_weights_are_read(planner, saved, conditioning):
    half = rewrite(saved, tensors={key: value.half() for key, value in load_file(saved).items()})
    assert abs(load_planner(half).plan(*conditioning).steps - planner.plan(*conditioning).steps) <= 1


def test_a_planner_without_pooled_output_survives(make_planner, tmp_path, conditioning):
    save_planner(tmp_path / "p.safetensors", make_planner(pooled_in=0))
    assert load_planner(tmp_path / "p.safetensors").plan(conditioning[0], max_steps=50).warnings == ()


def test_loading_leaves_the_hosts_random_state_alone(saved):
    before = torch.get_rng_state()
    load_planner(saved)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    refused(saved, "file_cut|file_unreadable|file_field")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    refused(tmp_path / "nothing.safetensors", "file_absent")
    (tmp_path / "folder.safetensors").mkdir()
    refused(tmp_path / "folder.safetensors", "file_no_file")


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({"lora_up": torch.zeros(4, 4)}, path)
    refused(path, "file_foreign")
    save_file({"lora_up": torch.zeros(4, 4)}, path, {"format": "pt"})
    refused(path, "file_foreign")


def test_text_and_noise_are_refused(tmp_path):
    path = tmp_path / "notes.safetensors"
    path.write_text("this is a shopping list, and a long one at that")
    refused(path, "file_header")
    path.write_bytes(struct.pack("<Q", 20) + b"x" * 40)
    refused(path, "file_field", "header not valid JSON")
    path.write_bytes(struct.pack("<Q", 2) + b"[]")
    refused(path, "file_field", "header not a JSON object")
    path.write_bytes(struct.pack("<Q", 100_000) + b"[" * 100_000)
    refused(path, "file_field", "header not valid JSON")


def test_pickle_and_zip_files_are_never_opened(tmp_path, monkeypatch):
    def forbidden(*_args, **_kwargs):
        raise AssertionError("a pickle was opened")

    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps({"weights": [1, 2, 3]}))
    monkeypatch.setattr(pickle, "loads", forbidden)
    monkeypatch.setattr(torch, "load", forbidden)
    refused(path, "file_pickle")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", "x")
    refused(path, "file_pickle")


def test_a_huge_header_and_a_huge_file_are_refused_before_reading(tmp_path, monkeypatch, saved):
    path = tmp_path / "huge.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    refused(path, "file_header")
    monkeypatch.setattr(planner_file, "MAX_FILE_BYTES", 1000)
    refused(saved, "file_too_large", " 1000$")


@pytest.mark.parametrize("version", ["0", "3", "2.0", ""])
def test_another_version_is_refused(saved, version):
    refused(rewrite(saved, metadata={"version": version}), "file_version", f"^{version} 2$")
    assert (FORMAT, VERSION) == ("budgetfusion.planner", "2")


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"network.0.embed.weight": torch.zeros(3, 3)}, "embed.weight has shape"),
        ({"network.1.embed.bias": torch.full((16,), float("nan"))}, "network.1.embed.bias holds values that are not"),
        ({"projection.token_mean": torch.full((24,), float("inf"))}, "token_mean holds values"),
        ({"novelty.whitening": torch.zeros(64, 63)}, "whitening has shape"),
        ({"novelty.whitening": torch.zeros(64, 64)}, "whitening has a column of zeros"),
        ({"novelty.whitening": torch.full((64, 64), 1e13)}, "or a value above 1e\\+12"),
        ({"network.0.baseline": torch.full((12, 3, 3), -1.0)}, "negative"),
        ({"network.0.embed.bias": torch.zeros(16, dtype=torch.int64)}, "has type 'I64'"),
        ({"surprise": torch.zeros(2)}, "unknown: \\['surprise'\\]"),
    ],
)
def test_wrong_tensors_are_refused(saved, tensors, said):
    refused(rewrite(saved, tensors=tensors), "file_field", said)


def test_a_missing_tensor_is_named(saved):
    refused(rewrite(saved, drop="novelty.whitening"), "file_field", "missing: \\['novelty.whitening'\\]")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"grid": [2, 2, 3]}, "^grid "),
        ({"grid": [2.5, 3]}, "^grid.0 .*2.5"),
        ({"grid": []}, "^grid "),
        ({"grid": [2, 4, 8]}, "has shape"),
        ({"metrics": ["l_snr", "l_snr", "d_sim"]}, "metrics are"),
        ({"metrics": ["beauty"]}, "beauty"),
        ({"scale": [1.0, 1.0]}, "2 scales for 3"),
        ({"scale": [1.0, 0.0, 1.0]}, "^scale.1 .*0.0"),
        ({"scale": None}, "^scale .*None"),
        ({"quantiles": [0.2, 0.5, 0.8]}, "quantiles"),
        ({"backends": {"l_snr": "x"}}, "backends must name"),
        ({"setting": {}}, "^setting.model "),
        ({"setting": 3}, "^setting "),
        ({"name": 3}, "^name .*3"),
        ({"scale": [10**400, 1.0, 1.0]}, "^scale.0 "),
        ({"novelty_limit": 10**400}, "^novelty_limit "),
        ({"novelty_limit": -1}, "^novelty_limit .*-1"),
        ({"provenance": []}, "^provenance "),
        ({"risk": {}}, "^risk.alphas "),
        ({"sizes": {}}, "^sizes.token_in "),
    ],
)
def test_a_damaged_description_is_refused(saved, change, said):
    refused(rewrite(saved, description=lambda known: {**known, **change}), "file_field", said)


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        ("sizes", "hidden", 10**9, "^sizes.hidden .*1000000000"),
        ("sizes", "networks", 0, "^sizes.networks "),
        ("sizes", "heads", True, "^sizes.heads .*True"),
        ("sizes", "hidden", 8, "has shape"),
        ("risk", "prompts", "many", "^risk.prompts .*many"),
        ("risk", "alphas", [0.1, 0.1], "^risk.alphas .*must increase"),
        ("risk", "theta", [[0.1]] * 6, "one number for each quality"),
        ("risk", "theta", [[0.1 + 0.001 * i for i in range(50)]] * 6, "must fall with quality"),
        ("risk", "theta", [[0.1 - 0.01 * a] * 50 for a in range(6)], "rise with risk"),
        ("risk", "theta", [[-0.1] * 50] * 6, "^risk.theta.0.0 .*-0.1"),
    ],
)
def test_a_damaged_part_is_refused(saved, part, key, value, said):
    refused(rewrite(saved, description=lambda known: {**known, part: {**known[part], key: value}}), "file_field", said)


def test_numbers_that_are_no_numbers_are_refused(saved):
    refused(rewrite(saved, metadata={"planner": '{"name": NaN}'}), "file_field", "planner not valid JSON")
    refused(rewrite(saved, metadata={"planner": "{"}), "file_field", "planner not valid JSON")


def test_a_planner_that_holds_no_finite_number_is_not_written(planner, tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        save_planner(tmp_path / "bad.safetensors", replace(planner, scale=(float("nan"), 1.0, 1.0)))
    assert list(tmp_path.iterdir()) == []


def test_damage_anywhere_in_the_header_is_refused_or_harmless(saved):
    """Random bytes of the header changed: no other error ever comes out."""
    content = saved.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    rng = random.Random(0)
    refusals = 0
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 1, 3))):
            damaged[rng.randrange(0, 8 + length)] = rng.choice(b'[]{}",:0123456789eE-ntf \\\xff\x00')
        saved.write_bytes(damaged)
        try:
            load_planner(saved)
        except PlannerFileError:
            refusals += 1
    assert refusals > 150
