"""Renderers without a host, whose distances follow a known law: of a calibration, each prompt and seed with its own
rate, and of a search for a nested schedule."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from budgetfusion_nodes.calibration.executors import InlineExecutor
from budgetfusion_nodes.calibration.prompts import CalibrationPrompt
from budgetfusion_nodes.calibration.records import Encoded, Measurement, Subject
from budgetfusion_nodes.calibration.search_store import Look, run_digest
from budgetfusion_nodes.calibration.trajectory import RenderError
from budgetfusion_nodes.core.curves import METRICS
from budgetfusion_nodes.core.schedule import SigmaQuantile, Sigmas
from budgetfusion_nodes.core.setting import Setting
from budgetfusion_nodes.metrics.clip_score import NAME as CLIP_SCORE

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


def karras(steps: int) -> Sigmas:
    """[steps + 1] from 14.6 to .03, and 0 (Karras et al. 2022, eq. 5)."""
    share = np.linspace(0, 1, steps)
    levels = (14.6 ** (1 / 7) + share * (0.03 ** (1 / 7) - 14.6 ** (1 / 7))) ** 7
    return np.append(levels, 0).astype(np.float32)


class StubLooker:
    """A run that becomes coarse above `settled` shows another picture; a prefix below `enough` steps a worse one."""

    quantile = SigmaQuantile.from_sigmas(karras(128))
    tail_end = 1.0

    def __init__(
        self, settled: float, enough: int, stop_after: int = 10**9, scores: float | None = None, seconds: float = 0.0
    ) -> None:
        """scores: mean CLIP score; then a short prefix is worse by it alone. seconds: that a picture takes."""
        self.settled, self.enough, self.stop_after, self.scores = settled, enough, stop_after, scores
        self.seconds = seconds
        self.rendered: list[tuple[str, int, str]] = []
        self.fails: tuple[str, ...] = ()
        self.fails_along: int | None = None
        """Steps of the prefix; None: along every run."""

    def stock(self, steps: int) -> Sigmas:
        return karras(steps)

    def looks(
        self, text: str, seed: int, dense: Sigmas, runs: Sequence[Sigmas], kept: bytes | None
    ) -> Iterator[tuple[Sigmas, Look]]:
        assert kept in (None, text.encode()), "the dense picture of another prompt"
        for sigmas in [*([dense] if kept is None else []), *runs]:
            if text in self.fails and self.fails_along in (None, self._prefix(sigmas, dense)):
                raise RenderError("no numbers")
            if len(self.rendered) >= self.stop_after:
                raise KeyboardInterrupt
            time.sleep(self.seconds)
            self.rendered.append((text, seed, run_digest(sigmas)))
            yield sigmas, self._look(text, seed, sigmas, dense)

    def _look(self, text: str, seed: int, sigmas: Sigmas, dense: Sigmas) -> Look:
        rng = np.random.default_rng([seed, len(sigmas)])
        own = np.random.default_rng(seed)
        distance = 0.02 + 0.01 * rng.random()
        if len(sigmas) == 3:  # the crudest count
            distance = 1.0
        elif len(sigmas) == len(dense) and (sigmas == dense).all():
            distance = 0.0
        elif self._coarse_from(sigmas, dense) > self.settled * 1.0001:
            distance = 0.5
        short = 0 < self._prefix(sigmas, dense) < self.enough
        scored = self.scores is not None
        shift = 1.0 if short and not scored else 0.0
        features = {"low-pass": own.normal(size=12) + 1.5 * shift + 0.005 * rng.normal(size=12)}
        latent = text.encode() if distance == 0.0 else None
        level, score = own.normal() - shift, own.normal(0.0, 0.02) + rng.normal(0.0, 0.002)
        numbers: dict[str, float] = dict.fromkeys(METRICS, distance)
        if self.scores is not None:
            numbers[CLIP_SCORE] = float(self.scores + score - (0.02 if short else 0.0))
        return Look(numbers, float(level), features, f"{seed}".encode(), latent, 2.0 * (len(sigmas) - 1))

    @staticmethod
    def _prefix(sigmas: Sigmas, dense: Sigmas) -> int:
        own = len(sigmas) > 20 and not np.array_equal(sigmas, dense)
        return int((sigmas > 0.95).sum()) if own else 0

    @staticmethod
    def _coarse_from(sigmas: Sigmas, dense: Sigmas) -> float:
        length = min(len(sigmas), len(dense))
        return float(sigmas[int(np.isclose(sigmas[:length], dense[:length], rtol=1e-5).argmin()) - 1])


def difficulty(text: str) -> float:
    """Standard normal, decided by the text alone."""
    return float(np.random.default_rng(_number(text)).normal())


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def stub_executor(renderer: StubRenderer, target: int | None = None) -> InlineExecutor:
    return InlineExecutor(renderer, Subject(SETTING, target or renderer.target), BACKENDS)
