"""The prompts and seeds of a sweep: drawn once, written first, and from then on the only input of the run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.files import in_one_piece
from budgetfusion_nodes.predictor.dataset import SPLITS
from budgetfusion_nodes.tiny_scenes.captions import describe
from budgetfusion_nodes.tiny_scenes.scenes import Scene, sample_scenes

FORMAT = "budgetfusion.sweep_prompts"
VERSION = 1
COUNTS: Mapping[str, int] = {"train": 800, "calibration": 200, "test": 200}
SEEDS: Mapping[str, int] = {"train": 2, "calibration": 2, "test": 4}
LARGEST_SEED = 2**32


@dataclass(frozen=True)
class StudyPrompt:
    """One prompt, the side of the split it is on, and the noise seeds it is rendered with."""

    text: str
    split: str
    seeds: tuple[int, ...]
    key: str
    """What it shows, whatever the wording: no two prompts of a list share it."""

    def to_dict(self) -> dict[str, Any]:
        return {"text": self.text, "split": self.split, "seeds": list(self.seeds), "key": self.key}


@dataclass(frozen=True)
class PromptList:
    """All prompts of a sweep, in the order in which they are rendered."""

    prompts: tuple[StudyPrompt, ...]
    source: Mapping[str, Any]
    """How it was made; JSON-safe."""

    def __post_init__(self) -> None:
        for name in ("text", "key"):
            values = [getattr(prompt, name) for prompt in self.prompts]
            if len(set(values)) != len(values):
                raise InputError(f"prompt list: two prompts share one {name}; each scene may be in one split only.")
        for prompt in self.prompts:
            if prompt.split not in SPLITS or not prompt.seeds or len(set(prompt.seeds)) != len(prompt.seeds):
                raise InputError(f"prompt list: {prompt.text!r} needs a split of {SPLITS} and different seeds.")

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(index of the prompt, index of its seed) of every render, the seeds of a prompt one after the other."""
        return tuple((i, s) for i, prompt in enumerate(self.prompts) for s in range(len(prompt.seeds)))

    def digest(self) -> str:
        """SHA-256 of what is rendered."""
        content = json.dumps([prompt.to_dict() for prompt in self.prompts], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        content = {
            "format": FORMAT,
            "version": VERSION,
            "source": dict(self.source),
            "prompts": [prompt.to_dict() for prompt in self.prompts],
        }
        with in_one_piece(Path(path)) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PromptList:
        """Reads `save`; a list of your own needs text, split and seeds for each prompt (key: the text, left out)."""
        file = Path(path)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if (content.get("format"), content.get("version")) != (FORMAT, VERSION):
                raise InputError(f"{file.name} is no prompt list of version {VERSION}.")
            prompts = tuple(
                StudyPrompt(
                    str(p["text"]), str(p["split"]), tuple(int(s) for s in p["seeds"]), str(p.get("key", p["text"]))
                )
                for p in content["prompts"]
            )
            return cls(prompts, dict(content.get("source", {})))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file.name} cannot be read as a prompt list ({error}).") from error


def tiny_scenes_prompts(seed: int, counts: Mapping[str, int] = COUNTS, seeds: Mapping[str, int] = SEEDS) -> PromptList:
    """Tiny Scenes captions from trivial to busy, in the generator's natural mix of scenes.

    Training scenes are ones that the generator knows too. Calibration and test scenes come from those held out from
    everything, split at random, so that conformal calibration holds on the test split. The order is
    random, so any first part of a sweep is a smaller sweep of the same kind.
    """
    rng = np.random.default_rng([seed, 0])
    train = sample_scenes(counts["train"], _child_seed(seed, 1), held_out=False)
    held = sample_scenes(counts["calibration"] + counts["test"], _child_seed(seed, 2), held_out=True)
    held = [held[i] for i in rng.permutation(len(held))]
    parts = {"train": train, "calibration": held[: counts["calibration"]], "test": held[counts["calibration"] :]}
    prompts = [_prompt(scene, split, seeds[split], rng) for split, scenes in parts.items() for scene in scenes]
    source = {"grammar": "tiny_scenes", "seed": seed, "prompts": dict(counts), "seeds": dict(seeds)}
    return PromptList(tuple(prompts[i] for i in rng.permutation(len(prompts))), source)


def calibration_scenes(source: Mapping[str, Any]) -> frozenset[str]:
    """Keys of the calibration scenes of the prompt list with this `source`, drawn again: a test set for its planner
    must hold none of them. Empty for prompt lists of another kind. `not_in`: sources of lists whose scenes were left
    out of it."""
    joined = source.get("joined")
    if isinstance(joined, list):
        return frozenset().union(*(calibration_scenes(part) for part in joined if isinstance(part, Mapping)))
    drawn = frozenset(prompt.key for prompt in _drawn_again(source) if prompt.split == "calibration")
    left_out = (prompt.key for other in source.get("not_in", ()) for prompt in _drawn_again(other))
    return drawn.difference(left_out)


def _drawn_again(source: Mapping[str, Any]) -> tuple[StudyPrompt, ...]:
    if source.get("grammar") != "tiny_scenes" or not isinstance(source.get("seed"), int):
        return ()
    counts = source.get("prompts")
    known = dict(counts) if isinstance(counts, Mapping) else {}
    return tiny_scenes_prompts(source["seed"], {**COUNTS, **known}).prompts


def _prompt(scene: Scene, split: str, seeds: int, rng: np.random.Generator) -> StudyPrompt:
    noise = rng.choice(LARGEST_SEED, seeds, replace=False) if seeds > 1 else rng.integers(LARGEST_SEED, size=1)
    return StudyPrompt(describe(scene, rng), split, tuple(int(s) for s in noise), scene.key)


def _child_seed(seed: int, index: int) -> int:
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
