from __future__ import annotations

from budgetfusion_nodes.core.recent import Recent


def test_those_used_longest_ago_go_first() -> None:
    kept = Recent[str, int](2)
    kept["a"], kept["b"] = 1, 2
    assert kept.used("a") == 1
    kept["c"] = 3
    assert list(kept) == ["a", "c"]
    assert kept.used("b") is None
    kept["a"] = 4
    kept["d"] = 5
    assert dict(kept) == {"a": 4, "d": 5}


def test_what_counts_may_be_the_size() -> None:
    kept = Recent[str, str](3, len, largest=5)
    kept["a"], kept["b"], kept["c"] = "xx", "xx", "x"
    assert list(kept) == ["a", "b", "c"]
    kept["a"] = "xxxx"
    assert list(kept) == ["c", "a"]
    kept["d"] = "xxxxxx"
    assert not kept
    kept["e"] = kept["f"] = kept["g"] = kept["h"] = ""
    assert list(kept) == ["f", "g", "h"]
