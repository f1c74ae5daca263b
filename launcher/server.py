"""ComfyUI as a child process in a base directory of its own, with the pack linked in; its folder is only read."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .comfyui import Host
from .errors import LaunchError
from .layout import ROOT, Layout, child_command
from .packages import new_log

START_SECONDS = 240.0
"""A cold start on a slow disk takes a minute; ten times the usual is not a start any more."""
STOP_SECONDS = 10.0
ADDRESS = "127.0.0.1"
PACK_FOLDER = "budgetfusion"
_NOT_COPIED = shutil.ignore_patterns(".*", "demo_out", "__pycache__", "node_modules")

# The server is local: a proxy from the environment must not be asked for it.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Server:
    """A running ComfyUI."""

    url: str
    base: Path
    log: Path
    seconds: float
    """From the start of the process to the first answer."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        if os.name != "nt":  # As the host's own server does; on Windows the option means something else.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except (OSError, OverflowError):
            return False
    return True


def chosen_port(wanted: int | None) -> int:
    """The wanted port if it is free, a free one if none was wanted."""
    if wanted is None:
        return free_port()
    if not is_free(wanted):
        raise LaunchError(
            f"Port {wanted} is taken by another program (perhaps a ComfyUI that already runs).",
            "End that program, give another number with --port, or leave --port out to get a free one.",
        )
    return wanted


def default_threads() -> int:
    """Half the cores, at most 4: two busy OpenMP processes on all cores slow each other down a hundredfold."""
    return min(4, max(1, (os.cpu_count() or 1) // 2))


def link_pack(custom_nodes: Path) -> str:
    """Makes the pack appear in `custom_nodes`: 'symlink', 'junction' or 'copy', whichever the system allows."""
    place = custom_nodes / PACK_FOLDER
    try:
        place.symlink_to(ROOT, target_is_directory=True)
        return "symlink"
    except OSError:
        pass
    if os.name == "nt":  # Needs no special right, unlike a symlink.
        made = subprocess.run(["cmd", "/c", "mklink", "/J", str(place), str(ROOT)], check=False, capture_output=True)
        if made.returncode == 0:
            return "junction"
    shutil.copytree(ROOT, place, ignore=_NOT_COPIED)
    return "copy"


def remove_base(base: Path) -> None:
    """Deletes a base directory; the link to the pack first, so that nothing can follow it."""
    link = base / "custom_nodes" / PACK_FOLDER
    with contextlib.suppress(OSError):
        link.unlink() if link.is_symlink() else link.rmdir()  # rmdir takes a junction, and refuses a copy.
    shutil.rmtree(base, ignore_errors=True)


def has_accelerator(python: Path) -> bool:
    """Whether this torch would find a GPU, told without importing torch (that alone takes seconds).

    Apple silicon has one. Elsewhere: torch is a CUDA build, and a driver that is new enough for it sees a device.
    """
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    cuda = _torch_cuda_major(python)
    return cuda is not None and _driver_cuda_major() >= cuda


def _torch_cuda_major(python: Path) -> int | None:
    for site in (*python.parent.parent.glob("lib*/python3*/site-packages"), python.parent.parent / "Lib/site-packages"):
        with contextlib.suppress(OSError):
            found = re.search(
                r"^cuda\b.*=\s*'(\d+)\.", (site / "torch/version.py").read_text(encoding="utf-8"), re.MULTILINE
            )
            return int(found.group(1)) if found else None
    return None


def _driver_cuda_major() -> int:
    """CUDA's major version that the NVIDIA driver supports, 0 without a driver or a device."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        devices, version = ctypes.c_int(), ctypes.c_int()
        if (
            driver.cuInit(0)
            or driver.cuDeviceGetCount(ctypes.byref(devices))
            or driver.cuDriverGetVersion(ctypes.byref(version))
        ):
            return 0
    except (OSError, AttributeError):
        return 0
    return version.value // 1000 if devices.value else 0


def _users_torch_has_accelerator(python: Path) -> bool:
    code = (
        "import torch; print(int(torch.cuda.is_available() or torch.backends.mps.is_available()"
        " or (hasattr(torch, 'xpu') and torch.xpu.is_available())))"
    )
    answer = subprocess.run([str(python), "-c", code], check=False, capture_output=True, text=True)
    return answer.stdout.strip() == "1"


def host_arguments(base: Path, port: int, *, cpu: bool, page: bool) -> list[str]:
    arguments = ["--port", str(port), "--base-directory", str(base), "--database-url", "sqlite:///:memory:"]
    arguments += ["--disable-api-nodes", "--disable-auto-launch"]
    if cpu:
        arguments.append("--cpu")
    if not page:  # Headless: an empty page in place of the front-end package, which need not be installed.
        arguments += ["--front-end-root", str(base / "page")]
    return arguments


def _make_base(layout: Layout, name: str | None, *, pack: bool, page: bool) -> Path:
    """A base directory: a fresh one, or the lasting one of this name."""
    layout.base.mkdir(parents=True, exist_ok=True)
    if name is None:
        base = Path(tempfile.mkdtemp(prefix="server-", dir=layout.base))
    else:
        base = layout.base / name
    for folder in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    if not page:
        (base / "page").mkdir()
        (base / "page" / "index.html").write_text(
            "<p>BudgetFusion runs this ComfyUI without its page.</p>", encoding="utf-8"
        )
    if pack:
        link = base / "custom_nodes" / PACK_FOLDER
        if link.is_symlink():
            link.unlink()
        elif link.is_dir() and name is not None:
            shutil.rmtree(link)  # A copy or a junction of an earlier run (rmtree does not enter a junction).
        link_pack(base / "custom_nodes")
    return base


@contextlib.contextmanager
def running_host(
    layout: Layout,
    host: Host,
    *,
    port: int | None = None,
    cpu: bool = False,
    page: bool = False,
    pack: bool = True,
    base_name: str | None = None,
) -> Iterator[Server]:
    """Starts a host, yields it once it answers, and ends it however the block is left."""
    port = chosen_port(port)
    if not cpu:
        own = host.python == layout.python
        cpu = not (has_accelerator(host.python) if own else _users_torch_has_accelerator(host.python))
    base = _make_base(layout, base_name, pack=pack, page=page)
    log = new_log(layout, "comfyui")
    process: subprocess.Popen[bytes] | None = None
    try:
        started = time.monotonic()
        with log.open("wb") as file:
            process = subprocess.Popen(
                child_command(host.python, str(host.path / "main.py"), *host_arguments(base, port, cpu=cpu, page=page)),
                cwd=base,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=_host_environment(host),
                start_new_session=True,  # Ctrl-C reaches run.py, which then ends the server in good order.
            )
        url = f"http://{ADDRESS}:{port}"
        _wait_until_it_answers(url, process, log, host)
        if pack:
            _require_pack(log, host)
        yield Server(url, base, log, time.monotonic() - started)
    finally:
        if process is not None:
            stop(process)
        if base_name is None:
            remove_base(base)


def _host_environment(host: Host) -> dict[str, str]:
    dropped = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment.setdefault("OMP_NUM_THREADS", str(default_threads()))
    environment.update(PYTHONUNBUFFERED="1", PYTHONUTF8="1")
    if not host.pinned:  # A ComfyUI of the user's is never written to, not even byte code.
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    return environment


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path, host: Host) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise _explain_start_failure(log, host)
        try:
            with _opener.open(url + "/system_stats", timeout=5) as answer:
                if "system" in json.load(answer):
                    return
        except (OSError, ValueError):  # Not there yet; URLError is an OSError.
            time.sleep(0.02)
    raise LaunchError(
        f"{host} did not answer within {START_SECONDS:.0f} s.",
        f"Look at its log, {log}, and run the same command again.",
    )


def _require_pack(log: Path, host: Host) -> None:
    """A host starts without a pack that fails to load, and says so in its log alone, before it answers."""
    text = log.read_text(encoding="utf-8", errors="replace")
    if re.search(rf"\(IMPORT FAILED\): .*{PACK_FOLDER}\s*$", text, re.MULTILINE):
        errors = re.findall(r"^\w*(?:Error|Exception): .+", text, re.MULTILINE)
        raise LaunchError(
            f"{host} started, but BudgetFusion did not load{': ' + errors[-1].strip() if errors else ''}.",
            f"Get a complete copy of the repository, or report this with the log, {log}.",
        )


def _explain_start_failure(log: Path, host: Host) -> LaunchError:
    text = log.read_text(encoding="utf-8", errors="replace")
    missing = re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", text)
    if missing and not host.pinned:
        return LaunchError(
            f"{host} needs the Python package {missing.group(1)}, which {host.python} does not have.",
            "Set COMFYUI_PYTHON to the Python program that runs your ComfyUI, and run the same command again.",
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return LaunchError(
        f"{host} stopped while starting: {lines[-1] if lines else 'it printed nothing'}", f"Its log is {log}."
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the process: asks first, insists after a while."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
