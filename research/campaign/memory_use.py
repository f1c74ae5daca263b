"""How much memory this process holds and held at most, in MB, and how many files it has open. Exact on Linux."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

PROCESS = Path("/proc/self")
MEGABYTE = 1 << 20


def start_peak() -> None:
    """The peak is measured from here on, where the system can do that."""
    if sys.platform == "linux":
        (PROCESS / "clear_refs").write_text("5")


def peak() -> float:
    """The most that this process has held since `start_peak`; since its start on systems other than Linux."""
    if sys.platform == "linux":
        return _of_status("VmHWM")
    import resource  # on use: Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MEGABYTE if sys.platform == "darwin" else 1024)


def resident() -> float:
    """What it holds now; what nothing refers to any more is given back first."""
    gc.collect()
    return _of_status("VmRSS")


def open_files() -> int:
    return sum(1 for _ in (PROCESS / "fd").iterdir())


def _of_status(key: str) -> float:
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"{PROCESS / 'status'} has no {key}")
