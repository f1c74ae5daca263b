"""The noise schedule and prediction type that a MODEL samples with, apart from its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

OBJECT = "model_sampling"
NAMELESS = {"object", "Module", "ModelSampling", "ModelSamplingAdvanced", "ModelSamplingOutput"}
"""Classes that every host model has, or that a node makes up on the spot: they say nothing about the sampling."""

SCHEDULE = "Sampling"
"""Part of the name of the host's schedule classes, and of no prediction type's."""

USUAL = {"noise_scale": 1.0, "multiplier": 1000.0, "sigma_data": 1.0}
"""Numbers of the host's sampling objects that move the image and leave the sigmas as they are, and what nearly every
model has: the scale of the noise, what sigma is multiplied with for the network, the data's spread (EDM)."""


@dataclass(frozen=True)
class Sampling:
    """Another one of these is another denoiser to a planner, though the weights are the same."""

    prediction: str = ""
    """Name of the host's class: EPS, V_PREDICTION, CONST (flow), EDM, LCM, ...; empty where the model does not say."""
    schedule: str = ""
    """Name of the host's class: ModelSamplingDiscrete, ModelSamplingDiscreteFlow, ModelSamplingFlux, ..."""
    sigma_min: float | None = None
    sigma_mid: float | None = None
    """Half way through the schedule (`percent_to_sigma(.5)`): a shift or another beta schedule moves it."""
    sigma_max: float | None = None
    shift: float | None = None
    """As the host's flow models have it; for Flux the mu that follows from the image's size."""
    others: tuple[tuple[str, float], ...] = ()
    """Those of USUAL that are not as usual."""

    def text(self) -> str:
        """One line, three significant digits; equal for equal samplings in all host versions."""
        sigmas = " / ".join("?" if s is None else f"{s:.3g}" for s in (self.sigma_min, self.sigma_mid, self.sigma_max))
        shift = "" if self.shift is None else f", shift {self.shift:.3g}"
        others = "".join(f", {name.replace('_', ' ')} {value:.3g}" for name, value in self.others)
        return f"{self.prediction or '?'} {self.schedule or '?'}{shift}, sigma {sigmas}{others}"


def read_sampling(model: Any) -> Sampling:
    """What this MODEL will sample with: its own patch, or what it was loaded with, but no other clone's patch."""
    return describe(model.get_model_object(OBJECT))


def loaded_sampling(model: Any) -> Sampling:
    """What the model was loaded with, past the patches of this MODEL and of earlier runs."""
    saved = getattr(model, "object_patches_backup", None) or {}
    return describe(saved[OBJECT] if OBJECT in saved else getattr(model.model, OBJECT, None))


def describe(sampling: Any) -> Sampling:
    """Sampling of the host's object."""
    if sampling is None:
        return Sampling()
    parts = [c for c in type(sampling).__mro__ if c.__name__ not in NAMELESS]
    names = sorted(c.__name__ for c in parts if not any(c is not d and issubclass(d, c) for d in parts))
    return Sampling(
        " ".join(name for name in names if SCHEDULE not in name),
        " ".join(name for name in names if SCHEDULE in name),
        _number(lambda: sampling.sigma_min),
        _number(lambda: sampling.percent_to_sigma(0.5)),
        _number(lambda: sampling.sigma_max),
        _number(lambda: sampling.shift),
        tuple(_unusual(sampling)),
    )


def _unusual(sampling: Any) -> Iterator[tuple[str, float]]:
    for name, usual in USUAL.items():
        value = _number(lambda name=name: getattr(sampling, name))
        if value is not None and value != usual:
            yield name, value


def _number(read: Any) -> float | None:
    try:
        return float(read())
    except Exception:  # classes of other packs have what they like
        return None
