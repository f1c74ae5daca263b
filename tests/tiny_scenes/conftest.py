"""The host's classes on `sys.path` (nothing is started), and scenes made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from budgetfusion_nodes.host.boot import import_host
from budgetfusion_nodes.tiny_scenes.scenes import Background, Group, Scene


@pytest.fixture(scope="session")
def comfy(host_dir: Path) -> Path:
    """`import comfy` works in this process."""
    torch.set_num_threads(1)
    return import_host(host_dir)


def plain(colour: str, *groups: Group) -> Scene:
    return Scene(Background("plain", colour, None, None), groups)


def lone(shape: str, size: str = "large", colour: str = "red", fill: str = "solid", count: int = 1) -> Group:
    return Group(count, size, fill, colour, shape, None)


@pytest.fixture
def make_plain():
    """`make_plain("red", group, ...)`: a scene on a plain background."""
    return plain


@pytest.fixture
def make_group():
    """`make_group("circle", size=..., colour=..., fill=..., count=...)`."""
    return lone
