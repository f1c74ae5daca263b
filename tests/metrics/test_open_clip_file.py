"""Self-describing checkpoints: everything is checked before a model is built."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from budgetfusion_nodes.core.errors import BackendMissingError, InputError
from budgetfusion_nodes.metrics import open_clip_file
from budgetfusion_nodes.metrics.open_clip_file import load_open_clip_checkpoint


def test_what_is_loaded(tiny_clip, tiny_clip_config, write_tiny_clip) -> None:
    loaded = load_open_clip_checkpoint(write_tiny_clip(tiny_clip, metadata={"note": "kept"}))
    assert loaded.config == tiny_clip_config
    assert (loaded.image_size, loaded.image_mean, loaded.image_std) == (64, (0.5, 0.4, 0.3), (0.25, 0.5, 0.2))
    assert loaded.metadata["note"] == "kept"
    assert not loaded.model.training
    tokens = torch.randint(1, 40, (2, 12))
    with torch.no_grad():
        assert torch.allclose(loaded.model.encode_text(tokens), tiny_clip.encode_text(tokens), atol=1e-5)


def test_preprocessing_may_stand_inside_the_json(tiny_clip, tiny_clip_config, write_tiny_clip) -> None:
    config = {**tiny_clip_config, "image_mean": [0, 0, 0], "image_std": [1, 1, 1], "quick_gelu": True}
    without = {"image_mean": None, "image_std": None, "image_size": None}
    loaded = load_open_clip_checkpoint(write_tiny_clip(tiny_clip, config, metadata=without))
    assert (loaded.image_size, loaded.image_mean, loaded.image_std) == (64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert loaded.config["quick_gelu"] is True


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        ("embed_dim", 0, "embed_dim should be a whole number from 1 to 4096"),
        ("embed_dim", 10**9, "embed_dim"),
        ("embed_dim", True, "embed_dim"),
        ("vision_cfg", None, "vision_cfg should be an object"),
        ("vision_cfg.layers", 10**6, r"vision_cfg\.layers should be a whole number from 1 to 48"),
        ("vision_cfg.layers", [3, 4, 6, 3], r"vision_cfg\.layers"),
        ("vision_cfg.width", 64.5, r"vision_cfg\.width"),
        ("vision_cfg.width", 72, "a multiple of 32"),
        ("vision_cfg.mlp_ratio", 1e9, r"mlp_ratio should be a number from"),
        ("vision_cfg.patch_size", 7, "a multiple of patch_size"),
        ("vision_cfg.image_size", 72, "image_size should be 72"),
        ("vision_cfg.timm_model_name", "resnet50", "timm_model_name should be no such entry"),
        ("text_cfg.hf_model_name", "roberta", "hf_model_name should be no such entry"),
        ("text_cfg.heads", 5, "a multiple of 5"),
        ("text_cfg.vocab_size", 10**9, "vocab_size"),
        ("text_cfg.width", "delete", r"text_cfg\.width should be a number, but is nothing"),
        ("quick_gelu", "yes", "true or false"),
        ("vision_cfg.pool_type", ["tok"], "a plain value"),
        ("vision_cfg.width", 96, "tensor .* should be"),  # valid in itself, but not what the file holds
        ("vision_cfg.layers", 3, "absent"),
        ("text_cfg.vocab_size", 41, "token_embedding"),
    ],
)
def test_wrong_configurations(
    where: str, value: object, says: str, tiny_clip, tiny_clip_config, write_tiny_clip
) -> None:
    config = copy.deepcopy(tiny_clip_config)
    *parents, key = where.split(".")
    target = config[parents[0]] if parents else config
    if value == "delete":
        del target[key]
    else:
        target[key] = value
    with pytest.raises(InputError, match=says):
        load_open_clip_checkpoint(write_tiny_clip(tiny_clip, config))


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"open_clip_config": None}, "Name the architecture too"),
        ({"open_clip_config": "{"}, "is no JSON"),
        ({"open_clip_config": "[1]"}, "an object"),
        ({"image_mean": "[0.5, 0.5]"}, "image_mean should be three numbers"),
        ({"image_mean": None}, "image_mean should be three numbers"),
        ({"image_mean": "[0.5, 0.5, NaN]"}, "image_mean should be three numbers"),
        ({"image_std": "[0.5, 0.5, 0]"}, "image_std should be three numbers above 0"),
        ({"image_size": "32"}, "image_size should be 64"),
    ],
)
def test_wrong_metadata(metadata: dict, says: str, tiny_clip, write_tiny_clip) -> None:
    with pytest.raises(InputError, match=says):
        load_open_clip_checkpoint(write_tiny_clip(tiny_clip, metadata=metadata))


def test_wrong_tensors(tiny_clip, write_tiny_clip) -> None:
    with pytest.raises(InputError, match=r"visual\.proj should be \(64, 48\), but is \(64, 47\)"):
        load_open_clip_checkpoint(write_tiny_clip(tiny_clip, tensors={"visual.proj": torch.zeros(64, 47)}))
    with pytest.raises(InputError, match="extra should be absent"):
        load_open_clip_checkpoint(write_tiny_clip(tiny_clip, tensors={"extra": torch.zeros(1)}))
    with pytest.raises(InputError, match="but is absent"):
        load_open_clip_checkpoint(write_tiny_clip(tiny_clip, tensors={"visual.proj": None}))
    with pytest.raises(InputError, match=r"not numbers in visual\.proj"):
        load_open_clip_checkpoint(write_tiny_clip(tiny_clip, tensors={"visual.proj": torch.full((64, 48), torch.nan)}))


def test_wrong_files(tiny_clip, write_tiny_clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny_clip(tiny_clip)
    with pytest.raises(BackendMissingError, match="there is no file"):
        load_open_clip_checkpoint(tmp_path / "missing.safetensors")
    for content in (b"", path.read_bytes()[:1000], path.read_bytes()[:-10], b"\x80\x04 a pickle"):
        broken = tmp_path / "broken.safetensors"
        broken.write_bytes(content)
        with pytest.raises(InputError, match="no complete safetensors file"):
            load_open_clip_checkpoint(broken)
    monkeypatch.setattr(open_clip_file, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="larger than"):
        load_open_clip_checkpoint(path)


def test_nothing_is_allocated_for_sizes_the_file_does_not_have(
    tiny_clip, tiny_clip_config, write_tiny_clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest sizes that pass the range check would need 40 GB; the shapes are compared without memory."""
    import open_clip

    devices = []
    genuine = open_clip.CLIP.__init__

    def spy(self, *args, **kwargs) -> None:
        devices.append(torch.empty(0).device.type)
        genuine(self, *args, **kwargs)

    monkeypatch.setattr(open_clip.CLIP, "__init__", spy)
    config = json.loads(json.dumps(tiny_clip_config))
    config["vision_cfg"].update(width=4096, layers=48)
    with pytest.raises(InputError, match="tensor"):
        load_open_clip_checkpoint(write_tiny_clip(tiny_clip, config))
    assert devices == ["meta"]
