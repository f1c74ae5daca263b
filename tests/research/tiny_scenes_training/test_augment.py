"""Noise, blur and shift against scipy and indexing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from research.tiny_scenes_training.augment import augment, gaussian_blur, shift_each


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(6, 3, 20, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.0])
def test_blur_is_scipys(images: torch.Tensor, sigma: float) -> None:
    reach = max(1, round(3 * sigma))
    expected = ndimage.gaussian_filter(
        images.numpy(), (0, 0, sigma, sigma), mode="nearest", radius=(0, 0, reach, reach)
    )
    assert np.allclose(gaussian_blur(images, sigma).numpy(), expected, atol=1e-5)


def test_shift_moves_each_picture_by_its_own_offset(images: torch.Tensor) -> None:
    offsets = torch.tensor([[0, 0], [1, 0], [0, 2], [-2, 1], [2, -2], [-1, -1]])
    moved = shift_each(images, offsets)
    for index, (down, right) in enumerate(offsets.tolist()):
        expected = ndimage.shift(images[index].numpy(), (0, down, right), order=0, mode="nearest")
        assert np.array_equal(moved[index].numpy(), expected)


def test_augment_is_seeded_bounded_and_leaves_its_input(images: torch.Tensor) -> None:
    before = images.clone()
    first, second = (augment(images, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(images, before)
    assert not torch.equal(first, augment(images, torch.Generator().manual_seed(8)))
    assert first.shape == images.shape
    assert 0 <= first.min() <= first.max() <= 1


def test_noise_stays_below_its_limit() -> None:
    grey = torch.full((400, 3, 16, 16), 0.5)
    changed = augment(grey, torch.Generator().manual_seed(1), noise=0.05)
    deviation = changed.flatten(1).std(1)
    assert deviation.max() < 0.055
    assert 0.4 < float((deviation > 1e-6).float().mean()) < 0.6
