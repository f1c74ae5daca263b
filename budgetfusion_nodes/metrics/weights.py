"""Packages and weight files on disk: whether they are there, their digests, and reading them without pickle."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import BackendMissingError, InputError

DIGITS = 8
"""Hex digits of a SHA-256 that a backend's name carries."""

_DISTRIBUTIONS = {"open_clip": "open_clip_torch", "stlpips_pytorch": "stlpips-pytorch"}


def has_package(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def require_package(package: str, backend: str) -> None:
    """BackendMissingError that names the distribution."""
    if not has_package(package):
        distribution = _DISTRIBUTIONS.get(package, package)
        raise BackendMissingError(
            f"{backend}: the Python package {distribution} is not installed. Install it with pip install "
            f"{distribution}, or choose another backend."
        )


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file or of a torch file, on the CPU. InputError if it cannot be read."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)  # weights_only: no code is run from the file
    except Exception as error:  # both readers raise many types on a damaged file
        raise InputError(f"{path.name} cannot be read ({type(error).__name__}). Replace the file.") from error


def file_digest(path: Path) -> str:
    """First DIGITS hex digits of a file's SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:DIGITS]


@torch.no_grad()
def parameters_digest(state: Mapping[str, Tensor]) -> str:
    """First DIGITS hex digits of the SHA-256 of all tensors with their names and shapes, in the order of the names.

    Decimal values count as float16, so that a file has one digest whether the host loads it in 16 or in 32 bits.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach()
        digest.update(f"{name} {list(tensor.shape)}".encode())
        plain = tensor.to(torch.float16) if tensor.is_floating_point() else tensor
        digest.update(plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:DIGITS]
