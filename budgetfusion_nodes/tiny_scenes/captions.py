"""Words for scenes: several phrasings each, and the closed vocabulary they are made of."""

from __future__ import annotations

import re

import numpy as np

from .scenes import COLOURS, Background, Group, Scene

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
SIZE_WORDS = {
    "tiny": ("tiny", "very small"),
    "small": ("small", "little"),
    "medium": ("medium", "", "medium"),
    "large": ("large", "big"),
}
FILL_WORDS = {
    "solid": ("", "", "solid"),
    "outlined": ("outlined", "hollow"),
    "striped": ("striped",),
    "spotted": ("spotted", "dotted"),
}
START, END, UNKNOWN = "<start>", "<end>", "<unknown>"
MAX_TOKENS = 48

_WORD = re.compile(r"[a-z]+|\d+|[^\sa-z\d]")


def words(text: str) -> list[str]:
    """Lower-case words, numbers and single punctuation marks of a text."""
    return _WORD.findall(text.lower())


def _plural(shape: str) -> str:
    return "crosses" if shape == "cross" else shape + "s"


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def describe_group(group: Group, rng: np.random.Generator) -> str:
    noun = group.shape if group.count == 1 else _plural(group.shape)
    number = _pick(rng, ("a", "a", "one")) if group.count == 1 else NUMBERS[group.count]
    parts = [
        number,
        _pick(rng, SIZE_WORDS[group.size]),
        _pick(rng, FILL_WORDS[group.fill]),
        group.colour,
        noun,
        group.place or "",
    ]
    return " ".join(part for part in parts if part)


def describe_background(background: Background, rng: np.random.Generator) -> str:
    """A noun phrase that names the pattern, both colours and the scale."""
    colour, second = background.colour, background.second
    scale = f"{background.scale} " if background.scale else ""
    match background.pattern:
        case "plain":
            return _pick(rng, (f"a plain {colour} background", f"a {colour} background", f"plain {colour}"))
        case "gradient":
            return _pick(rng, (f"a gradient background from {colour} to {second}", f"a {colour} to {second} gradient"))
        case "dots":
            return _pick(rng, (f"a {colour} background with {scale}{second} dots", f"{scale}{second} dots on {colour}"))
        case "checks":
            return _pick(
                rng, (f"a {scale}{colour} and {second} checked background", f"{scale}{colour} and {second} checks")
            )
        case "bricks":
            return _pick(
                rng,
                (
                    f"a wall of {scale}{colour} bricks with {second} joints",
                    f"{scale}{colour} bricks with {second} joints",
                ),
            )
        case stripes:
            return _pick(
                rng, (f"a {colour} background with {scale}{second} {stripes}", f"{scale}{second} {stripes} on {colour}")
            )


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """One phrasing of the scene, drawn with `rng`: wording, order of groups and place of the background vary."""
    background = describe_background(scene.background, rng)
    if not scene.groups:
        return _pick(rng, (background, f"{background} with nothing on it", f"an empty picture of {background}"))
    parts = [describe_group(group, rng) for group in rng.permutation(np.array(scene.groups, dtype=object))]
    listed = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return _pick(
        rng,
        (
            f"{listed} on {background}",
            f"{listed} in front of {background}",
            f"{background} with {listed}",
            f"a picture of {listed} on {background}",
        ),
    )


def vocabulary() -> list[str]:
    """Every word the grammar can produce, in a fixed order, after the three special tokens. Index = token id."""
    shapes = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "diamond")
    known = {
        word
        for options in (*SIZE_WORDS.values(), *FILL_WORDS.values())
        for option in options
        for word in option.split()
    }
    known |= {
        *COLOURS,
        *shapes,
        *map(_plural, shapes),
        *NUMBERS,
        "a",
        "an",
        "and",
        "on",
        "in",
        "at",
        "the",
        "of",
        "with",
        "to",
        "from",
        ",",
    }
    known |= {"centre", "left", "right", "top", "bottom", "front", "plain", "gradient", "background", "dots", "checked"}
    known |= {"checks", "wall", "bricks", "joints", "horizontal", "vertical", "diagonal", "stripes", "fine", "wide"}
    known |= {"nothing", "it", "empty", "picture"}
    return [START, END, UNKNOWN, *sorted(known)]
