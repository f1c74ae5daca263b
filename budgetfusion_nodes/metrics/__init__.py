"""Perceptual metrics of rendered images: L-SNR (low level), D-SIM (mid level), I-CLIP (semantic). No host import.

The metric libraries are imported when a backend is first used, never by importing this package.
"""

from __future__ import annotations

from .backends import (
    HostClipVisionEncoder,
    OpenClipImageEncoder,
    available_d_sim_backends,
    default_image_encoder,
    load_d_sim,
)
from .measure import Backends, backend_names, from_values, measure

__all__ = [
    "Backends",
    "HostClipVisionEncoder",
    "OpenClipImageEncoder",
    "available_d_sim_backends",
    "backend_names",
    "default_image_encoder",
    "from_values",
    "load_d_sim",
    "measure",
]
