"""The renderer against closed forms: colours, areas, counts, periods; the same picture for the same seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from budgetfusion_nodes.tiny_scenes.scenes import (
    COLOURS,
    PATTERN_SCALES,
    PATTERNS,
    SHAPES,
    SIZES,
    Background,
    Scene,
    sample_scenes,
)
from research.tiny_scenes_training.renderer import GRID, POLYGONS, RGB, coverage, place_objects, render, shape_distance

DIFFERENT = 0.1
"""Distance of RGB in [0, 1] above which a pixel is not background."""


def foreground(image: np.ndarray, colour: str) -> np.ndarray:
    return np.abs(image / 255.0 - RGB[colour]).max(-1) > DIFFERENT


@pytest.mark.parametrize("colour", COLOURS)
def test_plain_scene_is_exactly_its_colour(make_plain: Any, colour: str) -> None:
    image = render(make_plain(colour), np.random.default_rng(0))
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert (image == np.asarray(COLOURS[colour])).all()


def test_same_seed_same_picture() -> None:
    for scene in sample_scenes(20, 5, held_out=False):
        first, second = (render(scene, np.random.default_rng(9)) for _ in range(2))
        assert np.array_equal(first, second)
        if scene.groups:
            assert any(not np.array_equal(first, render(scene, np.random.default_rng(seed))) for seed in (10, 11, 12))


def test_everything_sits_on_the_grid() -> None:
    """Whole patches repeat: a pattern shifted by its period is itself, and centres are whole places of the grid."""
    for index, scene in enumerate(sample_scenes(100, 4, held_out=False)):
        for _, x, y, radius in place_objects(scene, np.random.default_rng(index)):
            assert (x % GRID, y % GRID) == (0, 0)
            assert radius in SIZES.values()
    for pattern in PATTERNS:
        if pattern in ("plain", "gradient"):
            continue
        for scale, period in PATTERN_SCALES.items():
            image = render(Scene(Background(pattern, "red", "blue", scale), ()), np.random.default_rng(3))
            period = int(period) * {"checks": 2, "diagonal stripes": 1.5}.get(pattern, 1)
            shift = int(period)
            assert np.abs(image[shift:].astype(int) - image[:-shift]).max() <= 1, (pattern, scale)
            assert np.abs(image[:, shift:].astype(int) - image[:, :-shift]).max() <= 1, (pattern, scale)
            patches = image.reshape(16, GRID, 16, GRID, 3).swapaxes(1, 2).reshape(256, -1)
            assert len(np.unique(patches, axis=0)) <= (shift // GRID) ** 2, (pattern, scale)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_as_many_components_as_objects(make_plain: Any, make_group: Any, shape: str, count: int) -> None:
    scene = make_plain("white", make_group(shape, size="small", colour="blue", count=count))
    for seed in range(3):
        mask = foreground(render(scene, np.random.default_rng(seed)), "white")
        assert ndimage.label(mask, structure=np.ones((3, 3)))[1] == count  # pyright: ignore[reportIndexIssue]


def polygon_area(corners: np.ndarray) -> float:
    """Shoelace formula."""
    x, y = corners.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


@pytest.mark.parametrize("shape", SHAPES)
def test_area_is_the_closed_form(make_plain: Any, make_group: Any, shape: str) -> None:
    """Ink of a black shape on white, against pi r^2, the ring's pi r^2 (1 - .44^2) and the shoelace formula."""
    for seed in range(3):
        scene = make_plain("white", make_group(shape, colour="black"))
        ((_, _, _, radius),) = place_objects(scene, np.random.default_rng(seed))
        image = render(scene, np.random.default_rng(seed)).astype(float)
        white, black = COLOURS["white"][0], COLOURS["black"][0]
        measured = ((white - image[..., 0]) / (white - black)).sum()
        if shape == "circle":
            expected = np.pi * radius**2
        elif shape == "ring":
            expected = np.pi * radius**2 * (1 - 0.44**2)
        else:
            expected = polygon_area(POLYGONS[shape]) * radius**2
        assert measured == pytest.approx(expected, rel=0.05)


def test_circle_distance_is_exact() -> None:
    x, y = np.meshgrid(np.linspace(-9, 9, 19, dtype=np.float32), np.linspace(-9, 9, 19, dtype=np.float32))
    assert np.allclose(shape_distance("circle", x, y, 5.0), np.hypot(x, y) - 5.0)
    corner = np.asarray([[0.85 * 5 + 3]], np.float32), np.asarray([[0.85 * 5 + 4]], np.float32)
    assert shape_distance("square", *corner, 5.0)[0, 0] == pytest.approx(5.0, abs=1e-4)  # 3-4-5 triangle off a corner
    assert coverage(np.asarray([-1.0, 0.0, 1.0], np.float32)).tolist() == [1.0, 0.5, 0.0]


def test_objects_lie_inside_and_apart() -> None:
    for index, scene in enumerate(sample_scenes(100, 3, held_out=False)):
        placed = place_objects(scene, np.random.default_rng(index))
        assert len(placed) == scene.objects
        for _, x, y, radius in placed:
            assert radius <= min(x, y, 64 - x, 64 - y)
    ((_, x, y, _),) = place_objects(_placed("on the left"), np.random.default_rng(0))
    assert x < 32
    ((_, x, y, _),) = place_objects(_placed("at the bottom"), np.random.default_rng(0))
    assert y > 32


def _placed(place: str) -> Scene:
    from budgetfusion_nodes.tiny_scenes.scenes import Group

    return Scene(Background("plain", "red", None, None), (Group(1, "small", "solid", "blue", "star", place),))


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p not in ("plain", "gradient")])
@pytest.mark.parametrize("scale", PATTERN_SCALES)
def test_patterns_show_two_colours_and_their_period(pattern: str, scale: str) -> None:
    image = render(Scene(Background(pattern, "black", "white", scale), ()), np.random.default_rng(1)).astype(float)
    assert image.min() <= 30
    assert image.max() >= 240
    if pattern == "horizontal stripes":
        assert np.ptp(image, axis=1).max() == 0  # constant along a row
        ink = (image[:, 0, 0] - 25) / 220
        assert ink.mean() == pytest.approx(0.38, abs=0.1)
        spectrum = np.abs(np.fft.rfft(ink - ink.mean(), 4096))
        assert 4096 / spectrum.argmax() == pytest.approx(PATTERN_SCALES[scale], rel=0.15)


def test_gradient_runs_from_first_to_second_colour() -> None:
    image = render(Scene(Background("gradient", "red", "blue", None), ()), np.random.default_rng(0))
    assert image[0, 0].tolist() == list(COLOURS["red"])
    assert image[-1, -1].tolist() == list(COLOURS["blue"])
    assert (np.diff(image[:, 0, 2].astype(int)) >= 0).all()


def test_larger_size_draws_the_same_scene(make_plain: Any, make_group: Any) -> None:
    scene = make_plain("white", make_group("circle", colour="black"))
    small, big = (render(scene, np.random.default_rng(2), size).astype(float) for size in (64, 128))
    shrunk = big.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(shrunk - small).mean() < 2.0
