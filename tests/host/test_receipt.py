"""What the receipt says in words, on the node and to programs that read the `text` output."""

from __future__ import annotations

from typing import Any

import pytest

from budgetfusion_nodes.planning.receipt import Receipt

FACTS: dict[str, Any] = {
    "nfe": 12,
    "seconds": 1.2,
    "seconds_per_step": 0.1,
    "seconds_saved_vs_max": 3.8,
    "saved_vs_20": 0.4,
    "saved_vs_30": 0.6,
    "quality": 0.9,
    "quality_predicted": 0.95,
    "set_by": "d_sim",
    "planner": "p",
    "fallback": None,
    "warnings": (),
}


@pytest.mark.parametrize(
    ("steps", "most", "compared"),
    [
        (12, 50, ["Against 50: 3.80 s saved", "Against 20: 0.80 s saved", "Against 30: 1.80 s saved"]),
        (40, 50, ["Against 50: 1.00 s saved", "Against 20: 2.00 s more", "Against 30: 1.00 s more"]),
        (12, 30, ["Against 30: 1.80 s saved", "Against 20: 0.80 s saved"]),
        (20, 20, ["Against 30: 1.00 s saved"]),
        (50, 50, ["Against 20: 3.00 s more", "Against 30: 2.00 s more"]),
    ],
)
def test_seconds_are_compared_with_each_other_count_once(steps: int, most: int, compared: list[str]) -> None:
    lines = Receipt(**FACTS, steps=steps, max_steps=most).text().splitlines()
    assert lines == ["Time: 1.20 s, 0.100 s a step, 12 model calls", *compared]


def test_nothing_is_compared_where_nothing_was_sampled() -> None:
    text = Receipt(**{**FACTS, "seconds": 0.0, "seconds_per_step": 0.0, "nfe": 0}, steps=0, max_steps=50).text()
    assert text == "Steps: nothing to sample"


def test_energy_is_said_where_it_is_known() -> None:
    assert Receipt(**FACTS, steps=12, max_steps=50, watt_hours=0.12345).text().endswith("\nEnergy: 0.123 Wh")
