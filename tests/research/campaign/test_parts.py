"""The quick amount of every part that needs no server and no host."""

from __future__ import annotations

from pathlib import Path

import pytest

from research.campaign.part import QUICK, Work
from research.campaign.registry import load_part
from research.campaign.results import as_dict


@pytest.mark.parametrize("name", ["kills", "two_servers", "disks"])
def test_nothing_breaks_in_the_quick_amount(name: str, tmp_path: Path) -> None:
    part = load_part(name)
    assert part.name == name
    found = part.run(Work(tmp_path, None, QUICK, seed=1))
    assert found
    assert [as_dict(one) for one in found if not one.held] == []
    assert all(str(tmp_path) not in str(as_dict(one)) for one in found), "a report tells no folder of the machine"
