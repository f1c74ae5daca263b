"""What the pack says to an artist: a code and its values. The words are in locales/<language>/main.json.

The Python side decides what is to be said, the page says it in the artist's language, and `text` says it in English for
the node's text output and the log. So every sentence is worded in one place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

WORDS = Path(__file__).resolve().parents[2] / "locales" / "en" / "main.json"
SECTION = "budgetfusion"
PREFIX = "said_"
"""Keys of the sentences that the Python side says, beside the page's own words in the same file."""


@dataclass(frozen=True)
class Message:
    """One sentence, not yet worded."""

    code: str
    """Key of the sentence without PREFIX."""
    values: Mapping[str, str | int | float] = field(default_factory=dict)
    """What is filled into its braces."""

    def text(self) -> str:
        """The sentence in English; the code and its values where a damaged installation lacks the words."""
        template = english_words().get(PREFIX + self.code)
        if template is None:
            return f"{self.code}: " + ", ".join(f"{key} {value}" for key, value in self.values.items())
        return template.format_map(self.values)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe, as the page receives it."""
        return {"code": self.code, "values": dict(self.values)}


def message(code: str, **values: str | int | float) -> Message:
    """`Message(code, values)`."""
    return Message(code, values)


@cache
def english_words() -> Mapping[str, str]:
    """Key -> English template; empty where the file cannot be read."""
    try:
        return json.loads(WORDS.read_text(encoding="utf-8"))[SECTION]
    except (OSError, ValueError, KeyError):
        return {}
