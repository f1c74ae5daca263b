"""The three metrics of rendered images against their reference, as distances, each number with its backend's name.

This is the only code that measures a series. `Series` computes what belongs to the reference once and then takes images
one at a time or many, so nothing but numbers has to be kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.curves import METRICS
from ..core.errors import BackendMissingError, InputError
from .backends import load_d_sim
from .encoders import HostClipVisionEncoder, OpenClipImageEncoder, default_image_encoder
from .i_clip import cosine
from .images import check_same_size, to_bchw
from .interfaces import DSimBackend, ImageEncoder, check_side
from .l_snr import BYTES_PER_PIXEL as L_SNR_BYTES_PER_PIXEL
from .l_snr import NAME as L_SNR_NAME
from .l_snr import l_snr as l_snr_of
from .precision import full_precision

WORKING_MEMORY = 1 << 30
"""Bytes that a chunk of images may take while it is measured; one image is measured whatever it takes."""

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

    @property
    def bytes_per_pixel(self) -> int:
        """Working memory for one picture beside its reference; the metrics come one after the other."""
        return max(self.d_sim.bytes_per_pixel, L_SNR_BYTES_PER_PIXEL)

    def to(self, device: torch.device) -> None:
        """Moves the weights; measuring moves them to the pictures by itself."""
        self.d_sim.to(device)
        if self.i_clip is not None:
            self.i_clip.to(device)


@dataclass(frozen=True)
class Measurement:
    """Of N images against the reference of a Series."""

    distances: dict[str, Tensor]
    """Metric -> `[N]` >= 0, float32. l_snr: |difference| in dB; d_sim: 1 - similarity; i_clip: 1 - cosine."""
    decibel: Tensor
    """`[N]` L-SNR of the images themselves in dB; NaN where l_snr was not asked for."""
    embeddings: Tensor | None = None
    """`[N, D]` of the images by the i_clip encoder, on its device; None where i_clip was not asked for."""


def check_finite(found: Mapping[str, Tensor]) -> None:
    """InputError for what is no number: it would be kept, fitted to and compared with. found: by what gave it."""
    for source, values in found.items():
        if not bool(torch.isfinite(values).all()):
            raise InputError(
                f"{source} gave a value that is no number. Its weights are damaged or its precision is too low: load "
                "it again, or choose another backend."
            )


class Series:
    """Measures images against one reference. Holds what was computed of the reference, and no image."""

    @torch.no_grad()
    def __init__(
        self,
        reference: Tensor,
        backends: Backends,
        metrics: Sequence[str] = METRICS,
        device: torch.device | None = None,
    ) -> None:
        """reference: one image `[1, H, W, 3]` or `[1, 3, H, W]` in [0, 1].

        device: where to measure; that of the reference by default. Raises InputError, BackendMissingError.
        """
        self.metrics = _checked_metrics(metrics, backends)
        self.backends, self.device = backends, device or reference.device
        y = to_bchw(reference.to(self.device), "reference")
        if y.shape[0] != 1:
            raise InputError(
                f"reference: expected 1 image or as many as images, got {y.shape[0]}. Pick one reference, or give "
                "one for each image."
            )
        if "d_sim" in self.metrics:
            check_side(y, backends.d_sim)
        self._shape, self._dtype = y.shape, y.dtype
        with full_precision(self.device):
            self._decibel = l_snr_of(y) if "l_snr" in self.metrics else None
            self._prepared = backends.d_sim.prepare(y) if "d_sim" in self.metrics else None
            self._embedding = self._embed(y)

    @torch.no_grad()
    def add(self, images: Tensor) -> Measurement:
        """Of images `[N, H, W, 3]` or `[N, 3, H, W]` in [0, 1], of the reference's size; on the device of `images`."""
        chunk = chunk_of(self.backends, *self._shape[2:])
        parts = [self._measured(some.to(self.device)) for some in images.split(chunk)]
        joined = {name: torch.cat([part.distances[name] for part in parts]) for name in self.metrics}
        decibel = torch.cat([part.decibel for part in parts]).to(images.device)
        embedded = [part.embeddings for part in parts if part.embeddings is not None]
        embeddings = torch.cat(embedded) if embedded else None
        return Measurement({name: values.to(images.device) for name, values in joined.items()}, decibel, embeddings)

    def _measured(self, images: Tensor) -> Measurement:
        x = to_bchw(images).to(self._dtype)
        check_same_size(x.shape, self._shape)
        found: dict[str, Tensor] = {}
        decibel = x.new_full((x.shape[0],), torch.nan)
        with full_precision(self.device):
            if self._decibel is not None:
                decibel = l_snr_of(x)
                found["l_snr"] = (decibel - self._decibel).abs()
            if self._prepared is not None:
                found["d_sim"] = 1.0 - self.backends.d_sim.similarity(x, self._prepared)
            embedding = self._embed(x)
            if embedding is not None and self._embedding is not None:
                found["i_clip"] = 1.0 - cosine(embedding, self._embedding).to(self.device)
        # rounding may leave a similarity just above 1
        distances = {name: values.clamp_min(0.0).float() for name, values in found.items()}
        made_by = self.backends.names()
        check_finite({f"{name}: {made_by[name]}": values for name, values in distances.items()})
        return Measurement(distances, decibel.float(), embedding)

    def _embed(self, x: Tensor) -> Tensor | None:
        encoder = self.backends.i_clip
        return encoder.encode(x) if "i_clip" in self.metrics and encoder is not None else None


def chunk_of(backends: Backends, height: int, width: int) -> int:
    """Images of this size that are measured at once."""
    return max(1, min(MAX_CHUNK, WORKING_MEMORY // (backends.bytes_per_pixel * height * width)))


def working_memory(backends: Backends, height: int, width: int) -> int:
    """Bytes that measuring a chunk of images of this size takes at most, beside the weights."""
    return backends.bytes_per_pixel * height * width * chunk_of(backends, height, width)


def measure(
    images: Tensor,
    reference: Tensor,
    backends: Backends,
    metrics: Sequence[str] = METRICS,
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """Distances `[N]` >= 0, float32, of each image to the reference: metric -> tensor, on the device of `images`.

    images: `[N, H, W, 3]` or `[N, 3, H, W]` in [0, 1]. reference: the same with N or 1 images. device: where to
    measure; that of `images` by default. l_snr: |difference| in dB; d_sim: 1 - similarity; i_clip: 1 - cosine.
    """
    where = device or images.device
    if reference.shape[0] == 1 or reference.shape[0] != images.shape[0]:  # the latter is refused
        return Series(reference, backends, metrics, where).add(images).distances
    pairs = zip(images.split(1), reference.split(1), strict=True)
    parts = [Series(y, backends, metrics, where).add(x).distances for x, y in pairs]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


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
