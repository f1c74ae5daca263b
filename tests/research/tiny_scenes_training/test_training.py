"""The generator's training: its loss in closed form, the host's noise schedule, and resuming after a kill."""

from __future__ import annotations

import importlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from budgetfusion_nodes.tiny_scenes.architecture import discrete_sigmas
from budgetfusion_nodes.tiny_scenes.tokenizer import WordTokenizer
from research.tiny_scenes_training.data import attribute_names, rendered_scenes
from research.tiny_scenes_training.train import (
    WEIGHT_FLOOR,
    Trainer,
    TrainSettings,
    diffusion_loss,
    learning_rate,
    noise_level_weights,
    read_settings,
)
from research.tiny_scenes_training.training_model import TinyScenesTrainingModel

SETTINGS = TrainSettings(steps=4, batch=2, warmup=1, decay=2, scenes=64, text_steps=2, text_batch=4)


class Stub(torch.nn.Module):
    """Records what the UNet is asked and answers with `answer(x)`."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer, self.asked = answer, []

    def encode(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tokens, tokens

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, context: Any, pooled: Any) -> torch.Tensor:
        self.asked.append((x, timestep))
        return self.answer(x)


def test_loss_is_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 8, 8, generator=generator) * 2 - 1
    noise = torch.randn(3, 3, 8, 8, generator=generator)
    sigmas, timestep = discrete_sigmas(), torch.tensor([0, 400, 999])
    tokens = torch.zeros(3, 48, dtype=torch.long)
    sigma = sigmas[timestep].double().view(-1, 1, 1, 1)
    alpha = 1 / torch.sqrt(1 + sigma**2)
    velocity = alpha * noise - sigma * alpha * images
    variance = sigma**2 / (1 + sigma**2)
    weight = variance / (variance + WEIGHT_FLOOR**2)  # 1 where there is noise, small where there is next to none
    silent = Stub(torch.zeros_like)
    loss = diffusion_loss(silent, images, tokens, timestep, sigmas, noise)  # pyright: ignore[reportArgumentType]
    assert float(loss) == pytest.approx(float((weight * velocity**2).mean()), rel=1e-5)
    ((asked, asked_timestep),) = silent.asked
    assert asked_timestep.tolist() == [0.0, 400.0, 999.0]
    # a perfect answer has no loss, and the clean picture follows from it: x0 = alpha x - sigma alpha v
    perfect = Stub(lambda x: velocity.float())
    assert float(diffusion_loss(perfect, images, tokens, timestep, sigmas, noise)) < 1e-9  # pyright: ignore[reportArgumentType]
    assert torch.allclose(alpha * asked - sigma * alpha * velocity, images.double(), atol=1e-4)


def test_noise_levels_are_probabilities_that_leave_none_out() -> None:
    sigmas = discrete_sigmas()
    weights = noise_level_weights(sigmas, TrainSettings())
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(weights.min()) >= 0.15 / 1000
    log_sigma = sigmas.log()
    mean = float((weights * log_sigma).sum())
    assert 0 < mean < 1
    decided = float(weights[(sigmas > 1.5) & (sigmas < 12)].sum())
    assert decided == pytest.approx(0.53, abs=0.05)


def test_learning_rate_rises_stays_and_falls_to_zero() -> None:
    settings = TrainSettings(steps=100, warmup=10, decay=40, learning_rate=1.0)
    rates = [learning_rate(step, settings) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10:61] == [1.0] * 51
    assert rates[80] == pytest.approx(0.5)
    assert rates[100] == 0.0


def test_settings_from_json() -> None:
    assert read_settings('{"steps": 7}') == TrainSettings(steps=7)
    assert read_settings(None) == TrainSettings()
    with pytest.raises(ValueError, match=r"stepz.*known"):
        read_settings('{"stepz": 7}')


@pytest.fixture(scope="module")
def scenes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `Trainer` wants it, with its scenes rendered."""
    folder = tmp_path_factory.mktemp("train")
    rendered_scenes(folder / "scenes-64-1", 64, 1, workers=1, chunk=1000)
    return folder


def test_rendered_scenes_are_kept_and_consistent(scenes_folder: Path) -> None:
    stamp = scenes_folder / "scenes-64-1" / "images.npy"
    made = stamp.stat().st_mtime_ns
    data = rendered_scenes(scenes_folder / "scenes-64-1", 64, 1)
    assert stamp.stat().st_mtime_ns == made
    assert data.images.shape == (64, 64, 64, 3)
    assert data.tokens.shape == (64, 4, 48)
    names, tokenizer = attribute_names(), WordTokenizer()
    for tokens, attributes in zip(data.tokens, data.attributes, strict=True):
        base = next(
            name.split()[1] for name, on in zip(names, attributes, strict=True) if on and name.startswith("base")
        )
        assert all(base in tokenizer.decode(phrase.tolist()).split() for phrase in tokens)
    # pictures and captions belong together: a plain scene without objects is one colour
    empty = [i for i, row in enumerate(data.attributes) if row.sum() == 2]
    for i in empty:
        assert np.ptp(data.images[i].reshape(-1, 3), axis=0).max() == 0


class Killed(Exception):
    pass


def test_killed_training_ends_with_the_weights_of_an_uninterrupted_one(
    comfy: Path, scenes_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in step 4, one step after the state was last saved."""
    folders = tmp_path / "whole", tmp_path / "killed"
    for folder in folders:
        shutil.copytree(scenes_folder, folder)
    whole = Trainer(folders[0], SETTINGS)
    whole.run()
    step = Trainer.train_step
    with monkeypatch.context() as patch:

        def dying(self: Trainer) -> float:
            if self.step == 3:
                raise Killed
            return step(self)

        patch.setattr(Trainer, "train_step", dying)
        with pytest.raises(Killed):
            Trainer(folders[1], SETTINGS).run(save_every=2)
    resumed = Trainer(folders[1], SETTINGS)
    assert resumed.step == 0  # until it runs
    path = resumed.run(save_every=2)
    assert resumed.step == 4
    assert path.is_file()
    assert path.with_suffix(".json").is_file()
    for kind in ("model", "ema"):
        expected, found = getattr(whole, kind).state_dict(), getattr(resumed, kind).state_dict()
        for key, value in expected.items():
            assert torch.allclose(value, found[key], atol=1e-6, rtol=0), (kind, key)


def test_other_settings_do_not_resume_but_a_longer_run_does(comfy: Path, scenes_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(scenes_folder, folder)
    Trainer(folder, replace(SETTINGS, steps=1)).run()
    with pytest.raises(ValueError, match=r"batch 2 there, 3 now"):
        Trainer(folder, replace(SETTINGS, batch=3)).run()
    longer = Trainer(folder, replace(SETTINGS, steps=2, decay=1))
    longer.run()
    assert longer.step == 2


def test_lone_share_is_the_share_of_pictures_with_one_large_enough_object(comfy: Path, scenes_folder: Path) -> None:
    lone_pictures = {
        picture.tobytes()
        for picture, row in zip(*lone_and_attributes(scenes_folder), strict=True)
        if is_lone(dict(zip(attribute_names(), row.tolist(), strict=True)))
    }
    assert 5 < len(lone_pictures) < 40
    shares = []
    for share in (0.0, 1.0):
        trainer = Trainer(scenes_folder, replace(SETTINGS, lone_share=share, batch=64))
        images = trainer.batch(0)[0].add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
        shares.append(np.mean([image.tobytes() in lone_pictures for image in images]))
    assert shares[1] == 1.0
    assert shares[0] < 0.7


def lone_and_attributes(folder: Path) -> tuple[Any, Any]:
    data = rendered_scenes(folder / "scenes-64-1", 64, 1)
    return data.images, data.attributes


def is_lone(said: dict[str, int]) -> bool:
    """One shape in one colour and one size, medium or large, and once. Written apart from `classifier.labels`."""
    true = [name for name, on in said.items() if on and name.split()[0] not in ("pattern", "base", "second", "scale")]
    return (
        len(true) == 4
        and {n.split()[0] for n in true} & {"medium", "large"} != set()
        and any(n.split()[0] == "1" for n in true)
    )


def test_unet_answers_with_v_of_what_it_draws(comfy: Path) -> None:
    """Fresh weights draw nothing; the pixel head's bias then draws one colour. v = (alpha x - x0) / (sigma alpha)."""
    torch.manual_seed(0)
    unet: Any = TinyScenesTrainingModel().unet.eval()
    x, pooled, context = torch.randn(2, 3, 64, 64), torch.randn(2, 128), torch.randn(2, 48, 128)
    timestep = torch.tensor([100.0, 700.0])
    sigma = discrete_sigmas()[timestep.long()].view(-1, 1, 1, 1)
    alpha = (1 + sigma**2).rsqrt()
    for colour in ((0.0, 0.0, 0.0), (0.5, -0.25, 1.0)):
        with torch.no_grad():
            unet.pixel_head[-1].bias.copy_(torch.tensor(colour))
            found = unet(x, timestep, context=context, y=pooled)
        expected = (alpha * x - torch.tensor(colour).view(1, 3, 1, 1)) / (sigma * alpha)
        assert torch.allclose(found, expected, atol=1e-4, rtol=1e-4)


def test_schedule_is_the_hosts(comfy: Path) -> None:
    host = importlib.import_module("comfy.model_sampling").ModelSamplingDiscrete()
    assert torch.allclose(discrete_sigmas(), host.sigmas, rtol=1e-4)
