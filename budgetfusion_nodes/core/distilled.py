"""Distilled few-step models and LoRAs, told by what their files are called and what they say of themselves.

Such a model was trained for a handful of steps, so a curve of full-step renders says nothing about it and a render of
20 or 50 steps is wasted, or worse. The words are the ones that the field puts into file names (turbo, lightning, LCM,
"4steps" ...); a name without one of them is not told apart here, and one that has such a word by
accident only loses a plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

MOST_STEPS = 12
"""A count in a name up to here means a few-step model; "2000steps" is how long a LoRA was trained."""

TITLE_KEYS = ("modelspec.title", "modelspec.tags", "modelspec.architecture", "ss_output_name", "general.name")
"""Metadata in which a file names itself (safetensors ModelSpec, kohya's LoRA trainer, GGUF)."""

_INSIDE = (
    "turbo",
    "lightning",
    "schnell",
    "lightx2v",
    "causvid",
    "accvid",
    "selfforcing",
    "causalforcing",
    "turbodiffusion",
    "instaflow",
    "perflow",
    "longlive",
    "realtime",
)
"""Found anywhere in a name, whatever stands around them."""
_TOKENS = frozenset({"lcm", "tcd", "dmd", "pcm", "rcm", "tdm", "sdxs", "flash", "rapid", "sprint", "fast", "hyper"})
"""Found as a word of its own."""
_STARTS = ("fastwan", "fastvideo", "fasthunyuan", "fastmochi", "fasth", "hypersd", "nitro", "lcmlora", "dmd2")
_HARMLESS_AFTER = {"hyper": ("real", "detail"), "fast": ("food", "negative"), "flash": ("photo", "light", "back")}
_UNDONE = re.compile(r"(?<![a-z])(de|un|non)[-_ .]?(distil|turbo|lightning|schnell)", re.IGNORECASE)
"""A finetune that takes the distillation back, and needs its steps and its guidance again."""
_GUIDANCE = ("cfg", "guidance")
_STEPS = re.compile(r"(?<![0-9.])([0-9]{1,2})[-_ ]?(?:steps?|nfe)(?![a-z0-9])", re.IGNORECASE)
_WORD = re.compile(r"[A-Z]{2,}(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


@dataclass(frozen=True)
class FewSteps:
    """Why a model is taken for a distilled one."""

    name: str
    """The file or the metadata text that says so."""
    word: str
    """What in it does."""
    steps: int | None = None
    """The count that the name states."""


def few_steps_in(name: str) -> FewSteps | None:
    """A distilled model's or LoRA's file name or title -> the evidence; None where nothing tells."""
    stem = PurePosixPath(name.replace("\\", "/")).name
    stem = re.sub(r"\.(safetensors|sft|gguf|ckpt|pt|pth|bin)$", "", stem, flags=re.IGNORECASE)
    counted = next((match for match in _STEPS.finditer(stem) if 1 <= int(match[1]) <= MOST_STEPS), None)
    word = _word_in(stem)
    if counted is None:
        return None if word is None else FewSteps(name, word)
    return FewSteps(name, word or counted[0], int(counted[1]))


def few_steps(names: Iterable[str], metadata: Mapping[str, str] | None = None) -> FewSteps | None:
    """The first evidence among file names, then in the metadata of the model's own file."""
    titles = (str((metadata or {}).get(key, "")) for key in TITLE_KEYS)
    found = (few_steps_in(text) for text in (*names, *titles) if text)
    return next((evidence for evidence in found if evidence is not None), None)


def looks_distilled(cfg: float, max_steps: int) -> bool:
    """Whether a graph is set as for a distilled model: no guidance and a handful of steps."""
    return cfg <= 1.0 and max_steps <= MOST_STEPS


def _word_in(stem: str) -> str | None:
    if _UNDONE.search(stem):
        return None
    tokens = [token.lower() for token in _WORD.findall(stem)]
    joined = "".join(token for token in tokens if token.isalpha())
    for word in _INSIDE:
        if word in joined or word in stem.lower():
            return word
    for before, token, after in zip(["", *tokens], tokens, [*tokens[1:], ""], strict=False):
        if _says_so(before, token, after, tokens):
            return token
    return None


def _says_so(before: str, token: str, after: str, tokens: list[str]) -> bool:
    if token.startswith("distil"):  # guidance distillation takes cfg away and keeps the steps
        return before not in _GUIDANCE
    if token == "klein":  # FLUX.2 klein is the distilled one, klein base is not
        return "base" not in tokens
    if token in _TOKENS:
        return not after.startswith(_HARMLESS_AFTER.get(token, ("\0",)))
    return token.startswith(_STARTS)
