"""Full float32 precision for the time of a measurement, whatever the process renders with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No TF32 in matrix products and convolutions and no autocast inside; the process's own flags afterwards.

    TF32 keeps 10 bits of the mantissa, which moves the distances of nearly converged renders.
    """
    owners, name, exact = _switches()
    before = [getattr(owner, name) for owner in owners]
    try:
        for owner in owners:
            setattr(owner, name, exact)
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for owner, value in zip(owners, before, strict=True):
            setattr(owner, name, value)


def _switches() -> tuple[tuple[Any, ...], str, Any]:
    """Owners of the flags, the flags' name, and their value for full precision.

    PyTorch 2.9 has new flags beside the old ones, and raises where a process reads the old ones after it set the new
    ones. So these are of the kind that the process uses.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    try:
        _ = matmul.allow_tf32, cudnn.allow_tf32
    except RuntimeError:
        return (matmul, cudnn.conv, cudnn.rnn), "fp32_precision", "ieee"
    return (matmul, cudnn), "allow_tf32", False
