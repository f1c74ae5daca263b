"""The virtual environment and what is installed in it.

A stamp in the environment names the requirement lists (by digest) that are completely installed, so a second run costs
one small file. A marker beside the environment exists exactly while its files are being written: whoever finds it
knows that a set-up was cut off there, and builds the environment afresh. A failure before that point (no network, no
such version) leaves the environment as it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .child_process import POLL_SECONDS
from .console import Step, say
from .errors import LaunchError
from .layout import ROOT, Layout, child_command

GIB = 1024**3
# The CUDA wheels that PyPI gives to Linux: 5.5 GB installed and 3 GB of downloads. Elsewhere torch is small.
SPACE_NEEDED = {"host": 9 * GIB if sys.platform == "linux" else 3 * GIB}
SPACE_NEEDED_OTHERWISE = GIB // 2
KEPT_LOGS = 50

# Settings of the caller that would send packages elsewhere, or make pip refuse to work in a virtual environment.
_FOREIGN_SETTINGS = ("PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV")
_INSTALL_BEGINS = "Installing collected packages"


@dataclass(frozen=True)
class Group:
    """A list of requirements that is installed as a whole."""

    name: str
    file: Path
    extra: tuple[str, ...] = ()
    """Requirements beside the file's, for instance the page packages that the chosen host names."""
    contains: tuple[str, ...] = ()
    """Names of the groups whose files this one includes."""

    @property
    def digest(self) -> str:
        lines = [*requirement_lines(self.file), *self.extra]
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def requirement_lines(file: Path) -> Iterator[str]:
    """The requirements of a list and of the lists that it names, without comments."""
    for line in file.read_text(encoding="utf-8").splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            yield from requirement_lines(file.parent / line[3:].strip())
        elif line:
            yield line


_LISTS = ROOT / "requirements"
CLIENT = Group("client", _LISTS / "client.txt")
HOST = Group("host", _LISTS / "host.txt", contains=("client",))
BENCH = Group("bench", _LISTS / "bench.txt")
TEST = Group("test", _LISTS / "test.txt", contains=("bench",))
_GROUPS = {group.name: group for group in (CLIENT, HOST, BENCH, TEST)}


def page_group(host: Path) -> Group:
    """The rest of the host's requirements, with the page in the versions that this host's own list names."""
    wanted = []
    with contextlib.suppress(OSError):
        for line in (host / "requirements.txt").read_text(encoding="utf-8").splitlines():
            if line.startswith(("comfyui-frontend-package", "comfyui-workflow-templates", "comfyui-embedded-docs")):
                wanted.append(line.strip())
    return Group("page", _LISTS / "page.txt", extra=tuple(wanted))


def installed_digests(layout: Layout) -> dict[str, str]:
    """Group name -> digest of what is completely installed; empty when there is nothing that can be relied on."""
    if layout.incomplete.exists() or not layout.python.exists():
        return {}
    try:
        groups = json.loads(layout.stamp.read_text(encoding="utf-8"))["groups"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {str(k): str(v) for k, v in groups.items()} if isinstance(groups, dict) else {}


def missing_groups(layout: Layout, groups: Iterable[Group]) -> list[Group]:
    digests = installed_digests(layout)
    return [group for group in groups if digests.get(group.name) != group.digest]


def ensure_packages(layout: Layout, groups: Sequence[Group]) -> None:
    """Makes the environment hold these groups. Call it while holding the lock."""
    if not missing_groups(layout, groups):
        return
    _require_space(layout, missing_groups(layout, groups))
    _ensure_venv(layout)
    digests = installed_digests(layout)
    args = ["install", "--no-compile"]  # a minute for 18,000 files, of which few are imported and compiled then
    for group in groups:
        args += ["-r", str(group.file), *group.extra]
    names = " and ".join(group.name for group in missing_groups(layout, groups))
    with Step(f"Installing packages ({names})") as step:
        run_pip(layout, args, step)
    for group in groups:
        digests[group.name] = group.digest
        for name in group.contains:
            digests[name] = _GROUPS[name].digest
    _write_stamp(layout, digests)


def _write_stamp(layout: Layout, digests: dict[str, str]) -> None:
    draft = layout.stamp.with_suffix(".draft")
    draft.write_text(json.dumps({"groups": digests}, indent=1), encoding="utf-8")
    draft.replace(layout.stamp)


def _require_space(layout: Layout, missing: Sequence[Group]) -> None:
    needed = sum(SPACE_NEEDED.get(group.name, SPACE_NEEDED_OTHERWISE) for group in missing)
    if layout.stamp.exists() and not layout.incomplete.exists():
        needed = min(needed, GIB)  # Only what changed is fetched.
    free = shutil.disk_usage(layout.run_dir).free
    if free < needed:
        raise LaunchError(
            f"There is not enough disk space: the set-up needs {needed / GIB:.1f} GB under {layout.run_dir}, and "
            f"{free / GIB:.1f} GB are free.",
            "Free some, or set BUDGETFUSION_RUN_DIR to a folder on a larger disk, and run the same command again.",
        )


def _ensure_venv(layout: Layout) -> None:
    cut_off = layout.incomplete.exists()
    if layout.python.exists() and not cut_off:
        return
    if layout.venv.exists():
        say(
            "An earlier set-up was cut off; starting it afresh."
            if cut_off
            else "The virtual environment is broken; making it anew."
        )
    if cut_off:
        time.sleep(4 * POLL_SECONDS)  # If it was cut off just now, its pip ends within that time.
    layout.incomplete.write_text("The virtual environment is being written. run.py removes this file.\n")
    shutil.rmtree(layout.venv, ignore_errors=True)
    environment = _clean_environment(layout)
    with Step("Making a virtual environment"):
        made = subprocess.run(
            [sys.executable, "-m", "venv", str(layout.venv)],
            check=False,
            capture_output=True,
            text=True,
            env=environment,
        )
    if made.returncode != 0 or not layout.python.exists():
        output = made.stdout + made.stderr
        new_log(layout, "venv").write_text(output, encoding="utf-8")
        if "No space left" in output:
            raise _no_space()
        if "ensurepip" in output:
            raise LaunchError(
                "This Python cannot make virtual environments, because its ensurepip module is missing.",
                f"Install it (on Debian and Ubuntu: sudo apt install python3.{sys.version_info[1]}-venv) and run the "
                "same command again.",
            )
        raise LaunchError(
            f"Python could not make a virtual environment in {layout.venv}: {_last_line(output)}",
            "Check that the folder can be written to, and run the same command again.",
        )
    layout.incomplete.unlink()


def _clean_environment(layout: Layout) -> dict[str, str]:
    """The caller's environment (proxies and pip's own settings included) less what would send packages elsewhere."""
    environment = {name: value for name, value in os.environ.items() if name.upper() not in _FOREIGN_SETTINGS}
    # Downloads are unpacked beside the environment: one disk to look at, and a small /tmp is no obstacle.
    for name in ("TMPDIR", "TEMP", "TMP"):
        environment[name] = str(layout.temporary)
    environment.update(
        PYTHONUNBUFFERED="1", PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1", PIP_PROGRESS_BAR="off"
    )
    return environment


def new_log(layout: Layout, name: str) -> Path:
    layout.logs.mkdir(parents=True, exist_ok=True)
    by_age = sorted(layout.logs.glob("*.log"), key=lambda path: path.stat().st_mtime)
    for old in by_age[:-KEPT_LOGS]:
        old.unlink(missing_ok=True)
    return layout.logs / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"


def run_pip(layout: Layout, args: Sequence[str], step: Step) -> None:
    """Runs the environment's pip with its words in a log. Raises LaunchError with one sentence when it fails."""
    log = new_log(layout, "pip")
    layout.temporary.mkdir(parents=True, exist_ok=True)
    command = child_command(layout.python, "-m", "pip", *args)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_clean_environment(layout),
            text=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise LaunchError(f"The environment's Python does not start ({error}).", _delete_advice(layout)) from error
    assert process.stdout is not None
    try:
        with log.open("w", encoding="utf-8") as file:
            for line in process.stdout:
                file.write(line)
                if line.startswith(_INSTALL_BEGINS):
                    layout.incomplete.write_text("Packages are being written. run.py removes this file.\n")
                    step.note("installing")
                elif line.lstrip().startswith(("Collecting ", "Downloading ")):
                    step.note(_short_note(line))
        code = process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        shutil.rmtree(layout.temporary, ignore_errors=True)
    if code != 0:
        raise explain_pip_failure(log.read_text(encoding="utf-8"), log)
    layout.incomplete.unlink(missing_ok=True)


def _short_note(line: str) -> str:
    """`Downloading https://host/a/b/torch-2.11.0-cp311.whl.metadata (3 kB)` -> `downloading torch-2.11.0`."""
    verb, what = line.split()[:2]
    return f"{verb.lower()} {'-'.join(what.rsplit('/', 1)[-1].split('-')[:2])}"


def _delete_advice(layout: Layout) -> str:
    return f"Delete the folder {layout.venv} and run the same command again."


def _no_space() -> LaunchError:
    return LaunchError(
        "The disk is full.",
        "Free about 9 GB, or set BUDGETFUSION_RUN_DIR to a folder on a larger disk, and run the same command again.",
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


_NO_NETWORK = re.compile(
    r"NewConnectionError|Failed to establish a new connection|Temporary failure in name resolution|ConnectTimeoutError"
    r"|ReadTimeoutError|Max retries exceeded|getaddrinfo failed|Network is unreachable|Connection refused"
    r"|Connection reset|ProxyError|RemoteDisconnected"
)


def explain_pip_failure(output: str, log: Path) -> LaunchError:
    """pip's words -> one sentence and a remedy."""
    where = f"(pip's own words are in {log}.)"
    if re.search(r"No space left on device|\[Errno 28\]|There is not enough space on the disk", output):
        return _no_space()
    if re.search(r"CERTIFICATE_VERIFY_FAILED|SSLError", output):
        return LaunchError(
            "The package index could not be reached safely: its certificate was not accepted.",
            f"If your network has its own certificate, point PIP_CERT at it, and run the same command again. {where}",
        )
    if _NO_NETWORK.search(output):
        return LaunchError(
            "The package index could not be reached.",
            "Check the network connection (and proxy settings, or PIP_INDEX_URL if you use a mirror) and run the same "
            f"command again; nothing half-installed is left. {where}",
        )
    unknown = re.search(r"No matching distribution found for (\S+)", output)
    if unknown and "(from versions: none)" in output:  # pip says no more when it may not try again.
        return LaunchError(
            f"The package index could not be reached, or it knows no {unknown.group(1)} at all.",
            f"Check the network connection and pip's settings (PIP_INDEX_URL, PIP_NO_INDEX), and run the same command "
            f"again. {where}",
        )
    if unknown:
        return LaunchError(
            f"The package index offers no {unknown.group(1)} for this system and this Python.",
            f"Check pip's settings (PIP_INDEX_URL, PIP_NO_INDEX), or try another Python from 3.10 to 3.13. {where}",
        )
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")]
    return LaunchError(
        f"pip could not install the packages: {(errors or [_last_line(output)])[-1].removeprefix('ERROR: ').strip()}",
        f"Mend that and run the same command again. {where}",
    )
