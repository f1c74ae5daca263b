"""The scene grammar: what a Tiny Scenes picture can hold. Pure data, seeded, no drawing and no words.

A scene is a background and zero to three groups of alike objects. Its `key` leaves out every random position, so two
scenes with one key are rephrasings or re-layouts of each other; splits are made by key.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (247, 140, 30),
    "yellow": (250, 220, 60),
    "green": (50, 150, 60),
    "cyan": (70, 200, 215),
    "blue": (40, 70, 200),
    "purple": (125, 50, 160),
    "pink": (250, 150, 190),
    "white": (245, 245, 245),
    "black": (25, 25, 28),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "diamond")
FILLS = ("solid", "outlined", "striped", "spotted")
SIZES: dict[str, float] = {"tiny": 3.6, "small": 5.6, "medium": 9.5, "large": 15.0}
"""Half the extent of an object in pixels of a 64-pixel image."""
PATTERNS = (
    "plain",
    "gradient",
    "horizontal stripes",
    "vertical stripes",
    "diagonal stripes",
    "dots",
    "checks",
    "bricks",
)
PATTERN_SCALES: dict[str, float] = {"fine": 8.0, "wide": 16.0}
"""Period of a background pattern in pixels of a 64-pixel image."""
PLACES: dict[str, tuple[float, float, float, float]] = {
    "in the centre": (0.36, 0.36, 0.64, 0.64),
    "on the left": (0.0, 0.0, 0.46, 1.0),
    "on the right": (0.54, 0.0, 1.0, 1.0),
    "at the top": (0.0, 0.0, 1.0, 0.46),
    "at the bottom": (0.0, 0.54, 1.0, 1.0),
}
"""Box (left, top, right, bottom) of the picture in which the objects' centres lie."""
MAX_COUNT = {"tiny": 6, "small": 6, "medium": 3, "large": 1}
PATTERN_WEIGHTS = (0.26, 0.12, 0.1, 0.1, 0.1, 0.11, 0.11, 0.1)


@dataclass(frozen=True)
class Background:
    pattern: str
    colour: str
    second: str | None
    scale: str | None

    @property
    def key(self) -> str:
        return f"{self.pattern}/{self.colour}/{self.second}/{self.scale}"


@dataclass(frozen=True)
class Group:
    count: int
    size: str
    fill: str
    colour: str
    shape: str
    place: str | None

    @property
    def key(self) -> str:
        return f"{self.count}/{self.size}/{self.fill}/{self.colour}/{self.shape}/{self.place}"


@dataclass(frozen=True)
class Scene:
    background: Background
    groups: tuple[Group, ...]

    @property
    def key(self) -> str:
        """The scene without its layout; the order of the groups does not matter."""
        return "|".join([self.background.key, *sorted(group.key for group in self.groups)])

    @property
    def bucket(self) -> float:
        """A number in [0, 1) that depends on the key alone: splits by scene compare it with fixed limits."""
        return int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:8], "big") / 2**64

    @property
    def objects(self) -> int:
        return sum(group.count for group in self.groups)


HELD_OUT = 0.10
"""Scenes whose bucket is below this are never shown to the generator, the encoder or the classifier in training."""


def is_held_out(scene: Scene) -> bool:
    return scene.bucket < HELD_OUT


def sample_background(rng: np.random.Generator) -> Background:
    colours = list(COLOURS)
    pattern = str(rng.choice(PATTERNS, p=PATTERN_WEIGHTS))
    colour = str(rng.choice(colours))
    if pattern == "plain":
        return Background(pattern, colour, None, None)
    second = str(rng.choice([c for c in colours if c != colour]))
    scale = None if pattern == "gradient" else str(rng.choice(list(PATTERN_SCALES)))
    return Background(pattern, colour, second, scale)


def sample_group(rng: np.random.Generator, background: Background, groups: int) -> Group:
    taken = {background.colour, background.second}
    colour = str(rng.choice([c for c in COLOURS if c not in taken]))
    size_weights = (0.1, 0.25, 0.4, 0.25) if groups == 1 else (0.25, 0.4, 0.35, 0.0)
    size = str(rng.choice(list(SIZES), p=size_weights))
    count = int(rng.integers(1, MAX_COUNT[size] + 1)) if rng.random() < 0.6 or groups > 2 else 1
    fill = "solid" if size == "tiny" else str(rng.choice(FILLS, p=(0.55, 0.15, 0.15, 0.15)))
    shape = str(rng.choice(SHAPES))
    if shape == "ring" and fill != "solid":
        fill = "solid"
    place = str(rng.choice(list(PLACES))) if rng.random() < 0.45 and not (count > 1 and size == "medium") else None
    if place == "in the centre" and count > 1:
        place = None
    return Group(count, size, fill, colour, shape, place)


def sample_scene(rng: np.random.Generator, groups: int | None = None) -> Scene:
    """One scene. `groups` fixes the number of object groups (0 to 3); without it 12 % have none, 48 % one."""
    if groups is None:
        groups = int(rng.choice(4, p=(0.12, 0.48, 0.24, 0.16)))
    background = sample_background(rng)
    return Scene(background, tuple(sample_group(rng, background, groups) for _ in range(groups)))


def sample_scenes(count: int, seed: int, *, held_out: bool, groups: int | None = None) -> list[Scene]:
    """`count` scenes with different keys, all from the held-out side of the split or all from the other."""
    rng = np.random.default_rng(seed)
    found: dict[str, Scene] = {}
    while len(found) < count:
        scene = sample_scene(rng, groups)
        if is_held_out(scene) == held_out:
            found.setdefault(scene.key, scene)
    return list(found.values())
