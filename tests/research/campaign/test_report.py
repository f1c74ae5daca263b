"""What the campaign keeps and writes, with parts that are made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from research.campaign import commands, results
from research.campaign.part import PROMISES, Finding, NotRunError, Part, Work
from research.campaign.report import TESTS, write_report
from research.cli import build_parser
from research.options import ROOT


def result(*findings: Finding, not_run: str = "") -> dict[str, Any]:
    told = {"title": "T", "amount": "quick", "seed": 1, "seconds": 2.0, "commit": "abc", "machine": "2 CPU cores"}
    return {**told, "not_run": not_run, "findings": [results.as_dict(one) for one in findings]}


HELD = Finding("kept", "3 kills | nothing lost.", True, {"kills": 3})
BROKEN = Finding("shared", "1 row lost.", False)


def test_every_promise_is_told_with_what_holds_it(tmp_path: Path) -> None:
    assert set(TESTS) == set(PROMISES)
    for files in TESTS.values():
        for file in files:
            assert (ROOT / file).is_file(), file
    write_report(tmp_path, {"kills": result(HELD), "disks": result(not_run="No disk.")})
    page = (tmp_path / "reliability.md").read_text()
    lines = [line for line in page.splitlines() if line[:1].isdigit()]
    assert [line.split(".")[0] for line in lines] == [str(n) for n in range(1, 11)]
    assert "[kills](#kills)" in lines[0]
    assert "[kills]" not in "".join(lines[1:])
    assert "3 kills \\| nothing lost." in page, "a bar of a sentence is no border of the table"
    assert "No disk." in page


def test_parts_of_other_runs_stay_in_the_report(tmp_path: Path) -> None:
    write_report(tmp_path, {"kills": result(HELD)})
    write_report(tmp_path, {"two_servers": result(BROKEN)})
    parts = json.loads((tmp_path / "reliability.json").read_text())["parts"]
    assert list(parts) == ["kills", "two_servers"]
    assert "**broken**" in (tmp_path / "reliability.md").read_text()


def test_a_finding_names_no_folder_of_this_machine() -> None:
    promise = next(iter(PROMISES))
    said = f"{ROOT}.budgetfusion_nodes.core.errors.InputError at {ROOT / 'launcher' / 'cli.py'}"
    found = results.as_dict(Finding(promise, said, False, {"bad": [said], "files": 3}))
    bare = "budgetfusion_nodes.core.errors.InputError at " + str(Path("launcher", "cli.py"))
    assert (found["what"], found["figures"]) == (bare, {"bad": [bare], "files": 3})


def test_a_cell_is_short_and_the_file_is_whole(tmp_path: Path) -> None:
    faults = [f"stage {n} | exception: <b>" + "x" * 5000 for n in range(9)]
    found = Finding("shared", "9 faults", False, {"seconds": 1 / 3, "bad": faults, "not_reached": ["a", "b"]})
    write_report(tmp_path, {"kills": result(found)})
    page = (tmp_path / "reliability.md").read_text()
    assert max(map(len, page.splitlines())) < 1500
    assert "stage 2 \\| exception: &lt;b>x" in page and "stage 3" not in page
    assert "seconds: 0.3333, bad: 9, not reached: 2 |" in page
    kept = json.loads((tmp_path / "reliability.json").read_text())["parts"]["kills"]["findings"][0]["figures"]
    assert kept["bad"] == faults and kept["not_reached"] == ["a", "b"]


def test_a_finding_about_no_promise_is_refused() -> None:
    with pytest.raises(ValueError, match="nobody"):
        results.as_dict(Finding("nobody made it", "", True))


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Name -> what the part gives; None: it fails itself."""
    found: dict[str, Any] = {}
    monkeypatch.setenv("BUDGETFUSION_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(commands, "NAMES", ("kills", "disks"))

    def run_part(name: str, folder: Path, host: Path | None, amount: str, seed: int, minutes: float) -> Any:
        assert minutes > 0
        given = found.pop(name)
        if given is not None:
            folder.mkdir(parents=True, exist_ok=True)
            results.kept_file(folder, name, amount).write_text(json.dumps(given))
        return given

    monkeypatch.setattr(results, "run_part", run_part)
    return found


def campaign(tmp_path: Path, *more: str) -> int:
    return commands.run(build_parser().parse_args(["campaign", "--out", str(tmp_path / "docs"), *more]))


def test_a_broken_promise_or_a_part_that_fails_is_the_exit_status(tmp_path: Path, parts: dict[str, Any]) -> None:
    parts.update(kills=result(HELD), disks=result(HELD))
    assert campaign(tmp_path) == 0
    assert campaign(tmp_path) == 0, "what is kept is not run again"
    parts.update(kills=result(HELD, BROKEN))
    assert campaign(tmp_path, "--parts", "kills") == 1
    parts.update(kills=None)
    assert campaign(tmp_path, "--parts", "kills") == 1


def test_what_is_kept_is_of_its_amount(tmp_path: Path, parts: dict[str, Any]) -> None:
    parts.update(kills=result(HELD), disks=result(HELD))
    assert campaign(tmp_path, "--quick") == 0
    with pytest.raises(KeyError):  # neither was run in the long amount, and there is nothing to give
        campaign(tmp_path, "--long")


def test_a_part_that_cannot_run_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(work: Work) -> list[Finding]:
        raise NotRunError("There is no disk.")

    monkeypatch.setattr(results, "load_part", lambda name: Part(name, "Title", cannot))
    file = tmp_path / "kept.json"
    results._run("disks", Work(tmp_path, None, "quick", 1), file)
    assert json.loads(file.read_text())["not_run"] == "There is no disk."
