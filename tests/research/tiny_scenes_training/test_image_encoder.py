"""The image encoder: its tokens under open_clip's pooling, its batches, its file, its retrieval."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from budgetfusion_nodes.metrics.encoders import OpenClipImageEncoder
from budgetfusion_nodes.metrics.open_clip_file import load_open_clip_checkpoint
from budgetfusion_nodes.tiny_scenes.captions import MAX_TOKENS, describe, vocabulary
from budgetfusion_nodes.tiny_scenes.encoder_text import tokenize
from budgetfusion_nodes.tiny_scenes.scenes import is_held_out, sample_scenes
from budgetfusion_nodes.tiny_scenes.tokenizer import WordTokenizer
from research.tiny_scenes_training.commands import ENCODER
from research.tiny_scenes_training.data import RenderedScenes, attributes_of
from research.tiny_scenes_training.image_encoder import (
    CONFIG,
    EncoderTrainer,
    build_model,
    group_by_background,
    held_out_pairs,
    normalise,
    retrieval,
    save_encoder,
)
from research.tiny_scenes_training.renderer import render
from research.tiny_scenes_training.settings import EncoderSettings


@pytest.fixture(scope="module")
def data() -> RenderedScenes:
    scenes, rng = sample_scenes(48, 1, held_out=False), np.random.default_rng(0)
    tokenizer = WordTokenizer()
    tokens = np.asarray([[tokenizer.padded(describe(s, rng)) for _ in range(4)] for s in scenes], np.uint8)
    images = np.stack([render(scene, rng) for scene in scenes])
    return RenderedScenes(images, tokens, np.stack([attributes_of(scene) for scene in scenes]))


def test_text_tower_reads_the_first_end_token() -> None:
    """open_clip pools at the highest id; what follows the caption's end must not matter, its last word must."""
    torch.manual_seed(0)
    model = build_model().eval()
    tokens = tokenize(["a red star", "a red ring", "a red star with nothing on it"])
    assert tokens.shape == (3, MAX_TOKENS)
    assert tokens.max() == len(vocabulary()) == CONFIG["text_cfg"]["vocab_size"] - 1
    assert tokens.argmax(1).tolist() == [4, 4, 8]  # start, words, end
    changed = tokens.clone()
    changed[:, 20:] = vocabulary().index("blue")
    with torch.no_grad():
        features, same = model.encode_text(tokens), model.encode_text(changed)
    assert torch.allclose(features, same, atol=1e-5)
    assert (features[0] - features[1]).abs().max() > 1e-3


def test_groups_share_the_background_caption(data: RenderedScenes) -> None:
    scenes = sample_scenes(400, 5, held_out=False)
    groups = group_by_background(np.stack([attributes_of(scene) for scene in scenes]))
    for index, scene in enumerate(scenes):
        expected = [i for i, other in enumerate(scenes) if other.background.key == scene.background.key]
        assert groups[index].tolist() == expected


def test_half_of_a_batch_shares_few_backgrounds(data: RenderedScenes, tmp_path: Path) -> None:
    settings = EncoderSettings(batch=16, shared_backgrounds=2)
    trainer = EncoderTrainer(tmp_path, settings, data)
    index = trainer.indices(torch.Generator().manual_seed(0))
    assert len(index) == 16
    shared = [tuple(trainer.by_background[i]) for i in index[8:]]
    assert len(set(shared)) <= 2


def test_stopped_training_goes_on_as_if_it_had_not_stopped(data: RenderedScenes, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    settings = EncoderSettings(steps=4, batch=8, warmup=1, shared_backgrounds=2)
    whole = EncoderTrainer(tmp_path / "whole", settings, data)
    whole.run()
    EncoderTrainer(tmp_path / "parts", settings, data).run(limit=2)
    part = EncoderTrainer(tmp_path / "parts", settings, data)
    part.run(limit=2)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, part.model.state_dict()[key]), key
    with pytest.raises(ValueError, match="other settings"):
        EncoderTrainer(tmp_path / "parts", replace(settings, seed=9), data).run()


def test_file_is_what_the_metric_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model().eval()
    path = tmp_path / "encoder.safetensors"
    save_encoder(model, path, {"note": "test"})
    images = torch.rand(5, 3, 64, 64)
    with torch.no_grad():
        expected = model.encode_image(normalise(images))
        found = OpenClipImageEncoder.from_checkpoint(path).encode(images)
    assert torch.allclose(found, expected, atol=0.02 * float(expected.abs().max()))


class Fake:
    """Embeds picture i and caption i as given rows."""

    def __init__(self, images: torch.Tensor, texts: torch.Tensor) -> None:
        self.images, self.texts = images, texts

    def encode_image(self, images: torch.Tensor, normalize: bool) -> torch.Tensor:
        return self.images

    def encode_text(self, tokens: torch.Tensor, normalize: bool) -> torch.Tensor:
        return self.texts


def test_retrieval_of_known_embeddings() -> None:
    own = torch.eye(20)
    assert asdict(retrieval(Fake(own, own), 20)) == {
        "scenes": 20,
        **{f"{a}_to_{b}_top{k}": 1.0 for a, b in (("image", "text"), ("text", "image")) for k in (1, 5)},
    }
    shifted = retrieval(Fake(own, own.roll(1, 0)), 20)  # its neighbour is always better
    assert shifted.image_to_text_top1 == shifted.text_to_image_top1 == 0.0
    constant = retrieval(Fake(torch.ones(20, 4), torch.ones(20, 4)), 20)  # ties are no hits
    assert constant.image_to_text_top5 == 0.0


def test_pairs_are_held_out() -> None:
    images, texts = held_out_pairs(12, 3)
    assert images.shape == (12, 3, 64, 64)
    assert len(set(texts)) == 12
    assert all(is_held_out(scene) for scene in sample_scenes(12, 3, held_out=True))


def test_shipped_encoder_is_small_documented_and_finds_captions() -> None:
    torch.set_num_threads(1)
    provenance = json.loads(ENCODER.with_suffix(".json").read_text())
    assert ENCODER.stat().st_size <= 8_000_000
    assert provenance["settings"] == asdict(EncoderSettings())
    model = load_open_clip_checkpoint(ENCODER).model
    measured = asdict(retrieval(model))
    assert measured == pytest.approx(provenance["retrieval"], abs=0.011)  # a pair or two may flip on another CPU
    assert measured["image_to_text_top1"] >= 0.85
    assert measured["text_to_image_top5"] >= 0.97
