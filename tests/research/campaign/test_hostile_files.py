"""The campaign's files, a few of each kind; and that it would notice a fault."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from budgetfusion_nodes.calibration.planner_folder import import_planner
from budgetfusion_nodes.core.errors import InputError, PlannerFileError
from budgetfusion_nodes.predictor import planner_file
from budgetfusion_nodes.predictor.planner_file import load_planner, save_planner
from research.campaign import hostile_files, mutations
from research.campaign.part import QUICK, Work
from research.options import WEIGHTS
from tests.predictor.test_planner_file import rewrite

ORIGINALS = [path.read_bytes() for path in sorted((WEIGHTS / "planners").glob("*.safetensors"))]


def test_hostile_files_are_refused_or_planned_with(tmp_path: Path) -> None:
    findings = hostile_files.run(Work(tmp_path, None, QUICK, seed=1))
    assert [finding.promise for finding in findings] == ["refused", "refused"]
    for finding in findings:
        assert finding.held, finding
        assert float(finding.figures["refused"]) > float(finding.figures["accepted"]) > 0


def test_every_kind_of_file_can_be_made() -> None:
    for maker in mutations.MAKERS:
        assert isinstance(maker(random.Random(0), ORIGINALS), bytes)


def test_an_unforeseen_error_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(_: Path) -> None:
        raise OverflowError("int too large")

    path = tmp_path / "p.safetensors"
    path.write_bytes(ORIGINALS[0])
    with hostile_files.Opening(tmp_path, random.Random(0)) as attempt:
        assert hostile_files._tried(attempt, path, 0, "x", 0.0).outcome == "accepted"
        monkeypatch.setattr(hostile_files, "load_any_planner", explode)
        assert "OverflowError" in hostile_files._tried(attempt, path, 0, "x", 0.0).detail


@pytest.mark.parametrize(
    "told", [[], {"fall": 3}, {"fall": {"best": [1], "last": 2, "pictures": 3}}, {"predictor": {}}]
)
def test_what_is_read_of_the_provenance_is_checked(make_planner, tmp_path: Path, told: object) -> None:
    path = tmp_path / "p.safetensors"
    save_planner(path, make_planner())
    with pytest.raises(PlannerFileError, match="provenance"):
        load_planner(rewrite(path, description=lambda known: {**known, "provenance": {"calibration": told}}))


def test_no_more_is_read_than_a_planner_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without an end that says it is empty: in a folder of planners through a link."""
    endless = tmp_path / "endless.safetensors"
    endless.symlink_to("/proc/self/pagemap")
    if not endless.exists():
        pytest.skip("this system has no such file")
    monkeypatch.setattr(planner_file, "MAX_FILE_BYTES", 1 << 20)
    with pytest.raises(PlannerFileError, match="at most 1048576"):
        load_planner(endless)


def test_an_import_never_leaves_what_was_not_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source changes after it was read: what comes in is what was verified."""
    source, folder = tmp_path / "p.safetensors", tmp_path / "folder"
    source.write_bytes(ORIGINALS[0])
    read = planner_file.read_planner_file

    def swapped(path: Path) -> bytes:
        content = read(path)
        path.write_bytes(b"no planner any more")
        return content

    monkeypatch.setattr("budgetfusion_nodes.calibration.planner_folder.read_planner_file", swapped)
    assert import_planner(folder, source).read_bytes() == ORIGINALS[0]


@pytest.mark.parametrize("name", ["名" * 80, "a" * 240, "-rf", "--help"])
def test_an_imported_name_fits_the_file_system_and_the_command_line(tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    source.write_bytes(ORIGINALS[0])
    found = import_planner(tmp_path / "folder", source)
    assert not found.name.startswith("-") and found.read_bytes() == ORIGINALS[0]


def test_a_folder_in_the_way_is_said(tmp_path: Path) -> None:
    source = tmp_path / "p.safetensors"
    source.write_bytes(ORIGINALS[0])
    (tmp_path / "folder" / "p.safetensors").mkdir(parents=True)
    with pytest.raises(InputError, match=r"p\.safetensors"):
        import_planner(tmp_path / "folder", source)
    with pytest.raises(PlannerFileError, match="cannot be written"):
        import_planner(tmp_path / "folder", source, replace=True)
