"""What the pack says to an artist: a code and its values. The words are in locales/<language>/main.json.

The Python side decides what is to be said, the page says it in the artist's language, and `text` says it in English for
the node's text output and the log. So every sentence is worded in one place.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any, TypeAlias

WORDS = Path(__file__).resolve().parents[2] / "locales" / "en" / "main.json"
SECTION = "budgetfusion"
PREFIX = "said_"
"""Keys of the sentences that the Python side says, beside the page's own words in the same file."""

Value: TypeAlias = "str | int | float | Message"


@dataclass(frozen=True)
class Message:
    """One sentence, not yet worded."""

    code: str
    """Key of the sentence without PREFIX."""
    values: Mapping[str, Value] = field(default_factory=dict)
    """What is filled into its braces; a Message is worded first."""

    def text(self) -> str:
        """The sentence in English; the code and its values where a damaged installation lacks the words."""
        if PREFIX + self.code in english_words():
            return word(PREFIX + self.code, **self.values)
        return f"{self.code}: " + ", ".join(f"{key} {_format(value, '')}" for key, value in self.values.items())

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe, as the page receives it."""
        return {"code": self.code, "values": {key: _json_safe(value) for key, value in self.values.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | str) -> Message:
        """Reads `to_dict`. A sentence that an earlier version wrote out is kept as it is."""
        if isinstance(data, str):
            return verbatim(data)
        values = {key: cls.from_dict(v) if isinstance(v, Mapping) else v for key, v in data["values"].items()}
        return cls(data["code"], values)


def message(code: str, /, **values: Value) -> Message:
    """`Message(code, values)`."""
    return Message(code, values)


def verbatim(text: str) -> Message:
    """A sentence that has no code: of an earlier version, or of another library. Shown as it is in every language."""
    return message("verbatim", text=text)


def word(key: str, /, **values: Value) -> str:
    """A text of the page in English, filled in as the page does it. Braces may hold a number format: {risk:.0%}."""
    return _Words().vformat(english_words().get(key, key), (), values)


def counted(n: int, key: str) -> str:
    """A number with its word: `steps`, `calls`."""
    return word(f"{key}_{'one' if n == 1 else 'other'}", n=n)


@cache
def english_words() -> Mapping[str, str]:
    """Key -> English template; empty where the file cannot be read."""
    try:
        return json.loads(WORDS.read_text(encoding="utf-8"))[SECTION]
    except (OSError, ValueError, KeyError):
        return {}


class _Words(Formatter):
    """str.format that never fails: a name without a value stays in its braces."""

    def get_value(self, key: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        del args
        return kwargs.get(key, f"{{{key}}}")

    def format_field(self, value: Any, format_spec: str) -> str:
        return _format(value, format_spec)


def _format(value: Any, spec: str) -> str:
    if isinstance(value, Message):
        return value.text()
    if isinstance(value, float):  # 3.0 is shown as the widget shows it
        return format(value, spec or "g")
    return format(value, spec) if isinstance(value, int) else str(value)


def _json_safe(value: Any) -> Any:
    if isinstance(value, Message):
        return value.to_dict()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
