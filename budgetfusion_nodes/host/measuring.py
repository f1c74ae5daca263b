"""Measuring on the host's render device, with room made for it and given back."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator

import torch

from ..metrics.measure import Backends, working_memory

WEIGHTS = 512 << 20
"""Bytes asked for beside the working memory: DreamSim has 360 MB. The host asks for its CLIP_VISION by itself."""


@contextlib.contextmanager
def render_device(backends: Backends, height: int, width: int) -> Iterator[torch.device]:
    """The device to measure pictures of this size on: the host frees what that takes, and gets it back in the end."""
    management = importlib.import_module("comfy.model_management")
    device: torch.device = management.get_torch_device()
    if device.type != "cpu":
        management.free_memory(working_memory(backends, height, width) + WEIGHTS, device)
    with offloaded(backends):
        yield device


@contextlib.contextmanager
def offloaded(backends: Backends) -> Iterator[None]:
    """In the end, however that comes, no weights of the backends are left on the render device."""
    management = importlib.import_module("comfy.model_management")
    try:
        yield
    finally:
        if management.get_torch_device().type != "cpu":
            backends.to(torch.device("cpu"))
            management.soft_empty_cache()
