"""Features of sets of pictures: closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from budgetfusion_nodes.metrics.picture_sets import BANDS, FLOOR, SIDE, low_pass, power_spectrum


def test_low_pass_is_the_mean_colour_of_each_part() -> None:
    x = torch.zeros(1, 3, 16, 16)
    x[:, 0, :2, :2] = torch.tensor([[0.2, 0.4], [0.6, 0.8]])
    found = low_pass(x).reshape(3, SIDE, SIDE)
    assert found[0, 0, 0] == pytest.approx(0.5)
    assert found.sum() == pytest.approx(0.5)


@pytest.mark.parametrize(("cycles", "band"), [(4, 4), (20, 20)])
def test_a_wave_has_its_power_in_the_band_of_its_frequency(cycles: int, band: int) -> None:
    """cos of amplitude .25 along x on 64 pixels: Parseval gives .25^2 / 2 of mean power, times the band's share."""
    wave = 0.5 + 0.25 * torch.cos(2 * math.pi * cycles * torch.arange(64) / 64)
    spectrum = power_spectrum(wave.expand(1, 3, 64, 64))[0]
    wanted = int(cycles / 64 * 2 * BANDS)
    assert spectrum.argmax() == wanted and wanted == band * BANDS // 32
    others = torch.cat([spectrum[:wanted], spectrum[wanted + 1 :]])
    assert torch.allclose(others, torch.full_like(others, math.log(FLOOR)), atol=1e-3)


def test_the_mean_colour_has_no_part_in_the_spectrum() -> None:
    x = torch.rand(2, 3, 24, 40) * 0.5
    assert torch.allclose(power_spectrum(x), power_spectrum(x + 0.25), atol=1e-3)
    assert torch.isfinite(power_spectrum(torch.zeros(1, 3, 16, 16))).all()
