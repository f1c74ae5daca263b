"""The backends that a planner was made with: found, or named exactly."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from budgetfusion_nodes.core.messages import english_words
from budgetfusion_nodes.metrics import backends as backends_module
from budgetfusion_nodes.metrics.backends import load_d_sim
from budgetfusion_nodes.metrics.encoders import HostClipVisionEncoder
from budgetfusion_nodes.metrics.l_snr import NAME
from budgetfusion_nodes.metrics.matching import PACKAGES, differences, matching_backends
from budgetfusion_nodes.metrics.names import D_SIM_ORDER, BackendName, is_same
from budgetfusion_nodes.predictor.planner_file import load_planner

ROOT = Path(__file__).parents[2]


class Vision:
    """The host's CLIP_VISION with weights of one number."""

    model_type = "clip_vision_model"
    image_size = 224

    def __init__(self, width: int = 1024, value: float = 0.5) -> None:
        self.config = {"hidden_size": width, "patch_size": 14}
        self.value = value

    def get_sd(self) -> dict[str, torch.Tensor]:
        return {"weight": torch.full((4, 4), self.value)}

    def encode_image(self, image: torch.Tensor) -> Any:
        return SimpleNamespace(image_embeds=image.mean(dim=(1, 2)))


def codes(wanted: dict[str, str], there: dict[str, str], *chosen: Any) -> list[tuple[str, str]]:
    return [(str(found.values["metric"]), found.code) for found in differences(wanted, there, *chosen)]


def test_no_two_clip_vision_models_share_a_name() -> None:
    models = [Vision(width) for width in (768, 1024, 1280, 1408, 1664)] + [Vision(1024, 0.25), Vision(2000)]
    names = [HostClipVisionEncoder(model).name for model in models]
    assert len(set(names)) == len(names)
    kinds = [BackendName.parse(name).model for name in names]
    assert kinds == [
        "ViT-B-14-224",
        "ViT-L-14-224",
        "ViT-H-14-224",
        "ViT-g-14-224",
        "ViT-bigG-14-224",
        "ViT-L-14-224",
        "clip-2000-14-224",
    ]
    unreadable = HostClipVisionEncoder(SimpleNamespace(encode_image=lambda image: None)).name
    assert not is_same(unreadable, unreadable)


@pytest.mark.parametrize("name", ["haarpsi", "lpips:alex", "st_lpips:vgg#0a1b2c3d", "open_clip:ViT-B-32:a.b#01234567"])
def test_names_are_read_as_they_are_written(name: str) -> None:
    assert str(BackendName.parse(name)) == name


def test_backends_of_every_shipped_planner_are_there() -> None:
    planners = sorted((ROOT / "weights" / "planners").glob("*.safetensors"))
    assert planners
    for path in planners:
        planner = load_planner(path)
        found = matching_backends(planner.backends)
        assert found.names() == dict(planner.backends)
        assert differences(planner.backends, found.names()) == ()


def test_a_named_open_clip_file_is_found_by_its_digest(tiny_clip, write_tiny_clip, tmp_path: Path) -> None:
    from budgetfusion_nodes.metrics.encoders import OpenClipImageEncoder

    made = write_tiny_clip(tiny_clip)
    name = OpenClipImageEncoder.from_checkpoint(made).name
    wanted = {"i_clip": name}
    assert matching_backends(wanted, folders=(tmp_path, made.parent)).names()["i_clip"] == name
    elsewhere = matching_backends(wanted, folders=(tmp_path,)).names()
    (found,) = differences(wanted, elsewhere)
    assert found.code == "backend_file"
    assert found.values["file"] == "tiny"
    assert found.values["digest"] == name.partition("#")[2]
    other = write_tiny_clip(tiny_clip, tensors={"logit_scale": torch.tensor(1.0)})
    assert matching_backends(wanted, folders=(other.parent,)).names()["i_clip"] != name, "another file of that name"


def test_a_planner_file_does_not_lead_out_of_the_folders(tiny_clip, write_tiny_clip) -> None:
    made = write_tiny_clip(tiny_clip)
    from budgetfusion_nodes.metrics.encoders import OpenClipImageEncoder

    digest = OpenClipImageEncoder.from_checkpoint(made).name.partition("#")[2]
    (inner := made.parent / "inner").mkdir()
    wanted = {"i_clip": f"open_clip:../{made.stem}#{digest}"}
    assert matching_backends(wanted, folders=(inner,)).names()["i_clip"].startswith("open_clip:tiny_scenes_clip#")


def test_what_is_missing_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"l_snr": NAME, "d_sim": "haarpsi", "i_clip": "open_clip:tiny_scenes_clip#b97e6102"}
    st_lpips = load_d_sim("st_lpips").name
    vision = Vision()
    connected = {**there, "i_clip": HostClipVisionEncoder(vision).name}
    assert codes(there, there) == []
    assert codes({"l_snr": "l_snr:laplacian-v1"}, there) == [("l_snr", "backend_version")]
    assert codes({"d_sim": st_lpips}, there, "haarpsi") == [("d_sim", "backend_chosen")]
    assert codes({"d_sim": "st_lpips:alex#00000000"}, {"d_sim": st_lpips}) == [("d_sim", "backend_absent")]
    assert codes({"i_clip": connected["i_clip"]}, there) == [("i_clip", "backend_clip_vision")]
    other = HostClipVisionEncoder(Vision(value=0.75)).name
    assert codes({"i_clip": other}, connected, "auto", vision) == [("i_clip", "backend_clip_vision")]
    assert codes({"i_clip": other}, {"i_clip": "clip_vision:Odd-8#unread"}) == [("i_clip", "backend_unread")]
    assert codes({"i_clip": there["i_clip"]}, connected, "auto", vision) == [("i_clip", "backend_disconnect")]
    assert codes({"i_clip": "untold"}, there) == [("i_clip", "backend_version")]
    monkeypatch.setattr(backends_module, "available_d_sim_backends", lambda: ("haarpsi",))
    assert matching_backends({"d_sim": "st_lpips:alex#00000000"}).d_sim.name == "haarpsi"
    for found in differences({"d_sim": st_lpips, "i_clip": other}, there):
        assert str(found.values["wanted"]) in found.text()
        assert str(found.values["there"]) in found.text()


def test_every_code_has_its_sentence_and_every_backend_its_package() -> None:
    words = english_words()
    for code in ("version", "chosen", "absent", "clip_vision", "unread", "disconnect", "file"):
        assert f"said_backend_{code}" in words
    assert set(D_SIM_ORDER) <= set(PACKAGES)
