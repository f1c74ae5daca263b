"""What lies in the folder of a setting: its methods, the model's identity and the prompts' conditioning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.files import in_one_piece
from budgetfusion_nodes.core.setting import Setting
from research.sweeps.prompts import PromptList, tiny_scenes_prompts

from .settings import PROMPT_SEED, PROMPTS, SEEDS

STOCK, NESTED = "stock", "nested"


@dataclass(frozen=True)
class Method:
    """One way to render all prompts."""

    family: str
    label: str
    steps: int
    key: str
    evaluations: float | None = None
    """A picture; None where they are counted, picture by picture."""

    @property
    def name(self) -> str:
        return f"{self.family} {self.label}"


@dataclass(frozen=True)
class Catalogue:
    """What lies in the folder of a setting: written with the host at hand, read without it."""

    setting: Setting
    """With the stock schedule."""
    nested: str
    """The other schedule, as a Setting holds it."""
    methods: tuple[Method, ...]
    made_with: Mapping[str, str]
    unusable: Mapping[str, str]
    """Peer -> why it does not run with this model."""

    def family(self, name: str) -> dict[int, Method]:
        """Steps -> method, rising."""
        return dict(sorted((m.steps, m) for m in self.methods if m.family == name))

    def save(self, folder: Path) -> None:
        content = {**vars(self), "setting": self.setting.to_dict(), "methods": [asdict(m) for m in self.methods]}
        with in_one_piece(folder / "catalogue.json") as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Catalogue:
        """InputError where there is none."""
        try:
            content = json.loads((folder / "catalogue.json").read_text(encoding="utf-8"))
            methods = tuple(Method(**m) for m in content.pop("methods"))
            return cls(setting=Setting.from_dict(content.pop("setting")), methods=methods, **content)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"bench: {folder.name} has no catalogue ({error}). Run the stage `catalogue`.") from error


def open_prompts(folder: Path, count: int = PROMPTS) -> PromptList:
    """The prompts of all settings: drawn once, then read."""
    file = folder / "prompts.json"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        counts = {"train": 0, "calibration": 0, "test": count}
        tiny_scenes_prompts(PROMPT_SEED, counts, {"train": 1, "calibration": 1, "test": SEEDS}).save(file)
    found = PromptList.load(file)
    return PromptList(found.prompts[:count], found.source)


def save_conditioning(folder: Path, tokens: NDArray[Any], pooled: NDArray[Any]) -> None:
    """tokens: [P, L, D]; pooled: [P, E], E = 0 where the encoder has none."""
    with in_one_piece(folder / "conditioning.safetensors") as partial:
        save_file({"tokens": np.ascontiguousarray(tokens), "pooled": np.ascontiguousarray(pooled)}, partial)


def load_conditioning(folder: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    found = load_file(folder / "conditioning.safetensors")
    return found["tokens"], found["pooled"]
