"""The setting a planner was fitted for, and how another setting differs from it, in an artist's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from .errors import InputError

LARGEST = 1e9  # beyond any cfg or denoise; NaN is not below it
CFG_TOLERANCE = 0.01  # the widget's own resolution: a cfg shown as the same number is the same


@dataclass(frozen=True)
class Setting:
    """Model, sampler, image size and precision of a render, as far as they change how many steps it needs."""

    model: str
    """Fingerprint from host/identity.py: equal for the same weights. A LoRA leaves it alone; the node warns."""
    sampler_name: str
    scheduler: str
    cfg: float
    width: int | None
    """Pixels; None where the node cannot know it (it is then not compared)."""
    height: int | None
    denoise: float = 1.0
    model_name: str = ""
    """For display only."""
    precision: str = ""
    """Of the denoiser's arithmetic: fp32, fp16, bf16. Its rounding differs from one step count to the next, so it is
    part of every distance. Empty where nobody knows it (it is then not compared)."""
    sampling: str = ""
    """Prediction type, shift and sigmas of the model, from host/model_sampling.py. Empty in planners of before, whose
    `model` says it too."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Setting:
        """Checked reading of `to_dict`; InputError names the field that is wrong."""
        return cls(
            model=_text(data, "model"),
            sampler_name=_text(data, "sampler_name"),
            scheduler=_text(data, "scheduler"),
            cfg=_number(data, "cfg"),
            width=_pixels(data, "width"),
            height=_pixels(data, "height"),
            denoise=_number(data, "denoise") if "denoise" in data else 1.0,
            model_name=_text(data, "model_name") if "model_name" in data else "",
            precision=_text(data, "precision") if "precision" in data else "",
            sampling=_text(data, "sampling") if "sampling" in data else "",
        )

    def describe(self) -> str:
        """One line for a node or a list of planners."""
        size = f", {self.width} x {self.height}" if self.width and self.height else ""
        name = self.model_name or "model " + self.model[:12]
        precision = f", {self.precision}" if self.precision else ""
        return f"{name}, {self.sampler_name} / {self.scheduler}, cfg {self.cfg:g}{size}{precision}"


def with_precision(setting: Setting, provenance: Any) -> Setting:
    """`setting` with its precision. Sweeps and planners of before settings had one name it in the provenance of the
    sweep alone, among the sampling options."""
    for key in ("spec", "sampling", "dtype"):
        provenance = provenance.get(key) if isinstance(provenance, Mapping) else None
    named = provenance if provenance in ("fp32", "bf16") else ""
    return replace(setting, precision=setting.precision or named)


def differences(planned: Setting, actual: Setting) -> tuple[str, ...]:
    """One sentence for each way in which `actual` leaves what the planner was calibrated for; empty if none."""
    found: list[str] = []
    if planned.model != actual.model:
        found.append(_model_sentence(planned, actual))
    for label, was, now in (
        ("sampler", planned.sampler_name, actual.sampler_name),
        ("scheduler", planned.scheduler, actual.scheduler),
    ):
        if was != now:
            found.append(f"The planner was calibrated for {label} {was}, this render uses {now}.")
    if abs(planned.cfg - actual.cfg) >= CFG_TOLERANCE:
        found.append(f"The planner was calibrated for cfg {planned.cfg:g}, this render uses {actual.cfg:g}.")
    sizes = (planned.width, planned.height, actual.width, actual.height)
    if all(sizes) and sizes[:2] != sizes[2:]:
        found.append(
            f"The planner was calibrated for {planned.width} x {planned.height} pixels, this render is "
            f"{actual.width} x {actual.height}."
        )
    if abs(planned.denoise - actual.denoise) >= CFG_TOLERANCE:
        found.append(
            f"The planner was calibrated for denoise {planned.denoise:g}, this render uses {actual.denoise:g}."
        )
    if planned.precision and actual.precision and planned.precision != actual.precision:
        found.append(
            f"The planner was calibrated for precision {planned.precision}, this render uses {actual.precision}."
        )
    return tuple(found)


def _model_sentence(planned: Setting, actual: Setting) -> str:
    if planned.model_name and planned.model_name == actual.model_name:
        return f"The planner was calibrated for {planned.model_name} as it is; this one is changed (a LoRA or a patch)."
    return (
        f"The planner was calibrated for {planned.model_name or 'another model'}, this render uses "
        f"{actual.model_name or 'a different one'}."
    )


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str):
        raise InputError(f"setting: {key} must be text, got {value!r}.")
    return value


def _number(data: Mapping[str, Any], key: str) -> float:
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < LARGEST:
        raise InputError(f"setting: {key} must be a finite number, got {value!r}.")
    return float(value)


def _pixels(data: Mapping[str, Any], key: str) -> int | None:
    value = data.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"setting: {key} must be a number of pixels or absent, got {value!r}.")
    return value
