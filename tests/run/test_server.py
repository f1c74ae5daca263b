"""Starting and, above all, ending a host. A small program with the host's address stands in for it here; the genuine
one is started by `run.py demo` and by tests/host."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from launcher import server
from launcher.comfyui import Host
from launcher.errors import LaunchError
from launcher.layout import ROOT, Layout

STAND_IN = """
import http.server, json, pathlib, sys
port, base = (sys.argv[sys.argv.index(name) + 1] for name in ("--port", "--base-directory"))
pathlib.Path(base, "arguments.json").write_text(json.dumps(sys.argv[1:]))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'{"system": {}}')
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


@pytest.fixture
def host(tmp_path: Path) -> Host:
    folder = tmp_path / "comfy"
    folder.mkdir()
    (folder / "main.py").write_text(STAND_IN)
    return Host(folder, "0.30.0", Path(sys.executable), pinned=False)


def answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url + "/system_stats", timeout=5) as answer:
        return answer.status == 200
    return False


def gone(url: str, within: float = 5.0) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not answers(url):
            return True
        time.sleep(0.05)
    return False


def test_it_runs_in_its_own_base_directory_and_leaves_nothing(layout: Layout, host: Host) -> None:
    before = sorted(path.name for path in host.path.rglob("*"))
    with server.running_host(layout, host, cpu=True) as running:
        assert answers(running.url)
        assert (running.base / "custom_nodes" / server.PACK_FOLDER / "run.py").is_file()
        arguments = (running.base / "arguments.json").read_text()
        for wanted in ("--cpu", "--disable-api-nodes", "sqlite:///:memory:", "--front-end-root", str(running.base)):
            assert wanted in arguments
    assert gone(running.url)
    assert not running.base.exists() and (ROOT / "run.py").is_file()
    assert sorted(path.name for path in host.path.rglob("*")) == before, "the host's folder must not be written to"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_it_ends_however_the_block_is_left(error: type[BaseException], layout: Layout, host: Host) -> None:
    url = ""
    with pytest.raises(error), server.running_host(layout, host, cpu=True) as running:
        url = running.url
        raise error
    assert gone(url)
    assert list(layout.base.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_it_ends_with_the_launcher(how: str, layout: Layout, host: Host) -> None:
    code = (
        "import sys, time, signal, pathlib\n"
        "from launcher import cli, comfyui, server\n"
        "from launcher.layout import Layout\n"
        "signal.signal(signal.SIGTERM, cli._end)\n"
        "host = comfyui.Host(pathlib.Path(sys.argv[1]), '0.30.0', pathlib.Path(sys.executable), pinned=False)\n"
        "with server.running_host(Layout.from_environment(), host, cpu=True) as running:\n"
        "    print(running.url, flush=True)\n"
        "    time.sleep(60)\n"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", code, str(host.path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert launcher.stdout is not None
    url = launcher.stdout.readline().strip()
    assert answers(url)
    launcher.send_signal(getattr(signal, how))
    launcher.wait(15)
    launcher.stdout.close()
    assert gone(url)


def test_a_host_that_stops_while_starting_says_why(layout: Layout, host: Host) -> None:
    (host.path / "main.py").write_text("raise SystemExit('the database is locked')")
    with (
        pytest.raises(LaunchError, match=r"stopped while starting: the database is locked Its log is "),
        server.running_host(layout, host, cpu=True),
    ):
        pass
    assert list(layout.base.iterdir()) == []


def test_a_pack_that_does_not_load_is_said_although_the_host_runs(layout: Layout, host: Host) -> None:
    words = (
        "ImportError: cannot import name 'x'\\n[INFO]   0.1 seconds (IMPORT FAILED): /base/custom_nodes/budgetfusion"
    )
    (host.path / "main.py").write_text(f'print("{words}", flush=True)\n' + STAND_IN)
    with (
        pytest.raises(LaunchError, match="BudgetFusion did not load: ImportError: cannot import name 'x'"),
        server.running_host(layout, host, cpu=True),
    ):
        pass
    with server.running_host(layout, host, cpu=True, pack=False) as running:
        assert answers(running.url)


def test_a_package_that_the_users_host_needs_points_to_comfyui_python(layout: Layout, host: Host) -> None:
    (host.path / "main.py").write_text("import bf_surely_not_here")
    with (
        pytest.raises(LaunchError, match=r"needs the Python package bf_surely_not_here.*COMFYUI_PYTHON"),
        server.running_host(layout, host, cpu=True),
    ):
        pass


def test_a_host_that_never_answers_is_given_up(layout: Layout, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    (host.path / "main.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(server, "START_SECONDS", 0.5)
    with pytest.raises(LaunchError, match="did not answer"), server.running_host(layout, host, cpu=True):
        pass


def test_a_lasting_base_directory_is_kept_and_used_again(layout: Layout, host: Host) -> None:
    for _ in range(2):
        with server.running_host(layout, host, cpu=True, page=True, base_name="page-1") as running:
            (running.base / "user" / "mine.json").write_text("{}")
            assert "--front-end-root" not in (running.base / "arguments.json").read_text()
        assert (running.base / "user" / "mine.json").is_file()


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT to send")
def test_serve_says_where_the_page_is_and_ends_with_ctrl_c(layout: Layout, host: Host) -> None:
    """Twice on one port: the second run finds what was saved in the first."""
    (host.path / "comfy").mkdir()
    (host.path / "comfyui_version.py").write_text('__version__ = "0.30.0"\n')
    port = server.free_port()
    base = layout.base / f"page-{port}"
    code = (
        "import signal, sys; from launcher import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background starts without it
        "cli.set_up = lambda *_: None\n"  # its packages are tested on their own
        f"sys.exit(cli.main(['serve', '--no-browser', '--cpu', '--port', '{port}']))\n"
    )
    environment = {**os.environ, "COMFYUI_PATH": str(host.path), "COMFYUI_PYTHON": sys.executable}
    for _ in range(2):
        command = [sys.executable, "-u", "-c", code]
        launcher = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            assert launcher.stdout is not None and launcher.stderr is not None
            said = [launcher.stdout.readline() for _ in range(3)]
            url = f"http://127.0.0.1:{port}"
            assert url in said[0] and "Browse Templates" in said[1] and "Ctrl-C" in said[1]
            assert str(base / "output") in said[2]
            assert answers(url)
            assert (base / "custom_nodes" / server.PACK_FOLDER / "run.py").is_file()
            assert "--front-end-root" not in (base / "arguments.json").read_text()
            (base / "user").mkdir(exist_ok=True)
            (base / "user" / "mine.json").open("a").write("saved\n")
        finally:
            launcher.send_signal(signal.SIGINT)
            _, errors = launcher.communicate(timeout=15)
        assert launcher.returncode == 130 and "Traceback" not in errors, errors
        assert gone(url)
    assert (base / "user" / "mine.json").read_text() == "saved\n" * 2


def test_a_taken_port_is_said_and_a_free_one_is_found() -> None:
    with socket.socket() as other:
        other.bind((server.ADDRESS, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(LaunchError, match=rf"Port {port} is taken .* --port"):
            server.chosen_port(port)
        found = server.chosen_port(None)
        assert found != port and server.is_free(found)
    assert server.chosen_port(port) == port


def test_without_links_the_pack_is_copied_without_what_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = tmp_path / "pack"
    for name in ("__init__.py", ".run/venv/x", "demo_out/a.png", "budgetfusion_nodes/cli.py", ".git/HEAD"):
        (pack / name).parent.mkdir(parents=True, exist_ok=True)
        (pack / name).write_text("")
    monkeypatch.setattr(server, "ROOT", pack)

    def refuse(*_: object, **__: object) -> None:
        raise OSError("A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    monkeypatch.setattr(server.os, "name", "posix")
    base = tmp_path / "base"
    (base / "custom_nodes").mkdir(parents=True)
    assert server.link_pack(base / "custom_nodes") == "copy"
    placed = base / "custom_nodes" / server.PACK_FOLDER
    assert sorted(p.relative_to(placed).as_posix() for p in placed.rglob("*") if p.is_file()) == [
        "__init__.py",
        "budgetfusion_nodes/cli.py",
    ]
    server.remove_base(base)
    assert not base.exists() and (pack / "__init__.py").is_file()


def test_a_linked_pack_survives_the_removal_of_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "keep").write_text("")
    monkeypatch.setattr(server, "ROOT", pack)
    (tmp_path / "base" / "custom_nodes").mkdir(parents=True)
    server.link_pack(tmp_path / "base" / "custom_nodes")
    server.remove_base(tmp_path / "base")
    assert (pack / "keep").is_file() and not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("version", "driver", "expected"),
    [
        ("cuda: Optional[str] = '13.0'\n", 13, True),
        ("cuda: Optional[str] = '13.0'\n", 12, False),
        ("cuda: Optional[str] = '12.8'\n", 13, True),
        ("cuda: Optional[str] = None\n", 13, False),
        (None, 13, False),
    ],
)
def test_a_gpu_counts_only_with_a_fitting_torch_and_driver(
    version: str | None, driver: int, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.sys, "platform", "linux")
    monkeypatch.setattr(server, "_driver_cuda_major", lambda: driver)
    if version is not None:
        torch = tmp_path / "lib/python3.11/site-packages/torch"
        torch.mkdir(parents=True)
        (torch / "version.py").write_text(f"__version__ = '2.11.0'\n{version}hip: Optional[str] = None\n")
    assert server.has_accelerator(tmp_path / "bin/python") is expected


@pytest.mark.parametrize(("cores", "threads"), [(None, 1), (1, 1), (2, 1), (4, 2), (8, 4), (64, 4)])
def test_threads_leave_room(cores: int | None, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.os, "cpu_count", lambda: cores)
    assert server.default_threads() == threads
