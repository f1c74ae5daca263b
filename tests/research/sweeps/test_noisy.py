"""The figures of the study of noisy samplers, without a host."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from budgetfusion_nodes.core.errors import InputError
from research.sweeps.noisy import BEGIN, COUNTS, END, Cell, cells, joined, needed, relative_rmse, write_table


def cell(shortfall: list[float], pictures: int = 2) -> Cell:
    curve = np.tile(np.array(shortfall)[None, :, None], (pictures, 1, 3))
    return Cell("euler", "karras", curve[..., 0], curve, curve[..., 0])


def test_a_picture_is_there_from_the_count_on_that_stays_good() -> None:
    scale = np.array([1.0, 2.0, 4.0])
    lucky = [0.5, 0.05, 0.5, 0.1, 0.05, 0.0]
    assert needed(cell(lucky), scale).tolist() == [COUNTS[3]] * 2
    assert np.isnan(needed(cell([0.5] * 5 + [0.0]), scale)).all(), "the target itself does not count"


def test_distance_is_in_standard_deviations_of_the_target() -> None:
    target = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    latents = torch.stack([target + 0.5, target])[None]
    found = relative_rmse(latents)
    assert found[0].tolist() == pytest.approx([0.5 / float(target.std()), 0.0])


def test_parts_are_joined_and_survive_a_file() -> None:
    parts = [cell([0.5, 0.4, 0.3, 0.2, 0.1, 0.0], n) for n in (2, 3)]
    whole = joined([Cell.from_dict(part.to_dict()) for part in parts])
    assert whole.to_target.shape == (5, len(COUNTS))
    assert whole.shortfall.shape == (5, len(COUNTS), 3)


def test_every_cell_is_rendered_once_and_the_control_first() -> None:
    listed = cells()
    assert len(set(listed)) == len(listed)
    assert listed[0] == ("dpmpp_2m", "karras")


def test_only_the_table_of_the_page_is_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    write_table(page, "| new |")
    assert page.read_text() == f"above\n{BEGIN}\n| new |\n{END}\nbelow\n"
    page.write_text("no marks")
    with pytest.raises(InputError, match="no place"):
        write_table(page, "| new |")
