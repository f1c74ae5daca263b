"""`run.py release-check`: a good release passes, and each fault is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launcher import release
from launcher.layout import ROOT

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="release-check needs tomllib of Python 3.11")

PROJECT = """
[project]
name = "a-pack"
version = "1.2.0"
description = "Does something."
license = { file = "LICENSE" }
requires-python = ">=3.10"
dependencies = ["lpips>=0.1"]
[project.urls]
Repository = "https://code.somewhere.org/us/a-pack"
[tool.comfy]
PublisherId = "us"
DisplayName = "A Pack"
requires-comfyui = ">=0.16"
Icon = "https://code.somewhere.org/us/a-pack/icon.svg"
"""
CHANGES = "# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-11-26\n\n- All.\n\n## [1.1.0] - 2026-01-01\n\n- Some.\n"


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A pack that may be released."""
    for name in (*release.NEEDED, "tests/test_it.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    write(tmp_path, "pyproject.toml", PROJECT)
    write(tmp_path, "CHANGELOG.md", CHANGES)
    write(tmp_path, "requirements.txt", "# what it lacks\nlpips>=0.1\n")
    write(tmp_path, ".comfyignore", "# not for artists\ntests/\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    return tmp_path


def write(pack: Path, name: str, text: str) -> None:
    (pack / name).write_text(text, encoding="utf-8")


def git(pack: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=pack, check=True, capture_output=True)


def test_a_good_release_passes(pack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert release.check(pack) == []
    assert release.run(pack) == 1, "nothing is committed yet"
    git(pack, "-c", "user.name=x", "-c", "user.email=x@x.org", "commit", "-qm", "all")
    assert release.run(pack) == 0
    assert "Ready" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('code.somewhere.org/us/a-pack"', 'placeholder.invalid/a-pack"', "Repository"),
        ('code.somewhere.org/us/a-pack"', 'github.example.com/a-pack"', "Repository"),
        ("[project.urls]\nRepository", "[project.urls]\nHomepage", "Repository"),
        ("https://code.somewhere.org/us/a-pack/icon.svg", "docs/icon.svg", "Icon"),
        ("https://code.somewhere.org/us/a-pack/icon.svg", "https://placeholder.invalid/icon.svg", "Icon"),
        ("icon.svg", "icon.bmp", "Icon"),
        ('PublisherId = "us"', 'PublisherId = ""', "PublisherId"),
        ('DisplayName = "A Pack"', "", "DisplayName"),
        ('"a-pack"', '"2-packs"', "name"),
        ('"a-pack"', '"a--pack"', "name"),
        ('"a-pack"', '"comfyui-pack"', "name"),
        ('{ file = "LICENSE" }', '"MIT"', "license"),
        ('"1.2.0"', '"1.2"', "version"),
        ('"1.2.0"', '"1.3.0"', "CHANGELOG"),
        ('"lpips>=0.1"', '"lpips>=0.2"', "requirements.txt"),
    ],
)
def test_a_fault_of_the_project_file_is_named(pack: Path, old: str, new: str, named: str) -> None:
    assert old in PROJECT
    write(pack, "pyproject.toml", PROJECT.replace(old, new))
    problems = release.check(pack)
    assert problems and any(named in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (CHANGES.replace("[Unreleased]\n", "[Unreleased]\n\n- New.\n"), "Unreleased"),
        (CHANGES.replace(" - 2026-11-26", ""), "1.1.0"),
        ("# Changelog\n", "none"),
    ],
)
def test_a_changelog_that_is_behind_is_named(pack: Path, changes: str, named: str) -> None:
    write(pack, "CHANGELOG.md", changes)
    (problem,) = release.check(pack)
    assert named in problem


def test_what_is_not_for_artists_stays_out_of_the_archive(pack: Path) -> None:
    write(pack, ".comfyignore", "docs/\n")
    (problem,) = release.check(pack)
    assert problem.startswith("tests/")


def test_a_needed_file_that_is_left_out_is_named(pack: Path) -> None:
    write(pack, ".comfyignore", "tests/\nLICENSE\n")
    (problem,) = release.check(pack)
    assert problem.startswith("LICENSE")


def test_a_file_that_is_too_large_is_named(pack: Path) -> None:
    with (pack / "weights.bin").open("wb") as file:
        file.truncate(release.LARGEST_FILE + 1)
    git(pack, "add", "weights.bin")
    (problem,) = release.check(pack)
    assert problem.startswith("weights.bin")


def test_this_projects_placeholders_are_refused() -> None:
    """Whoever publishes writes the addresses; until then the check says so. All else in the files is in order."""
    problems = [problem for problem in release.check(ROOT) if not problem.startswith("CHANGELOG")]
    assert len(problems) == 2 and all("placeholder" in problem for problem in problems), problems
