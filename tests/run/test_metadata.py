"""What an install of the pack says about itself."""

from __future__ import annotations

import re
import sys

import pytest

from launcher.comfyui import OLDEST_VERSION, PINS
from launcher.layout import ROOT
from launcher.packages import requirement_lines

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
OF_COMFYUI = {
    "torch",
    "torchvision",
    "torchaudio",
    "numpy",
    "pillow",
    "safetensors",
    "scipy",
    "transformers",
    "aiohttp",
}


def test_the_oldest_comfyui_is_the_same_everywhere() -> None:
    oldest = ".".join(map(str, OLDEST_VERSION))
    assert PROJECT["tool"]["comfy"]["requires-comfyui"] == f">={oldest}"
    assert oldest in PINS  # the tests run in it


def test_the_artists_list_is_the_projects_list() -> None:
    assert sorted(requirement_lines(ROOT / "requirements.txt")) == sorted(PROJECT["project"]["dependencies"])


def test_the_artists_list_leaves_comfyuis_own_packages_alone() -> None:
    names = {re.split(r"[<>=!~ ]", line)[0].lower() for line in requirement_lines(ROOT / "requirements.txt")}
    assert not names & OF_COMFYUI


def test_the_installed_lists_satisfy_the_artists_list() -> None:
    packaging = pytest.importorskip("packaging.requirements")
    artists = {r.name: r for r in map(packaging.Requirement, requirement_lines(ROOT / "requirements.txt"))}
    installed = [packaging.Requirement(line) for line in requirement_lines(ROOT / "requirements/host.txt")]
    for one in installed:
        if one.name in artists:
            (pin,) = one.specifier
            assert artists[one.name].specifier.contains(pin.version), one
    assert set(artists) <= {one.name for one in installed}


def test_the_registrys_fields_are_there() -> None:
    comfy = PROJECT["tool"]["comfy"]
    assert comfy["PublisherId"] and comfy["DisplayName"] == "BudgetFusion"
    assert (ROOT / PROJECT["project"]["license"]["file"]).read_text(encoding="utf-8").startswith("MIT License")


def test_the_registrys_icon_is_a_square_picture_in_the_pack() -> None:
    icon = ROOT / "docs/images/icon.svg"
    assert PROJECT["tool"]["comfy"]["Icon"].endswith("/docs/images/icon.svg")
    width, height = re.findall(r'(?:width|height)="(\d+)"', icon.read_text(encoding="utf-8"))[:2]
    assert width == height and int(width) <= 400, "what the registry takes"
    assert not re.search(r"<script|(?:href|src)=", icon.read_text(encoding="utf-8")), "nothing is loaded or run"
