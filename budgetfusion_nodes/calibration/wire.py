"""Works, events and the subject as JSON, between who leads a calibration and a ComfyUI that renders for it.

Numbers come back to the bit: JSON holds a float's shortest decimal that is read as the same float.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..core.setting import Setting
from .leading import Asked
from .prompts import CalibrationPrompt
from .records import Encoded, Measurement, Subject
from .spec import Spec
from .trajectory import Event, Failed, Finished, Measured, Work

TASK = "task"
"""Input of a Calibrate node in an API graph that turns its run into one task of a calibration led elsewhere."""
EVENT = "budgetfusion.task"
"""The host's message to the client that queued the task, one for each answer."""
DESCRIBE, ENCODE, TRAJECTORY = "describe", "encode", "trajectory"

Json = dict[str, Any]


@dataclass(frozen=True)
class Described:
    """What a calibration has to know of the graph before anything is rendered."""

    subject: Subject
    backends: Mapping[str, str]
    asked: Asked

    def to_json(self) -> Json:
        subject, asked = self.subject, self.asked
        return {
            "setting": subject.setting.to_dict(),
            "target": subject.target,
            "facts": dict(subject.facts),
            "backends": dict(self.backends),
            "spec": asdict(asked.spec),
            "name": asked.name,
            "prompts": [[prompt.text, prompt.category] for prompt in asked.prompts],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Described:
        setting = Setting.from_dict(data["setting"])
        prompts = tuple(CalibrationPrompt(text, category) for text, category in data["prompts"])
        return cls(
            Subject(setting, data["target"], data["facts"]),
            data["backends"],
            Asked(Spec(**data["spec"]), data["name"], prompts),
        )


def describe_task() -> Json:
    return {"kind": DESCRIBE}


def encode_task(text: str) -> Json:
    return {"kind": ENCODE, "text": text}


def encoded_to_json(encoded: Encoded) -> Json:
    return {"encoded": _text(encoded.to_bytes())}


def encoded_from_json(data: Mapping[str, Any]) -> Encoded:
    return Encoded.from_bytes(base64.b64decode(data["encoded"]))


def work_to_json(work: Work) -> Json:
    """The task of one trajectory. Row numbers are the store's own and stay with who leads."""
    return {
        "kind": TRAJECTORY,
        "text": work.text,
        "seed": work.seed,
        "grid": list(work.grid),
        "tolerance": work.tolerance,
        "known": [asdict(found) for found in work.known.values()],
        "latent": None if work.latent is None else _text(work.latent),
    }


def work_from_json(data: Mapping[str, Any]) -> Work:
    known = {found["steps"]: Measurement(**found) for found in data["known"]}
    latent = None if data["latent"] is None else base64.b64decode(data["latent"])
    return Work(0, 0, data["text"], data["seed"], tuple(data["grid"]), data["tolerance"], known, latent)


def event_to_json(event: Event) -> Json:
    if isinstance(event, Measured):
        return {"found": asdict(event.found), "latent": None if event.latent is None else _text(event.latent)}
    return asdict(event) if isinstance(event, Failed) else {"finished": True}


def event_from_json(data: Mapping[str, Any]) -> Event:
    if "found" in data:
        latent = None if data["latent"] is None else base64.b64decode(data["latent"])
        return Measured(Measurement(**data["found"]), latent)
    return Failed(data["steps"], data["reason"]) if "reason" in data else Finished()


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
