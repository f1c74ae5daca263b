"""Shift-tolerant LPIPS: the authors' package is the outside reference, its weight files are the real ones."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from budgetfusion_nodes.core.errors import BackendMissingError, InputError
from budgetfusion_nodes.metrics import d_sim_st_lpips as st_lpips
from budgetfusion_nodes.metrics.d_sim import d_sim
from budgetfusion_nodes.metrics.d_sim_st_lpips import NETS, Blur, StLpipsBackend, find_st_lpips, load_st_lpips

PACKAGE_SAYS = {
    ("alex", 64, 64): (0.270099938, 0.010641416, 0.016259238),
    ("alex", 75, 93): (0.204126075, 0.009314877, 0.011188001),
    ("alex", 33, 40): (0.204732418, 0.014208752, 0.033835910),
    ("vgg", 64, 64): (0.190290451, 0.037425689, 0.018225254),
    ("vgg", 75, 93): (0.162119821, 0.036200620, 0.008358825),
    ("vgg", 33, 40): (0.170214385, 0.045880061, 0.032198600),
}
"""What `LPIPS(net, variant="shift_tolerant")` of stlpips-pytorch 0.0.2 said of the pictures below with a disc added,
moved by one pixel and darkened. Its own forward is not run here, as its blur may not be used commercially."""


def waves(height: int, width: int) -> Tensor:
    """[1, 3, H, W] by a formula that is the same everywhere."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    bands = [np.sin(0.31 * x + 0.07 * y), np.cos(0.11 * x * y / 7), np.sin(0.23 * y - 0.05 * x)]
    return torch.from_numpy(np.stack([0.5 + 0.4 * band for band in bands]))[None].float()


def with_disc(image: Tensor) -> Tensor:
    height, width = image.shape[2:]
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    inside = torch.from_numpy((x - 0.4 * width) ** 2 + (y - 0.6 * height) ** 2 < (0.2 * min(height, width)) ** 2)
    return torch.where(inside, torch.tensor([0.9, 0.2, 0.1])[:, None, None], image)


@pytest.fixture(params=NETS)
def backend(request: pytest.FixtureRequest) -> StLpipsBackend:
    return load_st_lpips(request.param)


@pytest.mark.parametrize(("net", "height", "width"), PACKAGE_SAYS)
def test_distances_are_the_packages(net: str, height: int, width: int) -> None:
    image = waves(height, width)
    changed = torch.cat([with_disc(image), image.roll(1, dims=3), 0.8 * image])
    distances = 1 - d_sim(changed, image, load_st_lpips(net))
    assert distances.tolist() == pytest.approx(PACKAGE_SAYS[net, height, width], abs=1e-6)


def test_only_the_weight_file_is_read_and_named_by_its_digest(backend: StLpipsBackend) -> None:
    net = backend.name.partition("#")[0].partition(":")[2]
    path = find_st_lpips(net)
    assert path is not None
    assert backend.name == f"st_lpips:{net}#{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
    assert st_lpips.PACKAGE not in sys.modules


@pytest.mark.parametrize("net", NETS)
def test_two_averages_are_the_blur_that_the_weights_were_trained_with(net: str) -> None:
    """The weight file carries the filter of each blur."""
    path = find_st_lpips(net)
    assert path is not None
    x = torch.rand(2, 64, 13, 18, generator=torch.Generator().manual_seed(0))
    filters = [v for key, v in torch.load(path, map_location="cpu", weights_only=True).items() if key.endswith("filt")]
    assert filters
    for kernel in filters:
        expected = conv2d(pad(x, (2, 2, 2, 2), mode="reflect"), kernel[:64], stride=2, groups=64)
        torch.testing.assert_close(Blur()(x), expected, atol=1e-6, rtol=1e-5)


def test_a_pixel_of_movement_is_less_than_a_slight_blur(backend: StLpipsBackend, photo, blurred) -> None:
    """What it is for; HaarPSI has it the other way round."""
    image = photo("astronaut")[:, :, :385, :385]
    still, moved = image[:, :, :-1, :-1], image[:, :, 1:, 1:]
    soft = blurred(still, 2.0)
    assert float(d_sim(moved, still, backend)) > float(d_sim(soft, still, backend))
    assert float(d_sim(moved, still, "haarpsi")) < float(d_sim(soft, still, "haarpsi"))


def test_bands_and_groups_of_channels_change_nothing(backend: StLpipsBackend, pictures, monkeypatch) -> None:
    whole = d_sim(pictures, pictures[:1], backend)
    monkeypatch.setattr(st_lpips, "BAND", 1000)
    monkeypatch.setattr(st_lpips, "CHANNELS_AT_ONCE", 5)
    assert torch.allclose(d_sim(pictures, pictures[:1], backend), whole, atol=1e-6)


def test_smallest_sides(backend: StLpipsBackend) -> None:
    side = backend.min_side
    for more in range(6):
        x = torch.rand(1, 3, side + more, side, generator=torch.Generator().manual_seed(more))
        assert bool(torch.isfinite(d_sim(x, x.flip(3), backend)))
    with torch.no_grad(), pytest.raises(RuntimeError):
        backend.prepare(torch.rand(1, 3, side - 1, side - 1))
    with pytest.raises(InputError, match="too small for st_lpips"):
        d_sim(torch.rand(1, 3, side - 1, 64), torch.rand(1, 3, side - 1, 64), backend)


@pytest.mark.parametrize("content", ["garbage", "foreign", "other network", "nan"])
def test_damaged_and_foreign_weights_are_refused(content: str, tmp_path: Path) -> None:
    path, alex, vgg = tmp_path / "weights.pth", find_st_lpips("alex"), find_st_lpips("vgg")
    assert alex is not None
    assert vgg is not None
    if content == "garbage":
        path.write_bytes(b"not a checkpoint")
    elif content == "foreign":
        torch.save({"weight": torch.zeros(3)}, path)
    elif content == "other network":
        path = vgg
    else:
        state = torch.load(alex, map_location="cpu", weights_only=True)
        state["lin0.model.1.weight"][0, 0] = torch.nan
        torch.save(state, path)
    with pytest.raises(InputError, match=r"Replace the file|Install stlpips-pytorch again"):
        StLpipsBackend.from_file(path, "alex")


def test_what_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="Choose one of alex, vgg"):
        load_st_lpips("squeeze")
    monkeypatch.setattr(st_lpips, "find_st_lpips", lambda net: None)
    with pytest.raises(BackendMissingError, match="no weights of the vgg network"):
        load_st_lpips("vgg")
