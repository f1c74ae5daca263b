"""Metrics without a reference between methods, on simulated sets."""

from __future__ import annotations

import numpy as np

from research.bench.comparison import MethodSet, Reference, compare, gathered, least_passing, told, worse_than
from research.bench.measures import Values

PROMPTS = 60


def values(rng: np.random.Generator, wrong: float = 0.05, level: float = 9.0, shift: float = 0.0) -> Values:
    features = rng.normal(size=(PROMPTS, 2, 8)) + shift
    return Values(rng.binomial(6, wrong, PROMPTS) / 6, level + 0.1 * rng.normal(size=PROMPTS), features)


def method(family: str, label: str, found: Values, evaluations: float) -> MethodSet:
    return MethodSet(family, label, found, np.full(len(found.wrong), evaluations), None)


def test_what_is_worse_is_called_so_and_nothing_else():
    rng = np.random.default_rng(0)
    dense = method("stock", "50", values(rng), 50.0)
    bad = {
        "wrong": values(rng, wrong=0.4),
        "l_snr": values(rng, level=7.0),
        "kid": values(rng, shift=0.8),
    }
    rows = compare([dense, *(method("x", name, v, 8.0) for name, v in bad.items())], dense, Reference(values(rng), 0))
    assert rows[0]["worse"] == []
    for row in rows[1:]:
        assert row["worse"] == [row["label"]]


def test_a_level_above_the_true_scenes_is_as_wrong_as_one_below():
    rng = np.random.default_rng(1)
    dense, reference = method("stock", "50", values(rng), 50.0), Reference(values(rng), 0)
    for level in (8.5, 9.5):
        assert worse_than(method("x", "8", values(rng, level=level), 8.0), dense, reference)["worse"] == ["l_snr"]


def test_fewer_prompts_are_compared_with_the_same_prompts_of_the_dense_set():
    rng = np.random.default_rng(2)
    dense, reference = method("stock", "50", values(rng), 50.0), Reference(values(rng), 0)
    few = method("peer", "10", dense.values.take(np.arange(20)), 10.0)
    (row,) = compare([few], dense, reference)
    assert row["prompts"] == 20 and row["worse"] == []
    assert all(row["difference"][m] == {"value": 0.0, "low": 0.0, "high": 0.0} for m in ("wrong", "l_snr", "kid"))


def test_the_least_passing_count():
    rows = [
        {"family": "stock", "evaluations": 6.0, "worse": ["kid"]},
        {"family": "stock", "evaluations": 10.0, "worse": []},
        {"family": "stock", "evaluations": 8.0, "worse": []},
        {"family": "nested", "evaluations": 4.0, "worse": []},
    ]
    assert least_passing(rows, "stock") == 8.0
    assert least_passing(rows[:1], "stock") is None
    later = [*rows, {"family": "stock", "evaluations": 9.0, "worse": ["l_snr"]}]
    assert least_passing(later, "stock") == 8.0 and least_passing(later, "stock", steady=True) == 10.0


def test_each_prompt_gets_its_own_count_rounded_up_to_a_rendered_one():
    sets = {n: Values(np.full(3, float(n)), np.full(3, 10.0 * n), np.full((3, 2, 4), float(n))) for n in (6, 8, 50)}
    found, evaluations = gathered(sets, np.array([5, 7, 60]))
    assert evaluations.tolist() == found.wrong.tolist() == [6.0, 8.0, 50.0]
    assert found.features[:, 0, 0].tolist() == [6.0, 8.0, 50.0]


def test_a_difference_is_told_in_its_own_unit_with_both_ends():
    found = {"wrong": {"value": 0.004, "low": 0.001, "high": 0.008}, "kid": {"value": 0.0054, "low": -0.1, "high": 1.0}}
    assert told(found, ["wrong"]) == "wrong 0.4 (0.1 to 0.8) %"
    assert told(found, ["wrong", "kid"]).split(", ")[1] == "kid 5.4 (-100.0 to 1000.0) / 1000"
    assert told(found, []) == "none"
