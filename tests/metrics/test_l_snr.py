"""L-SNR: closed forms, the four demands (sharper up, blur down, noise down, flat finite), and outside references."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch

from budgetfusion_nodes.metrics.images import luminance
from budgetfusion_nodes.metrics.l_snr import DATA_RANGE, FLOOR, NAME, l_snr, laplacian_rms, noise_sigma

PICTURES = [
    *[
        ("scene", name)
        for name in ("disc", "small_disc", "gradient_disc", "stripes", "diagonal", "checks", "dots", "busy")
    ],
    *[("photo64", name) for name in ("astronaut", "camera", "chelsea", "coffee", "rocket", "motorcycle_left")],
    *[("photo256", name) for name in ("astronaut", "camera", "coffee", "chelsea", "rocket")],
    *[("photo", name) for name in ("astronaut", "camera", "coffee")],
]


@pytest.fixture(params=PICTURES, ids="-".join)
def picture(request, scene, photo) -> torch.Tensor:
    kind, name = request.param
    return scene(name) if kind == "scene" else photo(name, {"photo64": 64, "photo256": 256, "photo": None}[kind])


def db(x: torch.Tensor) -> float:
    return float(l_snr(x))


def test_blur_lowers_it_step_by_step(picture, blurred) -> None:
    values = [db(picture), *(db(blurred(picture, s)) for s in (0.5, 1.0, 2.0))]
    assert all(after < before for before, after in pairwise(values)), values


@pytest.mark.parametrize(
    ("name", "clean", "grainy"), [("disc", 1.593, -4.819), ("checks", 18.803, 12.309), ("busy", 18.432, 11.862)]
)
def test_these_values_belong_to_this_name(name: str, clean: float, grainy: float, scene, noisy) -> None:
    """Stored numbers are compared by backend name: whoever changes a value gives the measure another name."""
    assert NAME == "l_snr:laplacian-v2"
    assert db(scene(name)) == pytest.approx(clean, abs=0.02)
    assert db(noisy(scene(name), 0.03)) == pytest.approx(grainy, abs=0.02)


def test_noise_lowers_it_step_by_step(picture, noisy) -> None:
    values = [db(picture), *(db(noisy(picture, s)) for s in (0.01, 0.03, 0.1))]
    assert all(after < before for before, after in pairwise(values)), values


def test_sharpening_raises_it(picture, blurred) -> None:
    """Unsharp masking by half, and undoing half of a blur."""
    sharpened = (picture + 0.5 * (picture - blurred(picture, 1.0))).clamp(0, 1)
    assert db(sharpened) > db(picture)
    soft = blurred(picture, 1.0)
    assert db(0.5 * soft + 0.5 * picture) > db(soft)


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_flat_image_has_exactly_zero_db(level: float) -> None:
    assert db(torch.full((1, 3, 64, 64), level)) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("name", ["flat", "gradient"])
def test_noise_is_seen_on_a_picture_without_detail(name: str, scene, noisy) -> None:
    clean = scene(name)
    values = [db(clean), *(db(noisy(clean, s)) for s in (0.01, 0.03, 0.1))]
    assert values[0] == pytest.approx(0.0, abs=0.01)
    assert values[1] < -1
    assert values[1] > values[2] > values[3] >= DATA_RANGE[0]


def test_step_edge_equals_the_closed_form() -> None:
    """A step of height a has Laplacian +a and -a in two of W - 2 interior columns, and no noise."""
    a, width = 0.6, 80
    x = torch.full((1, 3, 64, width), 0.2)
    x[..., width // 2 :] += a
    power = 2 * a**2 / (width - 2) / 20
    assert float(laplacian_rms(luminance(x))) == pytest.approx(math.sqrt(power), rel=1e-5)
    assert float(noise_sigma(luminance(x))) == pytest.approx(0.0, abs=1e-6)
    assert db(x) == pytest.approx(10 * math.log10((power + FLOOR**2) / FLOOR**2), abs=1e-3)


def test_bounds_checkerboard_above_noise_below() -> None:
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2
    assert db(board.float().expand(1, 3, 64, 64)) == pytest.approx(DATA_RANGE[1], abs=0.01)
    white = (0.5 + 0.15 * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(3))).clamp(0, 1)
    assert DATA_RANGE[0] <= db(white.expand(1, 3, 64, 64)) < -9


@pytest.mark.parametrize(
    ("size", "tolerance"), [((64, 64), 0.08), ((96, 160), 0.05), ((256, 256), 0.04), ((512, 512), 0.02)]
)
def test_sigma_of_white_noise_is_unbiased(size: tuple[int, int], tolerance: float) -> None:
    n = max(4, 2**18 // (size[0] * size[1]))
    y = 0.5 + 0.03 * torch.randn(n, 1, *size, generator=torch.Generator().manual_seed(11))
    assert float(noise_sigma(y).mean()) == pytest.approx(0.03, rel=tolerance)
    assert float(laplacian_rms(y).mean()) == pytest.approx(0.03, rel=tolerance)  # unit noise gain


def test_the_estimate_spreads_as_little_as_said() -> None:
    """Over draws of the same noise on a flat-coloured 64 x 64 picture; TAU's description counts on 6 %."""
    clean = torch.zeros(400, 1, 64, 64)
    clean[:, :, 20:44, 20:44] = 0.5
    y = clean + 0.01 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(4))
    sigma = noise_sigma(y)
    assert float(sigma.mean()) == pytest.approx(0.01, rel=0.1)
    assert float(sigma.std() / sigma.mean()) < 0.06


@pytest.mark.parametrize("name", ["astronaut", "camera", "coffee"])
@pytest.mark.parametrize("sigma", [0.05, 0.1])
def test_sigma_agrees_with_scikit_image_on_noisy_photographs(name: str, sigma: float, photo) -> None:
    pytest.importorskip("pywt", reason="scikit-image's estimate_sigma needs PyWavelets")
    from skimage.restoration import estimate_sigma

    y = luminance(0.2 + 0.6 * photo(name))  # room for the noise, so that nothing is clipped
    y = y + sigma * torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    reference = float(estimate_sigma(y[0, 0].numpy()))
    assert float(noise_sigma(y)) == pytest.approx(reference, rel=0.06)
    assert float(noise_sigma(y)) == pytest.approx(sigma, rel=0.06)


def test_where_scikit_image_cannot_be_followed(scene) -> None:
    """It drops exact zeros before the median: a clean disc on black reads as noise, and a black image as NaN."""
    pytest.importorskip("pywt", reason="scikit-image's estimate_sigma needs PyWavelets")
    from skimage.restoration import estimate_sigma

    on_black = (luminance(scene("small_disc")) - 0.5).abs()
    assert float(np.asarray(estimate_sigma(on_black[0, 0].numpy()))) > 2 / 255
    assert float(noise_sigma(on_black)) < 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the median of nothing
        assert np.isnan(estimate_sigma(np.zeros((64, 64))))
    assert float(noise_sigma(torch.zeros(1, 1, 64, 64))) == 0.0


@pytest.mark.parametrize("name", ["stripes", "diagonal", "checks", "dots"])
def test_a_pattern_over_the_whole_picture_is_no_noise(name: str, scene, noisy) -> None:
    clean = luminance(scene(name))
    assert float(noise_sigma(clean)) < FLOOR
    assert float(noise_sigma(noisy(clean, 0.05))) == pytest.approx(0.05, rel=0.25)


@pytest.mark.parametrize(("name", "size"), [("astronaut", 256), ("coffee", 64)])
def test_a_shift_changes_it_little(name: str, size: int, photo) -> None:
    wide = photo(name, size + 8)
    assert db(wide[:, :, 4:-4, 4:-4]) == pytest.approx(db(wide[:, :, 5:-3, 6:-2]), abs=0.5)


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (64, 200), (133, 71), (512, 96)])
def test_any_size_is_finite_and_inside_the_bounds(size: tuple[int, int]) -> None:
    x = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(5))
    values = l_snr(x)
    assert values.shape == (3,)
    assert bool(((values >= DATA_RANGE[0] - 1e-3) & (values <= DATA_RANGE[1])).all())


def test_batch_equals_one_by_one_and_both_layouts_agree(pictures) -> None:
    together = l_snr(pictures)
    assert torch.allclose(together, torch.cat([l_snr(p[None]) for p in pictures]), atol=1e-3)
    assert torch.allclose(together, l_snr(pictures.permute(0, 2, 3, 1)), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype, pictures) -> None:
    """Equal to the float32 value of the very same pixels; bfloat16 pixels themselves carry rounding noise."""
    x = pictures.to(dtype)
    out = l_snr(x)
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(out.float(), l_snr(x.float()), atol=1e-2)


def test_device(device: str, pictures) -> None:
    out = l_snr(pictures.to(device))
    assert out.device.type == device
    assert torch.allclose(out.cpu(), l_snr(pictures), atol=0.01)
