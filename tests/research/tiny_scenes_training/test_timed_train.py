"""The GPU training on a CPU in small: Muon against PyTorch's, the flow loss in closed form, resuming, the clock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from research.tiny_scenes_training import flow_model, timed_train
from research.tiny_scenes_training.muon import BatchedMuon
from research.tiny_scenes_training.timed_train import TimedSettings, TimedTrainer, draw_sigmas, flow_loss

SETTINGS = TimedSettings(
    seconds=1e9, batch=2, scenes=64, large_scenes=16, large_every=2, warmup=2, compile=False, seed=4
)


def test_batched_muon_is_pytorchs() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(48, 16), (16, 48), (48, 16), (32, 32)]
    ours, theirs = ([torch.nn.Parameter(torch.full(shape, 0.5)) for shape in shapes] for _ in range(2))
    batched = BatchedMuon(ours, lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        batched.step()
        reference.step()
    for mine, other in zip(ours, theirs, strict=True):  # bf16 inside, in another order of sums
        moved = (other - 0.5).abs().max()
        assert (mine - other).abs().max() < 0.02 * moved


def test_batched_muon_goes_on_from_its_state() -> None:
    def made() -> tuple[torch.nn.Parameter, BatchedMuon]:
        parameter = torch.nn.Parameter(torch.zeros(16, 8))
        return parameter, BatchedMuon([parameter], lr=0.1, weight_decay=0.0)

    gradients = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(1))
    (whole, one), (first, two), (second, three) = made(), made(), made()
    for gradient in gradients:
        whole.grad = gradient.clone()
        one.step()
    first.grad = gradients[0].clone()
    two.step()
    second.data.copy_(first.data)
    three.load_state_dict(two.state_dict())
    second.grad = gradients[1].clone()
    three.step()
    assert torch.equal(second, whole)


class Stub(torch.nn.Module):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer, self.asked = answer, []

    def encode(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tokens, tokens

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, context: Any, pooled: Any) -> torch.Tensor:
        self.asked.append((x, sigma))
        return self.answer(x)


def test_flow_loss_is_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    images, noise = (torch.randn(3, 3, 8, 8, generator=generator) for _ in range(2))
    sigma, tokens = torch.tensor([0.1, 0.6, 1.0]), torch.zeros(3, 48, dtype=torch.long)
    silent = Stub(torch.zeros_like)
    assert float(flow_loss(silent, images, tokens, sigma, noise)) == pytest.approx(
        float(((noise - images) ** 2).mean()), rel=1e-6
    )
    ((asked, _),) = silent.asked
    assert torch.allclose(asked[2], noise[2])
    # a perfect answer has no loss and gives back the picture: x0 = x - sigma v
    perfect = Stub(lambda x: noise - images)
    assert float(flow_loss(perfect, images, tokens, sigma, noise)) == 0
    assert torch.allclose(asked - sigma.view(-1, 1, 1, 1) * (noise - images), images, atol=1e-6)


def test_noise_levels_have_the_shifted_median() -> None:
    """The median of a logit-normal t is 1/2, which a shift s moves to s / (1 + s)."""
    drawn = draw_sigmas(40_000, 0.0, torch.Generator().manual_seed(2), shift=3.0)
    assert float(drawn.median()) == pytest.approx(0.75, abs=0.01)
    assert 0 < float(drawn.min()) < float(drawn.max()) < 1
    uniform = draw_sigmas(40_000, 1.0, torch.Generator().manual_seed(2))
    assert np.quantile(uniform.numpy(), [0.1, 0.9]) == pytest.approx([0.1, 0.9], abs=0.01)


@pytest.fixture
def make_trainer(comfy: Path, tmp_path: Path) -> Any:
    """`make_trainer(folder, settings)` around a tiny Flow model; every call starts from the same weights."""
    data = timed_train.prepare_data(tmp_path / "data", SETTINGS, workers=1)

    def make(folder: str, settings: TimedSettings = SETTINGS) -> TimedTrainer:
        torch.manual_seed(0)
        model = flow_model.FlowTrainingModel(width=64, blocks=1)
        loss = timed_train.flow_objective(settings)
        return TimedTrainer(tmp_path / folder, settings, model, loss, data, torch.device("cpu"))

    return make


def weights(trainer: TimedTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_a_resumed_run_is_the_same_run(make_trainer: Any) -> None:
    whole, stopped = make_trainer("whole"), make_trainer("cut")
    start = weights(whole).clone()
    for _ in range(4):
        whole.train_step()
    for _ in range(2):
        stopped.train_step()
    stopped._save_state()
    resumed = make_trainer("cut")
    resumed._resume()
    assert resumed.step == 2
    for _ in range(2):
        resumed.train_step()
    assert not torch.equal(weights(whole), start)
    assert torch.equal(weights(whole), weights(resumed))


def test_the_clock_ends_the_training_and_the_rate(make_trainer: Any) -> None:
    trainer = make_trainer("timed", replace(SETTINGS, seconds=1.0, learning_rate=0.01, decay_share=0.5))
    trainer.step = 100
    for elapsed, expected in ((0.0, 0.01), (0.5, 0.01), (0.75, 0.005), (1.0, 0.0), (1.2, 0.0)):
        trainer.elapsed = elapsed
        assert trainer.learning_rate() == pytest.approx(expected)
    trainer.step, trainer.elapsed = 0, 0.0
    trainer.run()
    assert trainer.step >= 1
    assert trainer.elapsed >= 1.0
    assert trainer.provenance()["steps_done"] == trainer.step
    assert not make_trainer("timed", replace(SETTINGS, seconds=1.0, learning_rate=0.01, decay_share=0.5)).step


def test_held_out_scenes_and_sizes(make_trainer: Any) -> None:
    trainer = make_trainer("sizes")
    for size in (64, 128):
        images, tokens = trainer.data[size].batch(3, SETTINGS, torch.Generator().manual_seed(0))
        assert images.shape == (3, 3, size, size)
        assert tokens.shape == (3, 48)
        assert -1 <= float(images.min()) < float(images.max()) <= 1
