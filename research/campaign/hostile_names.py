"""Hostile names and places of planner files: path tricks, links, pipes, and targets that are something else already."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path

from research.options import WEIGHTS

ENDING = ".safetensors"
PLAIN = 0.75
"""Share of files with an ordinary name."""
NAMES = (
    *("a" * 230, "名" * 75, "\U0001f98a" * 55, ".", "..", "...", " ", "con", "NUL.x", "aux", "-rf", "--help"),
    *(".hidden", "a\nb", "a\tb", "\x1b[2Jx", "\u202egnp", "%2e%2e%2fx", "..\\..\\x", "C:x", "x.", "x ", "a:b"),
    *("<img src=x onerror=alert(1)>", '"><script>alert(1)<', "$(touch x)", "`id`", "'; DROP TABLE planners; --"),
    *("{x}", "%s%n", "x" + ENDING, "x.part", "né", "ne\u0301", "\udcff\udcfe"),
)


def placed(rng: random.Random, scratch: Path, content: bytes) -> Path:
    """The file somewhere below `scratch`, in a folder that holds nothing else."""
    folder = scratch / "source"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if rng.random() < PLAIN:
        return _written(folder / f"planner{ENDING}", content)
    if rng.random() < 0.6:
        return _written(folder / (rng.choice(NAMES) + rng.choice((ENDING, ENDING, "", ENDING.upper()))), content)
    return _strange(rng, folder, content)


def _written(path: Path, content: bytes) -> Path:
    if path.name in ("", ".", "..") or path.is_dir():
        path = path.with_name("dots")
    path.write_bytes(content)
    return path


def _strange(rng: random.Random, folder: Path, content: bytes) -> Path:
    path, kind = folder / f"strange{ENDING}", rng.randrange(8)
    real = _written(folder / "real.bin", content)
    if kind == 0:
        path.symlink_to(real)
    elif kind == 1:
        path.symlink_to(path)
    elif kind == 2:
        path.symlink_to(rng.choice(("/dev/zero", "/proc/self/pagemap", "/proc/self/mem", "/etc/passwd", "/")))
    elif kind == 3:
        path.mkdir()
    elif kind == 4:
        os.mkfifo(path)
    elif kind == 5:
        path.symlink_to(folder / "nowhere")
    elif kind == 6:
        os.link(real, path)
    else:
        with path.open("wb") as sparse:  # a terabyte that takes no room
            sparse.truncate(1 << 40)
    return path


class Room:
    """A planner folder with something in it, and its neighbours, which nothing may touch."""

    def __init__(self, room: Path, rng: random.Random) -> None:
        self.room, self.folder, self.outside = room, room / "models" / "budgetfusion", room / "outside"
        self._trap = rng.random() < 0.2
        self.before: Mapping[str, bytes | None] = {}

    def __enter__(self) -> Room:
        shutil.rmtree(self.room, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.outside.mkdir()
        good = (WEIGHTS / "planners" / "tiny_scenes_euler_nested.safetensors").read_bytes()
        (self.folder / f"good{ENDING}").write_bytes(good)
        (self.outside / "precious").write_bytes(b"untouched")
        if self._trap:  # links and a folder where the import wants to go
            (self.folder / f"planner{ENDING}").symlink_to(self.outside / "precious")
            (self.folder / f"strange{ENDING}").mkdir()
        self.before = _contents(self.folder)
        self._others = self._beside()
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.room, ignore_errors=True)

    def check(self) -> None:
        """AssertionError where anything beside the folder changed, half a file was left, or a planner suffered."""
        if self._beside() != self._others:
            raise AssertionError("something outside the planner folder was written")
        after = _contents(self.folder)
        if after.get(f"good{ENDING}") != self.before[f"good{ENDING}"]:
            raise AssertionError("another planner was changed")
        if any(name.endswith((".part", ".new")) for name in set(after) - set(self.before)):
            raise AssertionError(f"half a file was left: {sorted(after)}")

    def _beside(self) -> Mapping[str, bytes | None]:
        names = (path.name for folder in (self.room, self.room / "models") for path in folder.iterdir())
        return {**_contents(self.outside), **dict.fromkeys(names)}


def _contents(folder: Path) -> dict[str, bytes | None]:
    return {path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}
