"""The two tables about backends: the distortions are what they are called, and the order is counted as described."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from research.bench import backend_table, metric_seconds
from research.bench.backend_table import SIDE, distortions, hue, read_photograph, right_order, swapped


def test_a_shift_moves_the_window_and_nothing_else() -> None:
    still, moved = read_photograph("chelsea"), read_photograph("chelsea", 3)
    assert still.shape == (1, 3, SIDE, SIDE)
    assert torch.equal(moved[..., :-3], still[..., 3:])


def test_hue_turns_colours_and_leaves_grey_alone() -> None:
    grey = torch.full((1, 3, 4, 4), 0.4)
    assert torch.allclose(hue(grey, 90), grey, atol=1e-6)
    red = torch.tensor([0.6, 0.2, 0.2])[None, :, None, None]
    assert torch.allclose(hue(red, 120), red[:, [1, 0, 2]], atol=1e-6)  # to green
    assert torch.allclose(hue(hue(red, 30), -30), red, atol=1e-6)


def test_a_swapped_object_leaves_the_rest() -> None:
    picture = read_photograph("astronaut")
    changed = swapped(picture, 0, 1 / 3)
    assert torch.equal(changed[..., :20, :], picture[..., :20, :])
    middle = (..., slice(140, 148), slice(140, 148))
    assert torch.equal(changed[middle], read_photograph("chelsea")[middle])


def test_the_right_order_is_a_share_of_pairs() -> None:
    names = [distortion.name for distortion in distortions()]
    rank = {name: float(place) for place, name in enumerate(sorted(names, key=lambda n: not n.startswith("shift")))}
    right = np.array([[rank[name] for name in names]])
    assert right_order(names, right) == 1.0
    assert right_order(names, -right) == 0.0
    swapped_levels = right.copy()
    swapped_levels[0, :2] = right[0, 1::-1]
    assert 0.9 < right_order(names, swapped_levels) < 1.0


def test_both_commands_print_a_table_and_name_what_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert metric_seconds.main(["--sizes", "32", "64", "--backends", "haarpsi", "lpips:none", "--repeats", "1"]) == 0
    shown = capsys.readouterr()
    rows = [line for line in shown.out.splitlines() if line.startswith("| D-SIM haarpsi")]
    assert len(rows) == 1
    assert all(float(cell) > 0 for cell in rows[0].split("|")[2:4])
    assert "lpips" in shown.err
    assert backend_table.main(["--backends", "lpips:none"]) == 1
