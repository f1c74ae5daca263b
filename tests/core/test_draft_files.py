"""Drafts that killed processes left."""

from __future__ import annotations

import os
from pathlib import Path

from budgetfusion_nodes.core.files import in_one_piece


def test_old_drafts_of_the_same_file_go_and_no_others(tmp_path: Path) -> None:
    names = ("x.bin.1.part", "x.bin.2.part", "y.bin.1.part", "x.bin")
    for name in names:
        (tmp_path / name).write_text("old")
        os.utime(tmp_path / name, (0.0, 0.0))
    os.utime(tmp_path / "x.bin.2.part")  # somebody is writing to it
    with in_one_piece(tmp_path / "x.bin") as partial:
        partial.write_text("new")
    assert (tmp_path / "x.bin").read_text() == "new"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["x.bin", "x.bin.2.part", "y.bin.1.part"]
