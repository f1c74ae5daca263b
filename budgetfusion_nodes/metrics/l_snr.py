"""L-SNR: how much detail an image holds over its noise, in dB, without a reference image.

    L-SNR = 10 log10( (S^2 + c^2) / (N^2 + c^2) ),   S^2 = max(L^2 - N^2, TAU L^2)

L is the RMS Laplacian response of luminance, N the noise level, c a floor; all three in units of luminance in [0, 1].
The Laplacian is scaled to unit noise gain, so white noise of deviation s gives L = s, and S is what is left of L when
the noise's own share is taken out. A flat image gives exactly 0 dB, an image of noise alone tends to -10 dB;
photographs lie at 5 to 15 dB, sharp patterned scenes reach 25 dB. The formula of the BudgetFusion paper (arXiv
2412.05780) is not public: this is a choice of this project.

Noise estimate. Donoho's (Donoho & Johnstone 1994, Biometrika 81:425, section 4.2), the median absolute deviation of
the finest diagonal wavelet band / 0.6745, is the textbook choice. It fails here. Tried on 58 pictures (40 rendered
64 x 64 scenes, half of them without antialiasing; 6 photographs of scikit-image at 64, 256 and full size), each with
three blurs, three noises and a sharpening, which should move the ratio down, down and up: the plain ratio L / MAD over
the quantisation noise moves the wrong way in 29 pictures, in 16 of them under a blur, because

- a fine pattern over the whole picture (diagonal stripes, dots) counts as noise, so a blur "removes noise", and the
  ratio rises by more than 10 dB;
- texture of photographs counts as noise, with the same result;
- noise on a flat picture raises the Laplacian too, so the ratio rises from its floor instead of falling.

scikit-image's `estimate_sigma` (db2 wavelet) also drops coefficients that are exactly zero, which are most of them in a
flat-coloured scene, if rounding leaves them at zero: one clean scene with a disc reads as 0.025 in float32 and as 6e-34
in float64, and a black image as NaN. With all numerical zeros dropped, as meant there, 42 of the 58 pictures fail.

Noise is dense in every basis, while content is sparse in space (edges with flat areas between) or in frequency
(patterns). So N is the smaller of two robust estimates, each an upper bound that content can only raise:

- space: the mean of the smaller two thirds of the absolute Haar diagonal band in 8 x 8 windows (the rest may be an
  edge's), averaged over the flattest tenth of the windows;
- frequency: the mean power of the windowed Fourier transform between its quartiles, where both frequencies exceed half
  of Nyquist; the lines of a pattern are few among those bins.

Both are scaled to be unbiased on white Gaussian noise. Known limit: noise that is missing from a tenth or more of the
picture (clipped white or black areas, letterbox bars) is not seen.

Trimmed means and not medians: the first version (MAD in each window, first decile of the windows, median power) jumped
from one order statistic to the next. Of 800 Tiny Scenes renders, those of 22, 29 and 38 steps whose HaarPSI distance to
the 50-step picture is below 2 % of its scale were 6.5, 6.6 and 5.8 % of the L-SNR scale apart (ninth decile), which
decided many a plan at quality .95; now 4.8, 4.5 and 4.7 %. Means over whole windows get 3.5 %, but then the detail of
a busy scene without a flat window counts as noise.

Floor. c is three 8-bit steps, not the quantisation noise 1/255/sqrt(12), which it contains: with that one, a blur
lowers the noise estimate of a clean photograph faster than its detail. With the first version's estimate 11 of the 58
pictures failed with that floor, 2 with one step, and 1 with two steps. The third step, of 1 % of the range and hardly
visible from pixel to pixel, brings the like renders above from 4.7 to 3.8 % of the scale.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d, unfold

from .images import luminance, to_bchw

NAME = "l_snr:laplacian-v2"
HIGHER_IS_BETTER = True
BYTES_PER_PIXEL = 120
"""Working memory for one picture, in bytes per pixel."""

FLOOR = 3.0 / 255.0
"""c: detail and noise below three 8-bit steps count as none."""

TAU = 0.1
"""Least share of the Laplacian power that counts as detail. The noise power is known to 12 % (its deviation to 6 %,
at 64 x 64), so a smaller remainder is no evidence of detail. It bounds L-SNR below by -10 dB."""

DATA_RANGE = (-10.0, 20.0 * math.log10(math.sqrt(0.8 + FLOOR**2) / FLOOR))
"""Bounds in dB; the upper one (37.6) is a one-pixel black and white checkerboard, whose L is sqrt(0.8)."""

WINDOW = 8
MAX_WINDOWS_PER_SIDE = 64
DECILE = 0.1
KEPT = 2 / 3
SPACE_GAIN = 0.3372  # that average for unit white noise, 640 simulated 64 x 64 fields
BETWEEN_QUARTILES = 1.0 + 0.5 * math.log(0.25) - 1.5 * math.log(0.75)  # mean of the exponential law's middle half


def l_snr(images: Tensor) -> Tensor:
    """L-SNR `[B]` in dB of `[B, H, W, 3]` or `[B, 3, H, W]` in [0, 1]; formula and sources at the module's head."""
    y = luminance(to_bchw(images))
    detail_power = laplacian_rms(y).square()
    noise_power = torch.minimum(noise_sigma(y).square(), detail_power)  # the noise alone makes no more than all of L
    signal_power = torch.maximum(detail_power - noise_power, TAU * detail_power)
    floor_power = FLOOR**2
    return 10.0 * torch.log10((signal_power + floor_power) / (noise_power + floor_power))


def laplacian_rms(y: Tensor) -> Tensor:
    """RMS `[B]` of the 5-point Laplacian of luminance `[B, 1, H, W]`, interior pixels, scaled to unit noise gain."""
    kernel = y.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]) / math.sqrt(20.0)
    return conv2d(y, kernel[None, None]).square().mean(dim=(1, 2, 3)).sqrt()


def noise_sigma(y: Tensor) -> Tensor:
    """Deviation `[B]` of the noise of luminance `[B, 1, H, W]`, sides >= 16: the smaller of two robust estimates."""
    return torch.minimum(_sigma_in_space(y), _sigma_in_frequency(y))


def _sigma_in_space(y: Tensor) -> Tensor:
    # The undecimated band has four times the samples of the wavelet transform and does not change under a shift.
    haar = y.new_tensor([[1.0, -1.0], [-1.0, 1.0]]) / 2.0
    diagonal = conv2d(y, haar[None, None]).abs()
    stride = max(WINDOW // 2, min(diagonal.shape[2:]) // MAX_WINDOWS_PER_SIDE)
    windows = unfold(diagonal, WINDOW, stride=stride)  # [B, 64, n]
    smaller = windows.sort(dim=1).values[:, : round(KEPT * windows.shape[1])]  # the rest may be an edge's
    level = smaller.mean(dim=1)  # [B, n]
    flattest = level.topk(max(1, round(DECILE * level.shape[1])), dim=1, largest=False).values
    return flattest.mean(dim=1) / SPACE_GAIN


def _sigma_in_frequency(y: Tensor) -> Tensor:
    height, width = y.shape[2:]
    options = {"periodic": False, "dtype": y.dtype, "device": y.device}
    # The Hann window keeps the jump between opposite borders from leaking into the high frequencies.
    window = torch.hann_window(height, **options)[:, None] * torch.hann_window(width, **options)
    centred = y[:, 0] - y.mean(dim=(2, 3))[:, 0, None, None]
    power = torch.fft.rfft2(centred * window).abs().square() / window.square().sum()  # noise: mean sigma^2, exponential
    rows = torch.fft.fftfreq(height, device=y.device).abs() > 0.25  # half of Nyquist, which is 0.5 cycles a pixel
    columns = torch.fft.rfftfreq(width, device=y.device) > 0.25
    high = power[:, rows][:, :, columns].flatten(1)
    high = high.sort(dim=1).values
    quarter = high.shape[1] // 4
    middle = high[:, quarter : high.shape[1] - quarter].mean(dim=1)
    return (middle / BETWEEN_QUARTILES).sqrt()
