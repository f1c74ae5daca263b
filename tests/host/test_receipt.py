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
    ("steps", "most", "said"),
    [
        (12, 50, "3.80 s less than 50 steps, 0.80 s less than 20 steps, 1.80 s less than 30 steps."),
        (40, 50, "1.00 s less than 50 steps, 2.00 s more than 20 steps, 1.00 s more than 30 steps."),
        (12, 30, "1.80 s less than 30 steps, 0.80 s less than 20 steps."),
        (20, 20, "1.00 s less than 30 steps."),
        (50, 50, "3.00 s more than 20 steps, 2.00 s more than 30 steps."),
    ],
)
def test_seconds_are_compared_with_each_other_count_once(steps: int, most: int, said: str) -> None:
    lines = Receipt(**FACTS, steps=steps, max_steps=most).text().splitlines()
    assert lines == ["Sampled in 1.20 s (0.100 s a step, 12 model evaluations).", said]


def test_nothing_is_compared_where_nothing_was_sampled() -> None:
    text = Receipt(**{**FACTS, "seconds": 0.0, "seconds_per_step": 0.0, "nfe": 0}, steps=0, max_steps=50).text()
    assert text == "Sampled in 0.00 s (nothing to sample, 0 model evaluations)."


def test_energy_is_said_where_it_is_known() -> None:
    assert Receipt(**FACTS, steps=12, max_steps=50, watt_hours=0.12345).text().endswith("\n0.123 Wh.")
