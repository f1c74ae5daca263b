"""The word tokenizer of Tiny Scenes, in the form that the host's SDTokenizer drives."""

from __future__ import annotations

from .architecture import MAX_TOKENS
from .captions import END, START, UNKNOWN, vocabulary, words


class WordTokenizer:
    """One token a word; a word that the grammar does not know becomes `<unknown>`. No files, no network."""

    def __init__(self) -> None:
        self._ids = {word: index for index, word in enumerate(vocabulary())}

    @classmethod
    def from_pretrained(cls, path: str, **_: object) -> WordTokenizer:
        """The host's way to make a tokenizer; `path` is not used, the vocabulary is code."""
        return cls()

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    def __call__(self, text: str) -> dict[str, list[int]]:
        unknown = self._ids[UNKNOWN]
        return {
            "input_ids": [self._ids[START], *(self._ids.get(word, unknown) for word in words(text)), self._ids[END]]
        }

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        names = vocabulary()
        special = {START, END} if skip_special_tokens else set[str]()
        return " ".join(names[index] for index in ids if names[index] not in special)

    def padded(self, text: str) -> list[int]:
        """MAX_TOKENS ids as the host's SDTokenizer pads them: start, words, end, end, ... Longer texts are cut."""
        ids = self(text)["input_ids"]
        end = self._ids[END]
        ids = [*ids[: MAX_TOKENS - 1], end] if len(ids) > MAX_TOKENS else ids
        return ids + [end] * (MAX_TOKENS - len(ids))
