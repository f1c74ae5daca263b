"""Draws scenes with signed distances and one-pixel antialiasing. A scene and a generator state give one picture.

Objects and patterns sit on a grid of 4 x 4 pixels, and sizes are exact. The generator folds the same 4 x 4 pixels into
one place of its UNet, so it meets few different patches; with free positions it learned them many times more slowly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from budgetfusion_nodes.tiny_scenes.scenes import COLOURS, PATTERN_SCALES, PLACES, SIZES, Background, Group, Scene

SIZE = 64
VERSION = 2
"""Of the drawing: rendered data of another version is not used again."""
GRID = 4
"""Pixels of a 64-pixel image between the places where objects and patterns may begin."""
Image = NDArray[np.floating]
RGB = {name: np.asarray(value, np.float32) / 255.0 for name, value in COLOURS.items()}


def _regular(corners: int, radius: float = 1.0, inner: float | None = None) -> NDArray[np.float32]:
    """Corners of a regular polygon with one corner up; with `inner`, of a star."""
    count = corners * (2 if inner is not None else 1)
    angle = -np.pi / 2 + 2 * np.pi * np.arange(count) / count
    radii = np.where(np.arange(count) % 2 == 0, radius, inner if inner is not None else radius)
    return np.stack([radii * np.cos(angle), radii * np.sin(angle)], 1).astype(np.float32)


def _heart() -> NDArray[np.float32]:
    t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x / 16, (y + 2.5) / 15], 1).astype(np.float32)


def _cross(arm: float = 0.34) -> NDArray[np.float32]:
    a, b = arm, 1.0
    points = [
        (-a, -b),
        (a, -b),
        (a, -a),
        (b, -a),
        (b, a),
        (a, a),
        (a, b),
        (-a, b),
        (-a, a),
        (-b, a),
        (-b, -a),
        (-a, -a),
    ]
    return np.asarray(points, np.float32)


POLYGONS = {
    "square": np.asarray([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)], np.float32),
    "diamond": np.asarray([(0, -1.1), (0.8, 0), (0, 1.1), (-0.8, 0)], np.float32),
    "triangle": _regular(3, 1.15) + np.asarray([0, 0.2], np.float32),
    "star": _regular(5, 1.12, 0.46),
    "cross": _cross(),
    "heart": _heart(),
}


def polygon_distance(x: Image, y: Image, corners: NDArray[np.float32]) -> Image:
    """Signed distance to a simple polygon, negative inside (even-odd rule)."""
    nearest = np.full(x.shape, np.inf, np.float32)
    inside = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        ex, ey, px, py = x1 - x0, y1 - y0, x - x0, y - y0
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (px - along * ex) ** 2 + (py - along * ey) ** 2)
        inside ^= ((y0 > y) != (y1 > y)) & (x < ex * (y - y0) / np.where(ey == 0, 1, ey) + x0)
    return np.where(inside, -1, 1) * np.sqrt(nearest)


def shape_distance(shape: str, x: Image, y: Image, radius: float) -> Image:
    """Signed distance in pixels to a shape of half-extent `radius` at the origin."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.72 * radius) - 0.28 * radius
    return polygon_distance(x, y, POLYGONS[shape] * radius)


def coverage(distance: Image) -> Image:
    """Share of a pixel that lies inside: one pixel of antialiasing."""
    return np.clip(0.5 - distance, 0, 1)


def _stripe(position: Image, period: float, width: float) -> Image:
    """Coverage of stripes of `width` centred on multiples of `period`."""
    offset = np.abs((position + period / 2) % period - period / 2)
    return coverage(offset - width / 2)


def draw_background(background: Background, rng: np.random.Generator, size: int = SIZE) -> Image:
    """[H, W, 3] in [0, 1]. The generator chooses the phase, in steps of GRID; gradients run from top to bottom."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) + 0.5
    base = np.broadcast_to(RGB[background.colour], (size, size, 3))
    if background.second is None:
        return base.copy()
    unit = size / SIZE
    places = int(PATTERN_SCALES[background.scale or "wide"]) // GRID
    period = places * GRID * unit
    phase_x, phase_y = GRID * unit * rng.integers(0, 2 * places, 2)
    x, y = x + np.float32(phase_x), y + np.float32(phase_y)
    match background.pattern:
        case "gradient":
            mask = (np.mgrid[0:size, 0:size][0] / (size - 1)).astype(np.float32)
        case "horizontal stripes":
            mask = _stripe(y, period, 0.38 * period)
        case "vertical stripes":
            mask = _stripe(x, period, 0.38 * period)
        case "diagonal stripes":
            # 1.5 periods along each axis are about one across the stripes, and whole places of the grid
            mask = _stripe((x + y) / np.sqrt(2), 1.5 * period / np.sqrt(2), 0.38 * period)
        case "dots":
            dx = (x + period / 2) % period - period / 2
            dy = (y + period / 2) % period - period / 2
            mask = coverage(np.hypot(dx, dy) - 0.27 * period)
        case "checks":
            mask = np.abs(_stripe(x, 2 * period, period) - _stripe(y, 2 * period, period))
        case _:
            joint = period / 8  # whole pixels, from where the row and the brick begin
            row = np.floor(y / (0.5 * period))
            mask = np.maximum(
                _stripe(y - joint / 2, 0.5 * period, joint),
                _stripe(x - joint / 2 + (row % 2) * 0.5 * period, period, joint),
            )
    return base + mask[..., None] * (RGB[background.second] - base)


def place_objects(scene: Scene, rng: np.random.Generator, size: int = SIZE) -> list[tuple[Group, float, float, float]]:
    """(group, x, y, radius) of every object; apart from each other while there is room, always inside the picture."""
    placed: list[tuple[Group, float, float, float]] = []
    unit = size / SIZE
    for group in sorted(scene.groups, key=lambda g: -SIZES[g.size]):
        left, top, right, bottom = PLACES.get(group.place or "", (0.0, 0.0, 1.0, 1.0))
        for _ in range(group.count):
            radius = SIZES[group.size] * unit
            step = GRID * unit
            margin = float(np.ceil((1.1 * radius + unit) / step)) * step
            best, best_gap = (size / 2, size / 2), -np.inf
            for _ in range(40):
                x, y = (
                    float(np.clip(np.round(rng.uniform(*ends) * size / step) * step, margin, size - margin))
                    for ends in ((left, right), (top, bottom))
                )
                gap = min(
                    (np.hypot(x - ox, y - oy) - 1.15 * (radius + other) for _, ox, oy, other in placed), default=np.inf
                )
                if gap > best_gap:
                    best, best_gap = (x, y), gap
                if gap > unit:
                    break
            placed.append((group, *best, radius))
    return placed


def draw_object(image: Image, group: Group, cx: float, cy: float, radius: float) -> None:
    """Paints one object into `image` in place."""
    size, reach = image.shape[0], int(np.ceil(radius * 1.3)) + 2
    x0, x1 = max(0, int(cx) - reach), min(size, int(cx) + reach + 1)
    y0, y1 = max(0, int(cy) - reach), min(size, int(cy) + reach + 1)
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32) + 0.5
    x, y = x - np.float32(cx), y - np.float32(cy)
    distance = shape_distance(group.shape, x, y, radius)
    unit = size / SIZE
    if group.fill == "outlined":
        width = max(1.6 * unit, 0.22 * radius)
        distance = np.abs(distance + width / 2) - width / 2
    colour = np.broadcast_to(RGB[group.colour], (*x.shape, 3))
    if group.fill in ("striped", "spotted"):
        second = RGB["black"] if group.colour in ("white", "yellow") else RGB["white"]
        period = max(4.0 * unit, 0.5 * radius)
        if group.fill == "striped":
            mask = _stripe(y, period, 0.4 * period)
        else:
            mask = coverage(
                np.hypot((x + period / 2) % period - period / 2, (y + period / 2) % period - period / 2) - 0.27 * period
            )
        colour = colour + mask[..., None] * (second - colour)
    region = image[y0:y1, x0:x1]
    region += coverage(distance)[..., None] * (colour - region)


def render(scene: Scene, rng: np.random.Generator, size: int = SIZE) -> NDArray[np.uint8]:
    """The picture of a scene, [size, size, 3] uint8."""
    image = draw_background(scene.background, rng, size).astype(np.float32)
    for group, x, y, radius in place_objects(scene, rng, size):
        draw_object(image, group, x, y, radius)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
