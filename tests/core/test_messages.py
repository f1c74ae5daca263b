"""Every code that Python emits is worded in all seven languages with exactly its values, and nothing else is worded."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from budgetfusion_nodes.core import messages
from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.core.messages import PREFIX, Message, english_words, message, verbatim, word
from budgetfusion_nodes.core.setting import NAMES

ROOT = Path(__file__).parents[2]
LANGUAGES = ("de", "en", "es", "fr", "ja", "ko", "zh")
WORDS = {
    language: json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))["budgetfusion"]
    for language in LANGUAGES
}


@dataclass(frozen=True)
class Emitted:
    code: str
    values: frozenset[str] | None
    """None where they are put together at run time."""
    where: str


def emitted() -> Iterator[Emitted]:
    """Every `message("code", name=...)` in the source; codes that are put together are those of NAMES."""
    for folder in ("budgetfusion_nodes", "research"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "message":
                    names = [keyword.arg for keyword in node.keywords]
                    values = None if None in names else frozenset(name for name in names if name is not None)
                    for code in codes(node.args[0]):
                        yield Emitted(code, values, f"{path.name}:{node.lineno}")
    for name in NAMES:
        yield Emitted(f"name_{name}", frozenset(), "core/setting.py NAMES")


def codes(first: ast.expr) -> list[str]:
    """The code, or both of `a if ... else b`."""
    branches = [first.body, first.orelse] if isinstance(first, ast.IfExp) else [first]
    assert all(isinstance(branch, ast.Constant) for branch in branches), ast.dump(first)
    return [str(branch.value) for branch in branches if isinstance(branch, ast.Constant)]


EMITTED = tuple(emitted())


def placeholders(template: str) -> set[str]:
    """With their number formats: {risk:.0%} and {risk} are two."""
    return set(re.findall(r"\{[^}]*\}", template))


def test_something_is_emitted() -> None:
    assert len({one.code for one in EMITTED}) > 80


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_code_is_worded_with_exactly_its_values(language: str) -> None:
    for one in EMITTED:
        template = WORDS[language].get(PREFIX + one.code)
        assert template, f"{one.where}: {one.code}"
        names = {brace.strip("{}").partition(":")[0] for brace in placeholders(template)}
        assert one.values is None or names == one.values, f"{one.where}: {one.code}"
        assert placeholders(template) == placeholders(WORDS["en"][PREFIX + one.code]), one.code


@pytest.mark.parametrize("language", LANGUAGES)
def test_nothing_is_worded_that_nobody_says(language: str) -> None:
    worded = {key.removeprefix(PREFIX) for key in WORDS[language] if key.startswith(PREFIX)}
    assert worded == {one.code for one in EMITTED}


@pytest.mark.parametrize("language", LANGUAGES)
def test_number_formats_are_those_that_the_page_knows(language: str) -> None:
    for key, template in WORDS[language].items():
        for brace in placeholders(template):
            assert re.fullmatch(r"\{[a-z_]+(:\.\d[f%])?\}", brace), f"{key}: {brace}"
        assert "{" not in re.sub(r"\{[^{}]*\}", "", template), key


def test_numbers_and_nested_messages_are_worded() -> None:
    limit = message("max_too_low", quality=0.9, steps=12, max=4)
    assert limit.text().startswith("Quality 0.90 needs 12 steps, but max_steps is 4:")
    file = message("planner_file", file="a.safetensors", problem=message("file_absent"))
    assert file.text().startswith("Planner file a.safetensors: there is no such file.")
    cfg = message("differs", what=message("name_cfg"), was=3.0, now=7.5)
    assert "cfg 3, this render uses 7.5" in cfg.text()


def test_a_message_survives_json_with_what_is_in_it() -> None:
    said = message("planner_file", file="a", problem=message("file_cut", found=3, needed=8))
    assert Message.from_dict(json.loads(json.dumps(said.to_dict(), allow_nan=False))) == said


def test_text_of_an_earlier_version_is_kept() -> None:
    assert Message.from_dict("A LoRA {x}.") == verbatim("A LoRA {x}.")
    assert verbatim("A LoRA {x}.").text() == "A LoRA {x}."


def test_wording_never_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert message("prediction_error", error="n/a").text().endswith("off by n/a on average.")
    assert "{error" in message("prediction_error").text()
    assert json.dumps(message("out_of_distribution", score=float("inf")).to_dict(), allow_nan=False)
    monkeypatch.setattr(messages, "WORDS", Path("nowhere"))
    english_words.cache_clear()
    try:
        assert message("file_cut", found=3, needed=8).text() == "file_cut: found 3, needed 8"
        assert word("row_time") == "row_time"
    finally:
        english_words.cache_clear()


def test_an_error_carries_its_message() -> None:
    assert InputError(message("sweep_batch")).message == message("sweep_batch")
    assert str(InputError(message("sweep_batch"))) == message("sweep_batch").text()
    assert InputError("--out: no.").message.text() == str(InputError("--out: no.")) == "--out: no."
