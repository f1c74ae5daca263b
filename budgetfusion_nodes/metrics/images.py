"""Images as the metrics take them: checked once, then BCHW float32 or float64 in [0, 1].

The host hands images over as BHWC float tensors in [0, 1] (its IMAGE type); the metric libraries want BCHW. Every
public function of this package accepts either and calls `to_bchw` first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.errors import InputError

MIN_SIDE = 16
"""Smallest side in pixels that any metric accepts: the 16-pixel kernel of HaarPSI, and two noise windows of L-SNR."""

OVERSHOOT = 0.05
"""Values up to this far outside [0, 1] are clamped: resampling kernels (Lanczos, bicubic) and decoders overshoot by a
few hundredths. More than that means the image is in another range, and clamping would change the picture."""


def to_bchw(images: Tensor, name: str = "images") -> Tensor:
    """Checked images as `[B, 3, H, W]` in [0, 1], float64 kept and every other float type widened to float32.

    images: `[B, H, W, 3]` (ComfyUI IMAGE) or `[B, 3, H, W]`, float, values in [0, 1] with `OVERSHOOT` to spare.
    name: how an error calls this input. Raises InputError that says what came, what was expected and the remedy.
    """
    if not isinstance(images, Tensor):
        raise InputError(f"{name}: expected an image tensor, got {type(images).__name__}. Connect an IMAGE output.")
    if images.ndim != 4:
        hint = " Add the batch axis with image[None]." if images.ndim == 3 else " Connect an IMAGE output."
        raise InputError(f"{name}: expected a batch of images [B, H, W, 3], got shape {list(images.shape)}.{hint}")
    if images.shape[0] == 0:
        raise InputError(f"{name}: the batch is empty. Render at least one image before measuring.")
    if not images.is_floating_point():
        raise InputError(
            f"{name}: expected decimal values in [0, 1], got {str(images.dtype).removeprefix('torch.')}. "
            "Convert 8-bit images with image.float() / 255."
        )
    x = _channels_first(images, name)
    height, width = x.shape[2:]
    if min(height, width) < MIN_SIDE:
        raise InputError(
            f"{name}: {width} x {height} pixels is too small to measure; at least {MIN_SIDE} on each side are needed. "
            "Render or upscale to a larger size."
        )
    if x.dtype != torch.float64:
        x = x.float()
    return _in_range(x, name)


def to_pair(x: Tensor, y: Tensor, names: tuple[str, str] = ("images", "reference")) -> tuple[Tensor, Tensor]:
    """Both as `[B, 3, H, W]` on the device and in the dtype of x; y may hold one image that serves for all of x."""
    a, b = to_bchw(x, names[0]), to_bchw(y, names[1])
    check_same_size(a.shape, b.shape, names)
    if b.shape[0] not in (1, a.shape[0]):
        raise InputError(
            f"{names[1]}: expected 1 image or as many as {names[0]} ({a.shape[0]}), got {b.shape[0]}. "
            "Pick one reference image, or give one for each image."
        )
    return a, b.to(device=a.device, dtype=a.dtype)


def check_same_size(
    images: torch.Size, reference: torch.Size, names: tuple[str, str] = ("images", "reference")
) -> None:
    """InputError unless both shapes `[B, 3, H, W]` have one height and width."""
    if images[2:] != reference[2:]:
        raise InputError(
            f"{names[0]} are {images[3]} x {images[2]} pixels but {names[1]} is {reference[3]} x {reference[2]}. "
            "Compare images of one size: render both at the same size, or resize one with an Upscale Image node."
        )


def luminance(x: Tensor) -> Tensor:
    """Luma `[B, 1, H, W]` of RGB `[B, 3, H, W]` with the weights of ITU-R BT.601."""
    red, green, blue = x.unbind(dim=1)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def resize(x: Tensor, size: int) -> Tensor:
    """`[B, 3, H, W]` squashed to `[B, 3, size, size]`, bicubic with antialias, kept in [0, 1]; unchanged if it fits.

    DesignNote: an encoder has one input size. Smaller and larger images are resampled, and the antialias filter keeps a
    larger image's fine pattern from folding into a false coarse one. Rectangles are squashed, not cropped as CLIP's
    classification recipe does: a crop would make the metric blind to both ends of a wide image, while both images of a
    pair are squashed alike.
    """
    if x.shape[2:] == (size, size):
        return x
    out = torch.nn.functional.interpolate(x, size=(size, size), mode="bicubic", antialias=True, align_corners=False)
    return out.clamp(0.0, 1.0)


def _channels_first(images: Tensor, name: str) -> Tensor:
    # A side of 3 pixels is below MIN_SIDE, so at most one of the two layouts can be meant.
    if images.shape[3] == 3:
        return images.permute(0, 3, 1, 2)
    if images.shape[1] == 3:
        return images
    channels = images.shape[3] if images.shape[3] <= images.shape[1] else images.shape[1]
    hint = {
        4: "Remove the alpha channel, for example with a Split Image with Alpha node.",
        1: "Repeat the grey channel three times, for example with a Mask To Image node.",
    }.get(channels, "Decode latents with VAE Decode and connect its IMAGE output.")
    raise InputError(f"{name}: expected 3 colour channels, got shape {list(images.shape)}. {hint}")


def _in_range(x: Tensor, name: str) -> Tensor:
    low, high = torch.stack(torch.aminmax(x)).tolist()  # one wait for the device
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(
            f"{name}: some pixels are not numbers (NaN or infinite), so nothing can be measured. "
            "The render failed: check the VAE and its precision (try --fp32-vae), then render again."
        )
    if low < -OVERSHOOT or high > 1.0 + OVERSHOOT:
        raise InputError(
            f"{name}: expected values in [0, 1], got {low:.3g} to {high:.3g}. "
            "Divide 8-bit values by 255, or map [-1, 1] with (image + 1) / 2."
        )
    return x.clamp(0.0, 1.0) if low < 0.0 or high > 1.0 else x
