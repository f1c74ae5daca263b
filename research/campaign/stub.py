"""A renderer without a host: distances follow a known law, each prompt and seed with its own rate."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from budgetfusion_nodes.calibration.executors import InlineExecutor
from budgetfusion_nodes.calibration.prompts import CalibrationPrompt
from budgetfusion_nodes.calibration.records import Encoded, Measurement, Subject
from budgetfusion_nodes.calibration.trajectory import RenderError
from budgetfusion_nodes.core.curves import METRICS
from budgetfusion_nodes.core.setting import Setting

SETTING = Setting("stub", "euler", "simple", 1.0, 64, 64, model_name="stub")
BACKENDS = {"l_snr": "l_snr:stub#1", "d_sim": "d_sim:stub#2", "i_clip": "i_clip:stub#3"}
SIZE = dict(zip(METRICS, (6.0, 0.4, 0.2), strict=True))


def stub_prompts(count: int) -> list[CalibrationPrompt]:
    return [CalibrationPrompt(f"prompt number {i}", "subject") for i in range(count)]


@dataclass(frozen=True)
class StubReference:
    found: Measurement
    latent: bytes

    def to_bytes(self) -> bytes:
        return self.latent


class StubRenderer:
    """e_m(n) = size_m * ((1 / n)^rate - (1 / T)^rate), exact and instant; counts what it was asked for."""

    def __init__(self, target: int, seconds: float = 0.0, fails: Any = lambda text, seed, steps, careful: None) -> None:
        self.target, self.seconds, self.fails = target, seconds, fails
        self.asked: list[tuple[str, int, int, bool]] = []
        self.encodings = 0

    def encode(self, text: str) -> Encoded:
        self.encodings += 1
        rng = np.random.default_rng(_number(text))
        tokens = rng.normal(size=(6, 16)) + 2.0 * difficulty(text)
        return Encoded.of(torch.from_numpy(tokens).float(), torch.from_numpy(rng.normal(size=8)).float())

    def reference(self, text: str, seed: int, steps: int, kept: bytes | None, careful: bool) -> StubReference:
        if kept is None:
            self._work(text, seed, steps, careful)
        latent = f"{text}:{seed}".encode()
        assert kept in (None, latent), "a latent of another trajectory came back"
        return StubReference(self._found(text, seed, steps), latent)

    def measure(self, reference: Any, text: str, seed: int, steps: int, careful: bool) -> Measurement:
        assert reference.latent == f"{text}:{seed}".encode()
        self._work(text, seed, steps, careful)
        return self._found(text, seed, steps)

    def _work(self, text: str, seed: int, steps: int, careful: bool) -> None:
        self.asked.append((text, seed, steps, careful))
        reason = self.fails(text, seed, steps, careful)
        if reason:
            raise RenderError(reason)
        if self.seconds:
            time.sleep(self.seconds)

    def _found(self, text: str, seed: int, steps: int) -> Measurement:
        rate = np.exp(0.4 + 0.5 * difficulty(text) + 0.2 * np.random.default_rng([seed, 1]).normal())
        share = (2.0 / (steps + 1.0)) ** rate - (2.0 / (self.target + 1.0)) ** rate
        distances = {metric: float(max(share, 0.0) * size) for metric, size in SIZE.items()}
        return Measurement(steps, distances, 9.0 - distances["l_snr"], steps, 0.01 * steps, 0.001)


def difficulty(text: str) -> float:
    """Standard normal, decided by the text alone."""
    return float(np.random.default_rng(_number(text)).normal())


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def stub_executor(renderer: StubRenderer, target: int | None = None) -> InlineExecutor:
    return InlineExecutor(renderer, Subject(SETTING, target or renderer.target), BACKENDS)
