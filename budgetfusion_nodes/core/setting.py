"""The setting a planner was fitted for, and how another setting differs from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Gt, Lt  # what pydantic checks, without pydantic, which is imported on use

from .errors import InputError
from .messages import Message, message
from .schedule import STOCK, NestedSchedule, described

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

LARGEST = 1e9  # beyond any cfg or denoise
CFG_TOLERANCE = 0.01  # the widget's own resolution: a cfg shown as the same number is the same
SIZE_SHIFT = "ModelSamplingFlux"
"""The host's sampling whose shift follows from the size of the image."""

CONTENT = re.compile(r" content=[0-9a-f]{8}(?= |$)")
"""Of a change's key: the digest of the pictures that a patch carries (IP-Adapter)."""

Number = Annotated[float, Gt(-LARGEST), Lt(LARGEST)]
Count = Annotated[int, Ge(1)]


@dataclass(frozen=True)
class Setting:
    """Model, sampler, image and conditioning of a render, as far as they change how many steps it needs.

    Fields with a default came later: files of before lack them, and what is not known is not compared.
    """

    model: str
    """Fingerprint from host/identity.py: equal for the same weights. A LoRA leaves it alone; the node warns."""
    sampler_name: str
    scheduler: str
    cfg: Number
    width: Count | None
    """Pixels; None where the node cannot know it."""
    height: Count | None
    denoise: Number = 1.0
    model_name: str = ""
    """For display only."""
    precision: str = ""
    """Of the denoiser's arithmetic: fp32, fp16, bf16. Its rounding differs from one step count to the next, so it is
    part of every distance. Empty where nobody knows it."""
    frames: Count | None = None
    """Of a video; 1 for a picture, None where the node cannot know it."""
    guidance: Number | None = None
    """Distilled guidance (Flux) that the conditioning carries; None where it carries none."""
    sampling: str = ""
    """Prediction type, shift and sigmas of the model: what stands before the first comma is the type. Empty in planners
    of before, whose `model` says it too."""
    schedule: str = STOCK
    """`NestedSchedule.to_text`, or "stock"."""
    extras: tuple[str, ...] = ()
    """What else the conditioning and the latent carry that moves the image: a kind of host/conditioning.py, and after a
    blank its detail where there is one. Planners of before were calibrated with none."""
    changes: tuple[str, ...] = ()
    """What had been done to the model since it was loaded, see `change_keys`."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe."""
        return {**asdict(self), "extras": list(self.extras), "changes": list(self.changes)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Setting:
        """Checked reading of `to_dict`; InputError names the field that is wrong."""
        from pydantic import ValidationError

        try:
            setting = _adapter().validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            field, detail = first_fault(error)
            raise InputError(message("setting_field", field=field, detail=detail)) from error
        NestedSchedule.from_text(setting.schedule)  # InputError where nobody could render along it
        return setting

    def describe(self) -> str:
        """One line for a node or a list of planners."""
        size = f", {self.size}" if self.size else ""
        name = self.model_name or "model " + self.model[:12]
        precision = f", {self.precision}" if self.precision else ""
        return f"{name}, {self.sampler_name} / {self.scheduler}, cfg {self.cfg:g}{size}{precision}"

    @property
    def size(self) -> str:
        """Pixels, as in "64 x 64"; empty where they are not known."""
        return f"{self.width} x {self.height}" if self.width and self.height else ""

    @property
    def prediction(self) -> str:
        """What the denoiser predicts and on which kind of schedule; empty where it is not known."""
        return self.sampling.partition(",")[0]


@cache
def _adapter() -> TypeAdapter[Setting]:
    from pydantic import TypeAdapter

    return TypeAdapter(Setting)


def first_fault(error: ValidationError) -> tuple[str, str]:
    """(field, what is wrong with it) of pydantic's first complaint."""
    fault = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in fault["loc"])
    got = "" if fault["type"] == "missing" else f", got {_short(fault['input'])}"
    return field, fault["msg"].removeprefix("Value error, ") + got


def _short(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def with_precision(setting: Setting, provenance: Any) -> Setting:
    """`setting` with its precision. Sweeps and planners of before settings had one name it in the provenance of the
    sweep alone, among the sampling options."""
    for key in ("spec", "sampling", "dtype"):
        provenance = provenance.get(key) if isinstance(provenance, Mapping) else None
    named = provenance if provenance in ("fp32", "bf16") else ""
    return replace(setting, precision=setting.precision or named)


def refusal(name: str, planned: Setting, actual: Setting) -> Message | None:
    """Why the curves of planner `name` say nothing about this render; None where they do."""
    if planned.model != actual.model:
        was, now = (setting.model_name or setting.model[:12] for setting in (planned, actual))
        if was == now:
            return message("other_of_name", planner=name, model=now)
        return message("other_model", planner=name, was=was, now=now)
    if planned.prediction and actual.prediction and planned.prediction != actual.prediction:
        return message("other_sampling", planner=name, was=planned.sampling, now=actual.sampling)
    if planned.sampler_name != actual.sampler_name:
        return message("other_sampler", planner=name, was=planned.sampler_name, now=actual.sampler_name)
    return None


def differences(planned: Setting, actual: Setting) -> tuple[Message, ...]:
    """One Message for each way in which `actual` leaves what the planner was calibrated for; empty if none. What was
    done to the model in addition is left to whoever has its Messages."""
    gone = (_missing("change", _readable(key)) for key in planned.changes if not has_change(actual, key))
    return (*_model(planned, actual), *_values(planned, actual), *_extras(planned, actual), *gone)


def change_keys(changes: Iterable[Message]) -> tuple[str, ...]:
    """`Setting.changes` of what host/changes.py tells of a model. A patched sampling has a field of its own."""
    return tuple(change_key(change) for change in changes if change.code != "model_sampling")


def change_key(change: Message) -> str:
    """What tells a change to a model from another."""
    return " ".join((change.code, *(f"{name}={value}" for name, value in sorted(change.values.items()))))


def has_change(setting: Setting, key: str) -> bool:
    """Whether this was done to the setting's model too. Which pictures a patch carries makes it another render, but no
    other change: they are content, as a prompt is."""
    return _without_content(key) in map(_without_content, setting.changes)


def _without_content(key: str) -> str:
    return CONTENT.sub("", key, count=1)


def _readable(key: str) -> str:
    """A change's key for an artist: its kind, and names or the fingerprint of a LoRA where it has some."""
    code, _, values = key.partition(" ")
    told = values.partition("names=")[2] or values.partition("which=")[2]
    return code.removeprefix("model_").replace("_", " ") + (f": {told}" if told else "")


def _model(planned: Setting, actual: Setting) -> Iterator[Message]:
    if planned.model == actual.model:
        return
    if planned.model_name and planned.model_name == actual.model_name:
        yield message("differs_patched", model=planned.model_name)
    else:
        was, now = (setting.model_name or setting.model[:12] for setting in (planned, actual))
        yield _differs("model", was, now)


def _values(planned: Setting, actual: Setting) -> Iterator[Message]:
    for what, was, now in (
        ("sampler", planned.sampler_name, actual.sampler_name),
        ("scheduler", planned.scheduler, actual.scheduler),
        ("precision", planned.precision, actual.precision),
        ("frames", planned.frames, actual.frames),
        ("size", planned.size, actual.size),
    ):
        if was and now and was != now:
            yield _differs(what, was, now)
    if planned.schedule != actual.schedule:
        yield _differs("schedule", described(planned.schedule), described(actual.schedule))
    for what, was, now in (("cfg", planned.cfg, actual.cfg), ("denoise", planned.denoise, actual.denoise)):
        if abs(was - now) >= CFG_TOLERANCE:
            yield _differs(what, was, now)
    yield from _guidance(planned.guidance, actual.guidance)
    if _other_shift(planned, actual):
        yield _differs("sampling", planned.sampling, actual.sampling)


def _guidance(was: float | None, now: float | None) -> Iterator[Message]:
    if was is not None and now is not None:
        if abs(was - now) >= CFG_TOLERANCE:
            yield _differs("guidance", was, now)
    elif now is not None:
        yield _added("guidance", str(now))
    elif was is not None:
        yield _missing("guidance", str(was))


def _other_shift(planned: Setting, actual: Setting) -> bool:
    """Another shift or sigma range; not where it is no more than the size of the image, which is told by itself."""
    if not (planned.sampling and actual.sampling) or planned.sampling == actual.sampling:
        return False
    by_size = SIZE_SHIFT in planned.prediction and planned.prediction == actual.prediction
    return not (by_size and planned.size and actual.size and planned.size != actual.size)


def _extras(planned: Setting, actual: Setting) -> Iterator[Message]:
    was, now = _by_kind(planned), _by_kind(actual)
    for kind in dict.fromkeys((*now, *was)):
        if kind not in was:
            yield _added(kind, now[kind])
        elif kind not in now:
            yield _missing(kind, was[kind])
        elif was[kind] != now[kind]:
            yield _differs(kind, was[kind], now[kind])


def _by_kind(setting: Setting) -> dict[str, str]:
    """Kind -> detail."""
    pairs = (extra.partition(" ") for extra in setting.extras)
    return {kind: detail for kind, _, detail in pairs}


def _differs(what: str, was: str | float | Message, now: str | float | Message) -> Message:
    return message("differs", what=named(what), was=was, now=now)


def _added(kind: str, detail: str) -> Message:
    return message("added", what=named(kind), detail=_detail(detail))


def _missing(kind: str, detail: str) -> Message:
    return message("missing", what=named(kind), detail=_detail(detail))


def _detail(detail: str) -> str:
    return f" ({detail})" if detail else ""


NAMES = (
    *("model", "sampler", "scheduler", "schedule", "precision", "frames", "size", "cfg", "denoise", "guidance"),
    *("sampling", "area", "mask", "range", "strength", "control", "hooks", "gligen", "unclip", "reference_latents"),
    *("concat_image", "audio", "clip_vision", "noise_mask", "size_conditioning", "change"),
)
"""What a difference may be in; each has a name in the locales."""


def named(what: str) -> Message:
    """The name of a setting or of a kind of extra in the artist's language; `what` itself where it has none."""
    return Message(f"name_{what}") if what in NAMES else message("name_other", key=what)
