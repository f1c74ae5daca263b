"""The ComfyUI around the pack: where it lies, and a server of it while a command runs."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import BudgetFusionError

ADDRESS = "127.0.0.1"
START_SECONDS = 300.0
STOP_SECONDS = 15.0
PACK = Path(__file__).parents[2]
GUARD = Path(__file__).with_name("guard.py")

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a local server: no proxy is asked


class ServerError(BudgetFusionError):
    """There is no ComfyUI to work with, or it did not do what was asked."""


class ServerGone(ServerError):
    """It did not start, or does not answer any more; another one may do the same work."""


@dataclass(frozen=True)
class ComfyUI:
    """A ComfyUI folder and what runs it."""

    folder: Path
    base: Path
    """Its folder of models, user and custom_nodes: the same unless --base-directory says otherwise."""

    @property
    def planners(self) -> Path:
        return self.base / "models" / "budgetfusion"

    @property
    def store(self) -> Path:
        return self.base / "user" / "budgetfusion" / "calibration.sqlite3"

    @property
    def python(self) -> str:
        """COMFYUI_PYTHON, else the Python that runs this command."""
        return os.environ.get("COMFYUI_PYTHON", "").strip() or sys.executable


def find_comfyui(base_directory: Path | None = None) -> ComfyUI:
    """The ComfyUI whose custom_nodes hold the pack, else that of COMFYUI_PATH. ServerError where there is none."""
    # the way the pack was reached (a link in custom_nodes), then where it really lies
    reached = [Path(os.environ.get("PWD") or "."), PACK.absolute(), PACK.resolve()]
    around = [folder.parents[1] for folder in reached if folder.parent.name == "custom_nodes"]
    named = os.environ.get("COMFYUI_PATH", "").strip()
    for folder in [*around, *([Path(named).expanduser().absolute()] if named else [])]:
        if (folder / "main.py").is_file() and (folder / "comfy").is_dir():
            return ComfyUI(folder, (base_directory or folder).absolute())
    raise ServerError(
        f"COMFYUI_PATH is set to {named}, and that folder holds no ComfyUI (no main.py and comfy/)."
        if named
        else "There is no ComfyUI around this pack. Put the pack into a ComfyUI's custom_nodes, set COMFYUI_PATH to "
        "the folder that holds main.py, or name a running server with --server."
    )


@contextlib.contextmanager
def running_server(comfyui: ComfyUI, more: Sequence[str] = ()) -> Iterator[str]:
    """The address of a server that ends with the block. more: further options of ComfyUI's main.py."""
    port = _free_port()
    command = [comfyui.python, str(comfyui.folder / "main.py"), "--port", str(port), "--disable-auto-launch"]
    command += ["--base-directory", str(comfyui.base)] if comfyui.base != comfyui.folder else []
    command += [] if "--cpu" in more or _has_accelerator(comfyui.python) else ["--cpu"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-I", str(GUARD), *command, *more],
            cwd=comfyui.folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE,
        )
        try:
            url = f"http://{ADDRESS}:{port}"
            _wait_until_it_answers(url, process, log)
            yield url
        finally:
            _stop(process)


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: object) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ServerGone(f"ComfyUI ended at once. It said:\n{_tail(log)}")
        with contextlib.suppress(urllib.error.URLError, OSError), _opener.open(f"{url}/system_stats", timeout=5):
            return
        time.sleep(0.25)
    raise ServerGone(f"ComfyUI did not answer within {START_SECONDS:.0f} s. It said:\n{_tail(log)}")


def _tail(log: object, lines: int = 15) -> str:
    log.seek(0)  # type: ignore[attr-defined]
    return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-lines:])  # type: ignore[attr-defined]


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()  # the guard ends the server
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])


def _has_accelerator(python: str) -> bool:
    """Whether this Python's torch finds a GPU: ComfyUI must be told where it does not."""
    question = "import torch; print(int(getattr(torch, 'accelerator', torch.cuda).is_available()))"
    asked = subprocess.run([python, "-c", question], check=False, capture_output=True, text=True)
    return asked.stdout.strip().endswith("1")
