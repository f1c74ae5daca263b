"""Memory on the way back: what pictures were rendered from, and how what was measured of them gets into the store.

Whoever renders one prompt and seed with several counts says so (`origin_of`, `mark`); whoever measures the pictures
calls `remember`. The database library is imported on use. Nothing here takes away a picture: what fails is said.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..core.errors import BudgetFusionError
from ..core.messages import Message, message
from ..core.schedule import NESTED, STOCK
from ..core.setting import Setting
from ..core.stages import told
from ..host.conditioning import extract_all
from ..host.identity import read_identity
from ..host.paths import store_path
from ..predictor.planner import Planner
from ..predictor.prediction import Prediction
from .choice import AUTO, choose_planner
from .memory import UNTOLD, only_seed, prompt_facts, render_facts
from .service import Request, render_setting

if TYPE_CHECKING:
    from ..calibration.records import Measurement, Subject

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """A prompt and a seed at a setting: what pictures of several counts were rendered from."""

    setting: Setting
    facts: Mapping[str, str]
    tokens: Tensor
    """[L, D]"""
    pooled: Tensor | None
    seed: int


def origin_of(
    model: Any,
    positive: Any,
    negative: Any,
    latent_image: Mapping[str, Any],
    request: Request,
    seed: int,
    schedule: str = STOCK,
) -> Origin | None:
    """Where a render comes from; None where it cannot be remembered as one prompt and seed: several prompts or
    pictures, a part of the schedule, or something that nobody can read."""
    try:
        prompts, _ = extract_all(positive)
        if len(prompts) != 1 or only_seed(seed, latent_image) is None or request.denoise < 1.0:
            return None
        setting = render_setting(read_identity(model), model, positive, request, latent_image)
        facts = {**prompt_facts(positive), **render_facts(negative, latent_image)}
        if UNTOLD in facts:
            return None
        prompt = prompts[0]
        return Origin(replace(setting, schedule=schedule), facts, prompt.tokens, prompt.pooled, seed)
    except Exception:  # for the store's sake no render may fail
        log.warning("BudgetFusion cannot remember this render", exc_info=True)
        return None


_ORIGINS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Pictures -> (Origin, counts); forgotten with the pictures."""


def mark(pictures: Tensor, origin: Origin | None, counts: tuple[int, ...]) -> None:
    """Says what these pictures, one a count, were rendered from, to whoever measures them."""
    if origin is not None and pictures.shape[0] == len(counts):
        _ORIGINS[pictures] = (origin, counts)


def marked(pictures: Tensor) -> tuple[Origin, tuple[int, ...]] | None:
    """What `mark` said of this very tensor; a node between that changes pictures gives another."""
    return _ORIGINS.get(pictures)


def _subject(origin: Origin, target: int) -> Subject:
    from ..calibration.records import Subject

    return Subject(origin.setting, target, {name: value for name, value in origin.facts.items() if value})


def known_counts(origin: Origin, target: int, backends: Mapping[str, str]) -> dict[int, Measurement]:
    """What the store holds of this render, measured by these backends; nothing where it cannot be read."""
    try:
        if not store_path().is_file():
            return {}
        from ..calibration.records import Encoded
        from ..calibration.store import Store
        from ..calibration.store_memory import measured_of

        encoded = Encoded.of(origin.tokens, origin.pooled)
        with Store.at(store_path()) as store:
            return measured_of(store, _subject(origin, target), encoded, origin.seed, backends)
    except Exception:  # then it is measured once more, and `remember` says what is wrong
        log.warning("BudgetFusion cannot look up what was measured of this render", exc_info=True)
        return {}


def remember(
    origin: Origin,
    distances: Mapping[int, Mapping[str, float]],
    decibel: Mapping[int, float],
    backends: Mapping[str, str],
    source: str,
    planner: Planner | None = None,
) -> Message:
    """Keeps what was measured; says so, or why it could not. Never raises for the store's sake.

    distances: count -> metric -> distance to the picture at the greatest count, which is among them with zeros.
    decibel: count -> L-SNR. source: one of core.sources. planner: that of the render; left out, the one that would be
    chosen for it. What it says of the prompt is kept beside, so that it can be judged later.
    """
    try:
        from ..calibration.records import Encoded, Measurement
        from ..calibration.store import Store
        from ..calibration.store_memory import Remembered
        from ..calibration.store_memory import remember as write

        counts = sorted(distances)
        subject = _subject(origin, counts[-1])
        measured = [Measurement(n, dict(distances[n]), decibel[n], 0, 0.0, 0.0) for n in counts]
        predictor, predicted = _predicted(origin, counts[-1], planner)
        encoded = Encoded.of(origin.tokens, origin.pooled)
        found = Remembered(subject, encoded, origin.seed, backends, measured, source, predictor, predicted)
        with Store.at(store_path()) as store:
            write(store, found)
            return store.said or message("remembered", counts=len(counts))
    except Exception as error:  # the pictures are made and measured: a full disk must not take them away
        log.warning("BudgetFusion could not remember what was measured", exc_info=True)
        said = error.message if isinstance(error, BudgetFusionError) else told(error)
        return message("not_remembered", reason=said)


def _predicted(origin: Origin, target: int, chosen: Planner | None) -> tuple[str, bytes]:
    """(fingerprint, `predicted_bytes`) of the planner that serves this render; empty without one."""
    try:
        schedule = STOCK if origin.setting.schedule == STOCK else NESTED
        planner = chosen or choose_planner(AUTO, origin.setting, [], schedule=schedule)
    except BudgetFusionError:
        return "", b""
    if not isinstance(planner, Planner) or planner.target_steps != target:
        return "", b""
    return planner.fingerprint, predicted_bytes(planner.predict(origin.tokens, origin.pooled))


def predicted_bytes(said: Prediction) -> bytes:
    """float32 [2 K + 1]: median and high shortfall over the scale, and the out-of-distribution score."""
    return np.append(said.normalised.max(axis=1)[:, 1:].T, said.distance).astype(np.float32).tobytes()
