"""A map that keeps what was used last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Recent(OrderedDict[Key, Value]):
    """At most `most` entries, of at most `largest` of `size` in all; those set or `used` longest ago go first."""

    def __init__(self, most: int, size: Callable[[Any], int] = lambda _: 0, largest: int = 0) -> None:
        super().__init__()
        self.most, self.size, self.largest = most, size, largest

    def __setitem__(self, key: Key, value: Value) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        while len(self) > self.most or sum(map(self.size, self.values())) > self.largest:
            self.popitem(last=False)

    def used(self, key: Key) -> Value | None:
        """What is kept under `key`, from now on the latest."""
        if key in self:
            self.move_to_end(key)
        return self.get(key)
