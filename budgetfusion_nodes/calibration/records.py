"""What the store holds, as values: no database and no host in sight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..core.errors import InputError
from ..core.schedule import NESTED, STOCK, NestedSchedule
from ..core.setting import Setting
from ..predictor.features import shorten

LARGE = 1 << 16
"""Numbers of a conditioning from which on bfloat16, which has float32's range, halves the store."""


@dataclass(frozen=True)
class Subject:
    """What is calibrated: everything besides the prompt, the seed and the count that moves the picture."""

    setting: Setting
    target: int
    """T: the count whose picture counts as full quality."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Digests of the negative prompt, of extras laid on each prompt, of the VAE."""

    @property
    def schedule(self) -> dict[str, Any]:
        """The setting's: {"kind": "stock"}, or {"kind": "nested", ...} with its numbers."""
        nested = NestedSchedule.from_text(self.setting.schedule)
        return {"kind": STOCK} if nested is None else {"kind": NESTED, **asdict(nested)}

    def digest(self) -> str:
        """SHA-256 of all but the display name."""
        setting = {key: value for key, value in self.setting.to_dict().items() if key != "model_name"}
        whole = {"setting": setting, "target": self.target, "schedule": self.schedule, "facts": self.facts}
        return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class Encoded:
    """A prompt's conditioning on the CPU."""

    tokens: Tensor
    """[L, D] float32 or bfloat16, L <= MAX_TOKENS."""
    pooled: Tensor | None
    """[P] of the same type, or None."""

    @classmethod
    def of(cls, tokens: Tensor, pooled: Tensor | None) -> Encoded:
        """tokens: [L, D]; pooled: [P] or None. InputError where a value is not finite: the text encoder failed."""
        for part in (tokens, pooled):
            if part is not None and not torch.isfinite(part).all():
                raise InputError("The text encoder gave values that are not finite. Check it and its precision.")
        short = shorten(tokens.detach().float().cpu())
        dtype = torch.bfloat16 if short.numel() > LARGE else torch.float32
        return cls(short.to(dtype).contiguous(), None if pooled is None else pooled.detach().cpu().to(dtype))

    def to_bytes(self) -> bytes:
        parts = {"tokens": self.tokens}
        return save(parts if self.pooled is None else {**parts, "pooled": self.pooled.contiguous()})

    @classmethod
    def from_bytes(cls, content: bytes) -> Encoded:
        """Reads `to_bytes`. KeyError for the empty bytes of a prompt that was only remembered."""
        parts = load(content) if content else {}
        return cls(parts["tokens"], parts.get("pooled"))

    def digest(self) -> str:
        return hashlib.sha256(self.to_bytes()).hexdigest()


@dataclass(frozen=True)
class Measurement:
    """One count of one trajectory."""

    steps: int
    distances: Mapping[str, float]
    """Metric -> distance to the target picture, >= 0; and, where it could be told, `clip_score`: no distance, but how
    well this picture fits its prompt (metrics/clip_score.py)."""
    l_snr: float
    """dB of the picture itself."""
    evaluations: int
    render_seconds: float
    measure_seconds: float


@dataclass(frozen=True)
class SetAside:
    """A trajectory that is left out, and why."""

    prompt_id: int
    seed: int
    steps: int
    reason: str


def signed(seed: int) -> int:
    """A seed of 0 to 2^64 - 1 as SQLite holds it: 64 bits with a sign."""
    return seed - (1 << 64) if seed >= 1 << 63 else seed
