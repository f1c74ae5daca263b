"""`run.py release-check`: what the ComfyUI registry and an honest release require, before anything is published.

The registry's rules are those of its specification of pyproject.toml (docs.comfy.org/registry/specifications); the
limits on sizes are this project's own, because an artist downloads the archive.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .console import say
from .errors import LaunchError
from .packages import requirement_lines

LARGEST_FILE = 50 * 1024**2
LARGEST_ARCHIVE = 100 * 1024**2
"""Bytes, before packing."""
NEEDED = ("__init__.py", "LICENSE", "README.md", "pyproject.toml", "requirements.txt", "budgetfusion_nodes/__init__.py")
NOT_FOR_ARTISTS = ("tests/", "research/", ".ci/")
ICON_ENDINGS = (".svg", ".png", ".jpg", ".gif")


def run(root: Path) -> int:
    """Prints everything that stands in the way of a release; 0 where nothing does."""
    problems = [*check(root), *_unsaved(root)]
    for problem in problems:
        say(f"- {problem}")
    say(f"{len(problems)} to mend before a release." if problems else "Ready to be released.")
    return 1 if problems else 0


def check(root: Path) -> list[str]:
    """One sentence for each thing that is missing or wrong in the files of `root`."""
    project = _read_project(root)
    return [
        *_identity(project),
        *_addresses(project),
        *_version(root, project),
        *_lists(root, project),
        *_archive(root),
    ]


def _read_project(root: Path) -> Mapping[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError:
        raise LaunchError("release-check needs Python 3.11 or newer.", "Start run.py with such a Python.") from None
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def _identity(project: Mapping[str, Any]) -> Iterator[str]:
    own, comfy = project.get("project", {}), project.get("tool", {}).get("comfy", {})
    name = str(own.get("name", ""))
    if not re.fullmatch(r"[A-Za-z](?:[-_.]?[A-Za-z0-9])*", name) or len(name) >= 100 or "comfyui" in name.lower():
        yield f"[project] name {name!r}: letters and digits, single - _ . between them, a letter first, no ComfyUI."
    if not isinstance(own.get("license"), Mapping) or not set(own["license"]) & {"file", "text"}:
        yield "[project] license: write it as { file = ... } or { text = ... }."
    for key in ("description", "requires-python"):
        if not own.get(key):
            yield f"[project] {key} is missing."
    for key in ("PublisherId", "DisplayName", "requires-comfyui"):
        if not comfy.get(key):
            yield f"[tool.comfy] {key} is missing."


def _addresses(project: Mapping[str, Any]) -> Iterator[str]:
    repository = str(project.get("project", {}).get("urls", {}).get("Repository", ""))
    icon = str(project.get("tool", {}).get("comfy", {}).get("Icon", ""))
    for name, address in (("[project.urls] Repository", repository), ("[tool.comfy] Icon", icon)):
        parts = urlsplit(address)
        host = parts.hostname or ""
        if parts.scheme != "https" or "." not in host:
            yield f"{name} {address!r} is no web address; it must begin with https://."
        elif host.endswith((".invalid", ".example", ".test")) or host.split(".")[-2] == "example":
            yield f"{name} {address!r} is a placeholder. Write the address of the released repository there."
    if icon and not urlsplit(icon).path.lower().endswith(ICON_ENDINGS):
        yield f"[tool.comfy] Icon {icon!r} must be one of {', '.join(ICON_ENDINGS)}."


def _version(root: Path, project: Mapping[str, Any]) -> Iterator[str]:
    version = str(project.get("project", {}).get("version", ""))
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        yield f"[project] version {version!r}: three numbers with dots between them."
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    released = [
        found[1] for section in sections if (found := re.match(r"\[(\d[^\]]*)\] - \d{4}-\d\d-\d\d$", section, re.M))
    ]
    if released[:1] != [version]:
        newest = released[0] if released else "none"
        yield f"CHANGELOG.md: its newest section with a date is {newest}, and pyproject.toml says {version}."
    unreleased = next((section for section in sections if section.startswith("[Unreleased]")), "")
    if re.search(r"^- ", unreleased, re.MULTILINE):
        yield f"CHANGELOG.md: there are notes under Unreleased. Move them to the section of {version}."


def _lists(root: Path, project: Mapping[str, Any]) -> Iterator[str]:
    written = sorted(requirement_lines(root / "requirements.txt"))
    declared = sorted(project.get("project", {}).get("dependencies", []))
    for line in sorted(set(written) ^ set(declared)):
        where = "requirements.txt" if line in written else "[project] dependencies"
        yield f"{line} is in {where} alone; both lists must be the same."


def _archive(root: Path) -> Iterator[str]:
    """What the registry would pack: the files under version control, less those of .comfyignore."""
    files = _git(root, "ls-files", "-z") - _git(root, "ls-files", "-z", "-c", "-i", "--exclude-from=.comfyignore")
    for name in NEEDED:
        if name not in files:
            yield f"{name} is not in the archive: add it to version control, or take it out of .comfyignore."
    for folder in NOT_FOR_ARTISTS:
        if any(file.startswith(folder) for file in files):
            yield f"{folder} would be in the archive: add it to .comfyignore."
    sizes = {file: (root / file).stat().st_size for file in files if (root / file).is_file()}
    for file, size in sizes.items():
        if size > LARGEST_FILE:
            yield f"{file} has {size / 1024**2:.0f} MB; at most {LARGEST_FILE // 1024**2} MB a file."
    if sum(sizes.values()) > LARGEST_ARCHIVE:
        yield f"The archive has {sum(sizes.values()) / 1024**2:.0f} MB; at most {LARGEST_ARCHIVE // 1024**2} MB."


def _unsaved(root: Path) -> Iterator[str]:
    changed = _git(root, "status", "-z", "--porcelain")
    if changed:
        yield f"{len(changed)} files are not committed; what is released must be."


def _git(root: Path, *arguments: str) -> set[str]:
    done = subprocess.run(["git", *arguments], cwd=root, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise LaunchError(
            f"git cannot list the files of {root}: {done.stderr.strip()}", "Use a clone of the repository."
        )
    return {name for name in done.stdout.split("\0") if name}
