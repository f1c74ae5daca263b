"""All three metrics of a series of renders against its reference, as distances, each number with its backend's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.curves import METRICS
from ..core.errors import BackendMissingError, InputError
from .backends import (
    DSimBackend,
    HostClipVisionEncoder,
    ImageEncoder,
    OpenClipImageEncoder,
    check_side,
    default_image_encoder,
    load_d_sim,
)
from .i_clip import cosine
from .images import to_pair
from .l_snr import NAME as L_SNR_NAME
from .l_snr import l_snr as l_snr_of

CHUNK_PIXELS = 1 << 22
"""Pixels that are measured at once: a batch of 64 at 256 x 256, four at 1024 x 1024."""

MAX_CHUNK = 64


@dataclass(frozen=True)
class Backends:
    """The backends that one series of numbers is measured with; numbers of different backends do not compare."""

    d_sim: DSimBackend
    i_clip: ImageEncoder | None
    """None only where I-CLIP is not asked for: measuring it then is an error, never another number."""

    @classmethod
    def from_values(cls, d_sim: str = "auto", i_clip: str = "auto", clip_vision: Any = None) -> Backends:
        """From a node's settings or a command's options.

        d_sim: a name for `load_d_sim`. i_clip: "auto" is the connected CLIP_VISION, else the shipped encoder;
        "clip_vision", "shipped" insist on one; "none" leaves I-CLIP out; anything else is a checkpoint for
        `OpenClipImageEncoder.from_checkpoint`. Raises BackendMissingError, InputError.
        """
        return cls(load_d_sim(d_sim), _encoder_from_value(i_clip, clip_vision))

    def names(self) -> dict[str, str]:
        """Metric to backend name, for everything measurable with these; stored beside every number."""
        named = {"l_snr": L_SNR_NAME, "d_sim": self.d_sim.name}
        return {**named, "i_clip": self.i_clip.name} if self.i_clip is not None else named


def backend_names(backends: Backends) -> dict[str, str]:
    """Metric to backend name, to be stored beside every number."""
    return backends.names()


@torch.no_grad()
def measure(
    images: Tensor, reference: Tensor, backends: Backends, metrics: Sequence[str] = METRICS
) -> dict[str, Tensor]:
    """Distances `[N]` >= 0, float32, of each image to the reference: metric -> tensor, on the device of `images`.

    images: `[N, H, W, 3]` or `[N, 3, H, W]` in [0, 1]. reference: the same with N or 1 images.
    l_snr: |difference| in dB; d_sim: 1 - similarity; i_clip: 1 - cosine.
    """
    wanted = _checked_metrics(metrics, backends)
    x, y = to_pair(images, reference)
    if "d_sim" in wanted:
        check_side(x, backends.d_sim)
    shared = _values_of(y, wanted, backends) if y.shape[0] == 1 else None
    chunk = max(1, min(MAX_CHUNK, CHUNK_PIXELS // (x.shape[2] * x.shape[3])))
    parts = []
    for start in range(0, x.shape[0], chunk):
        a = x[start : start + chunk]
        b = y if shared is not None else y[start : start + chunk]
        parts.append(_distances(a, b, wanted, backends, shared))
    return {name: torch.cat([part[name] for part in parts]) for name in wanted}


def from_values(
    *,
    l_snr: tuple[Tensor, Tensor] | None = None,
    d_sim: Tensor | None = None,
    i_clip: Tensor | None = None,
) -> dict[str, Tensor]:
    """Distances from metric values that were measured before; only the metrics given.

    l_snr: dB of the images and of the reference. d_sim, i_clip: similarity to the reference. Rounding may leave a
    similarity just above 1; the distance is 0 then.
    """
    distances: dict[str, Tensor] = {}
    if l_snr is not None:
        distances["l_snr"] = (l_snr[0] - l_snr[1]).abs().float()
    if d_sim is not None:
        distances["d_sim"] = (1.0 - d_sim).clamp_min(0.0).float()
    if i_clip is not None:
        distances["i_clip"] = (1.0 - i_clip).clamp_min(0.0).float()
    return distances


def _values_of(y: Tensor, wanted: Sequence[str], backends: Backends) -> dict[str, Tensor]:
    """What can be computed of the reference alone: its dB and its embedding."""
    values: dict[str, Tensor] = {}
    if "l_snr" in wanted:
        values["l_snr"] = l_snr_of(y)
    if "i_clip" in wanted and backends.i_clip is not None:
        values["i_clip"] = backends.i_clip.encode(y)
    return values


def _distances(
    a: Tensor, b: Tensor, wanted: Sequence[str], backends: Backends, shared: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    of_a = _values_of(a, wanted, backends)
    of_b = shared if shared is not None else _values_of(b, wanted, backends)
    return from_values(
        l_snr=(of_a["l_snr"], of_b["l_snr"]) if "l_snr" in wanted else None,
        d_sim=backends.d_sim.similarity(a, b.expand_as(a)) if "d_sim" in wanted else None,
        i_clip=cosine(of_a["i_clip"], of_b["i_clip"]).to(a.device) if "i_clip" in wanted else None,
    )


def _checked_metrics(metrics: Sequence[str], backends: Backends) -> tuple[str, ...]:
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise InputError(f"metrics: expected some of {', '.join(METRICS)}, got {', '.join(unknown) or 'none'}.")
    if "i_clip" in metrics and backends.i_clip is None:
        raise BackendMissingError(
            "i_clip: no image encoder is loaded. Connect a CLIP Vision model, use the shipped encoder, or measure "
            "l_snr and d_sim only."
        )
    return tuple(name for name in METRICS if name in metrics)


def _encoder_from_value(value: str, clip_vision: Any) -> ImageEncoder | None:
    if value == "none":
        return None
    if value == "clip_vision" and clip_vision is None:
        raise BackendMissingError("i_clip: no CLIP Vision model is connected. Connect a Load CLIP Vision node.")
    if value == "clip_vision" or (value == "auto" and clip_vision is not None):
        return HostClipVisionEncoder(clip_vision)
    if value in ("auto", "shipped"):
        return default_image_encoder()
    return OpenClipImageEncoder.from_checkpoint(value)


# --------------------------------------------------------------------------------------------------- one at a time


@dataclass(frozen=True)
class Measurement:
    """Of N images against the reference of a Series."""

    distances: dict[str, Tensor]
    """Metric -> `[N]` >= 0, float32."""
    decibel: Tensor
    """`[N]` L-SNR of the images themselves in dB."""


class Series:
    """Measures images against one reference, one at a time or many."""

    def __init__(
        self,
        reference: Tensor,
        backends: Backends,
        metrics: Sequence[str] = METRICS,
        device: torch.device | None = None,
    ) -> None:
        """reference: one image `[1, H, W, 3]` or `[1, 3, H, W]` in [0, 1]; device: where to measure."""
        self.device = device or reference.device
        self.reference, self.backends, self.metrics = reference.to(self.device), backends, tuple(metrics)

    @torch.no_grad()
    def add(self, images: Tensor) -> Measurement:
        """Of images of the reference's size."""
        here = images.to(self.device)
        distances = measure(here, self.reference, self.backends, self.metrics)
        return Measurement({m: v.to(images.device) for m, v in distances.items()}, l_snr_of(here).to(images.device))
