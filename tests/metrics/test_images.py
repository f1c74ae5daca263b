from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.metrics.images import MIN_SIDE, OVERSHOOT, luminance, resize, to_bchw, to_pair


def test_both_layouts_give_the_same_bchw() -> None:
    bchw = torch.rand(2, 3, 24, 40)
    assert torch.equal(to_bchw(bchw), bchw)
    assert torch.equal(to_bchw(bchw.permute(0, 2, 3, 1)), bchw)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_types_are_widened_and_double_is_kept(given: torch.dtype, kept: torch.dtype) -> None:
    x = torch.rand(1, 3, 16, 16).to(given)
    assert to_bchw(x).dtype == kept
    assert torch.equal(to_bchw(x), x.to(kept))


def test_small_overshoot_is_clamped_without_touching_the_input() -> None:
    x = torch.full((1, 3, 16, 16), 0.5)
    x[0, 0, 0, 0], x[0, 1, 1, 1] = 1 + 0.9 * OVERSHOOT, -0.9 * OVERSHOOT
    out = to_bchw(x)
    assert float(out.max()) == 1.0
    assert float(out.min()) == 0.0
    assert float(x.max()) > 1.0


def with_value(value: float) -> torch.Tensor:
    x = torch.rand(1, 3, 16, 16)
    x[0, 0, 3, 3] = value
    return x


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.zeros((1, 16, 16, 3)), "expected an image tensor, got ndarray"),
        (torch.rand(16, 16, 3), r"image\[None\]"),
        (torch.rand(0, 16, 16, 3), "the batch is empty"),
        (torch.zeros(1, 16, 16, 3, dtype=torch.uint8), r"/ 255"),
        (torch.rand(1, 16, 16, 4), "alpha"),
        (torch.rand(1, 1, 16, 16), "grey"),
        (torch.rand(1, 16, 64, 64), "VAE Decode"),
        (torch.rand(1, 3, MIN_SIDE - 1, 64), "64 x 15 pixels is too small"),
        (with_value(math.nan), "not numbers"),
        (with_value(math.inf), "not numbers"),
        (with_value(-math.inf), "not numbers"),
        (with_value(1 + 2 * OVERSHOOT), r"expected values in \[0, 1\]"),
        (255 * torch.rand(1, 16, 16, 3), "255"),
        (2 * torch.rand(1, 16, 16, 3) - 1, r"\(image \+ 1\) / 2"),
    ],
)
def test_what_is_wrong_and_the_remedy_are_named(images: torch.Tensor, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        to_bchw(images, "my picture")
    assert str(caught.value).startswith("my picture")


def test_a_nan_in_half_precision_is_found() -> None:
    with pytest.raises(InputError, match="not numbers"):
        to_bchw(with_value(math.nan).half())


def test_pair_names_both_sizes_and_checks_counts() -> None:
    with pytest.raises(InputError, match=r"64 x 32 pixels but reference is 32 x 32"):
        to_pair(torch.rand(1, 32, 64, 3), torch.rand(1, 32, 32, 3))
    with pytest.raises(InputError, match=r"expected 1 image or as many as images \(3\), got 2"):
        to_pair(torch.rand(3, 32, 32, 3), torch.rand(2, 32, 32, 3))
    x, y = to_pair(torch.rand(3, 32, 32, 3).double(), torch.rand(1, 3, 32, 32).half())
    assert (x.shape[0], y.shape[0]) == (3, 1)
    assert x.dtype == y.dtype == torch.float64


def test_luminance_of_white_is_one_and_of_green_is_its_weight() -> None:
    x = torch.zeros(2, 3, 16, 16)
    x[0], x[1, 1] = 1.0, 1.0
    assert torch.allclose(luminance(x).mean(dim=(1, 2, 3)), torch.tensor([1.0, 0.587]))


def test_resize_keeps_a_fitting_image_and_does_not_fold_fine_stripes() -> None:
    x = torch.rand(1, 3, 64, 64)
    assert resize(x, 64) is x
    stripes = torch.zeros(1, 3, 256, 320)
    stripes[..., ::2] = 1.0  # far above the Nyquist frequency of the small image
    small = resize(stripes, 64)[..., 2:-2]
    assert small.shape[2:] == (64, 60)
    assert float((small - 0.5).abs().max()) < 0.05
