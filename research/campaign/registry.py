"""The parts by name; a module is imported when its part is asked for."""

from __future__ import annotations

from importlib import import_module

from .part import Part

NAMES = (
    "kills",
    "two_servers",
    "disks",
    "hostile_files",
    "long_run",
    "stage_faults",
    "hostile_page",
    "ray_faults",
    "upgrade",
)
"""In the order of the report; each is a module of this folder."""


def load_part(name: str) -> Part:
    """KeyError for a name that is not in NAMES."""
    if name not in NAMES:
        raise KeyError(name)
    return import_module(f"{__package__}.{name}").PART
