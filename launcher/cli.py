"""The commands of run.py."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import browser, checks, comfyui, packages, release, startup_cost
from .console import say, use_tolerant_output
from .errors import LaunchError
from .layout import ROOT, Layout
from .lock import set_up_lock
from .server import chosen_port, default_threads, free_port, is_free, running_host

DEFAULT_PAGE_PORT = 8188
QUALITY_RANGE = (0.50, 0.99)


def main(arguments: Sequence[str]) -> int:
    """Runs one command and returns the exit status. Whatever goes wrong ends as one sentence and what to do."""
    use_tolerant_output()
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _end)
    try:
        return int(options.command(options))
    except LaunchError as error:
        sys.stdout.flush()
        sys.stderr.write(f"Error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped. Nothing runs any more; the same command starts again where it makes sense.\n")
        return 130
    except OSError as error:
        sys.stderr.write(f"Error: {_explain_os_error(error)}\n")
        return 1


def _explain_os_error(error: OSError) -> str:
    if error.errno == 28:  # ENOSPC
        return "The disk is full. Free some space, or set BUDGETFUSION_RUN_DIR to a folder on a larger disk."
    where = f" ({error.filename})" if error.filename else ""
    return f"The system refused a file operation{where}: {error.strerror or error}. Check the path and its permissions."


def _end(*_: Any) -> None:
    raise SystemExit(143)  # Runs every `finally` on the way out, so the server ends too.


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py",
        description="BudgetFusion for ComfyUI. Everything is set up under .run/ (BUDGETFUSION_RUN_DIR) the first time. "
        "COMFYUI_PATH names a ComfyUI of yours to use in place of the pinned one; it runs with run.py's own packages, "
        "or with the Python that COMFYUI_PYTHON names. Nothing is written to it.",
    )
    commands = parser.add_subparsers(
        required=True,
        metavar="demo | test | serve | bench | campaign | startup-cost | screenshots | page-speed | release-check",
    )

    _add_demo(commands)
    test = commands.add_parser("test", help="run every test, against each pinned ComfyUI")
    test.add_argument(
        "--only", action="append", choices=checks.PARTS, help="run only this part (may be given several times)"
    )
    test.set_defaults(command=_test)

    serve = commands.add_parser("serve", help="open ComfyUI's page with the pack and its templates")
    serve.add_argument("--no-browser", action="store_true", help="only print the address")
    _add_server_options(serve)
    serve.set_defaults(command=_serve)

    bench = commands.add_parser(
        "bench", help="compare schedules, plans and peers on held-out prompts: docs/benchmark.md"
    )
    bench.add_argument(
        "--settings", metavar="NAMES", help="only these, separated by commas: eps_karras, eps_normal, flow"
    )
    bench.add_argument(
        "--stages", metavar="NAMES", help="only these, separated by commas: render, peers, time, measure, report"
    )
    bench.add_argument("--prompts", type=_count, metavar="N", help="the first N held-out prompts (default: all 300)")
    bench.add_argument("--peer-prompts", type=_count, metavar="N", help="of them for the peers (default: 96)")
    bench.add_argument("--pictures", type=Path, metavar="FOLDER", help="picture sets (default: .run/pictures)")
    bench.add_argument("--out", type=Path, default=ROOT / "docs", help="where to write (default: docs)")
    _add_host_version(bench)
    bench.set_defaults(command=_bench)

    _add_campaign(commands)

    cost = commands.add_parser("startup-cost", help="measure what the pack adds to ComfyUI's start")
    cost.add_argument(
        "--boots", type=_count, default=7, help="boots with and without the pack (default: %(default)s each)"
    )
    _add_server_options(cost, port=False)
    cost.set_defaults(command=_startup_cost)

    for name, program, words in (
        ("screenshots", "screenshots.mjs", "make the pictures of templates and help pages from the real page"),
        ("page-speed", "speed.mjs", "measure how fast the page is with the pack"),
    ):
        page = commands.add_parser(name, help=words)
        _add_host_version(page)
        page.set_defaults(command=_page, program=program)

    checked = commands.add_parser("release-check", help="say what stands in the way of a release to the registry")
    checked.set_defaults(command=lambda _: release.run(ROOT))
    return parser


def _add_campaign(commands: Any) -> None:
    campaign = commands.add_parser("campaign", help="try to break what the pack promises: docs/reliability.md")
    campaign.add_argument("--parts", metavar="NAMES", help="only these, separated by commas, anew")
    amounts = campaign.add_mutually_exclusive_group()
    amounts.add_argument("--quick", dest="long", action="store_false", help="the quick amount (default)")
    amounts.add_argument("--long", action="store_true", help="the long amount, hours")
    campaign.add_argument("--minutes", type=float, metavar="N", help="a part of many attempts stops then")
    campaign.add_argument("--seed", type=_seed, default=1, help="of everything random (default: %(default)s)")
    campaign.add_argument("--out", type=Path, default=ROOT / "docs", help="where to write (default: docs)")
    _add_host_version(campaign)
    campaign.set_defaults(command=_campaign)


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser("demo", help="render prompts in a genuine ComfyUI and write demo_out/")
    demo.add_argument(
        "--prompt", action="append", type=_prompt, metavar="TEXT", help="your own prompt (may be given several times)"
    )
    demo.add_argument(
        "--held-out", type=_count, metavar="N", help="render N prompts that no training and no calibration has seen"
    )
    demo.add_argument(
        "--model",
        choices=("eps", "flow"),
        default="eps",
        help="Tiny Scenes (dpmpp_2m / karras) or Tiny Scenes Flow (split files, euler / simple) (default: %(default)s)",
    )
    demo.add_argument(
        "--quality", type=_quality, default=0.90, help="the quality slider, 0.50 to 0.99 (default: %(default)s)"
    )
    demo.add_argument(
        "--seed", type=_seed, default=1, help="seed of the first prompt, +1 for each next (default: %(default)s)"
    )
    demo.add_argument("--out", type=Path, default=ROOT / "demo_out", help="where to write (default: demo_out)")
    _add_server_options(demo)
    demo.set_defaults(command=_demo)


def _add_server_options(parser: argparse.ArgumentParser, *, port: bool = True) -> None:
    if port:
        parser.add_argument("--port", type=_port, help="port of the server (default: a free one)")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    _add_host_version(parser)


def _add_host_version(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host-version",
        choices=sorted(comfyui.PINS, reverse=True),
        default=comfyui.DEFAULT_VERSION,
        help="which pinned ComfyUI, where COMFYUI_PATH is not set (default: %(default)s)",
    )


def _prompt(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("the prompt is empty; write what the picture should show")
    return text


def _number(text: str, kind: type, least: float, most: float, what: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{what} must be from {least} to {most}, and {text!r} was given")
    return value


def _quality(text: str) -> float:
    return _number(text, float, *QUALITY_RANGE, "quality")


def _port(text: str) -> int:
    return _number(text, int, 1, 65535, "the port")


def _count(text: str) -> int:
    return _number(text, int, 1, 10_000, "the number")


def _seed(text: str) -> int:
    return _number(text, int, 0, 2**64 - 1, "the seed")


def set_up(layout: Layout, hosts: Sequence[comfyui.Host], groups: Sequence[packages.Group]) -> None:
    """Makes sure that packages and hosts are there; costs milliseconds when they are."""
    started = time.monotonic()
    if packages.missing_groups(layout, groups) or any(h.pinned and not comfyui.is_present(h) for h in hosts):
        if sys.platform == "darwin" and _is_intel_mac():
            raise LaunchError(
                "PyTorch is no longer made for Macs with an Intel processor, so the demo's own set-up cannot run here.",
                "Use another machine, or set COMFYUI_PATH and COMFYUI_PYTHON to a ComfyUI that runs here.",
            )
        with set_up_lock(layout):
            packages.ensure_packages(layout, groups)
            for host in hosts:
                comfyui.ensure_host(layout, host)
    users = comfyui.user_python()
    if users is not None:
        comfyui.require_modules(users)
    say(f"Set-up ready after {time.monotonic() - started:.1f} s.")


def _is_intel_mac() -> bool:
    return platform.machine() == "x86_64" and comfyui.user_python() is None


def chosen_host(layout: Layout, version: str) -> comfyui.Host:
    return comfyui.user_host(layout) or comfyui.pinned_host(layout, version)


def _runtime_groups() -> list[packages.Group]:
    """With the user's own Python for the host, only the demo's side has to be installed."""
    return [packages.HOST if comfyui.user_python() is None else packages.CLIENT]


def _demo(options: argparse.Namespace) -> int:
    layout = Layout.from_environment()
    host = chosen_host(layout, options.host_version)
    if options.prompt and options.held_out:
        raise LaunchError("--prompt and --held-out were both given.", "Give one of them.")
    if options.port is not None:
        chosen_port(options.port)  # Told before a set-up of minutes, not after it.
    if options.out.exists() and not options.out.is_dir():
        raise LaunchError(f"--out: {options.out} is a file, and a folder is needed.", "Choose another name.")
    set_up(layout, [host], _runtime_groups())
    with running_host(layout, host, port=options.port, cpu=options.cpu) as server:
        say(f"{host} answers at {server.url} after {server.seconds:.1f} s.")
        command = [str(layout.python), "-m", "research.demo", "--server", server.url]
        command += ["--model", options.model, "--out", str(options.out.absolute())]
        command += ["--quality", str(options.quality), "--seed", str(options.seed)]
        for prompt in options.prompt or ():
            command.append(f"--prompt={prompt}")
        if options.held_out:
            command += ["--held-out", str(options.held_out)]
        code = run_child(command)
        if code != 0 and code != 130:
            say(f"The log of ComfyUI is {server.log}.")
        return code


def _bench(options: argparse.Namespace) -> int:
    layout = Layout.from_environment()
    host = chosen_host(layout, options.host_version)
    set_up(layout, [host], [packages.HOST, packages.BENCH])
    command = [
        str(layout.python),
        "-m",
        "research",
        "bench",
        "--host",
        str(host.path),
        "--out",
        str(options.out.absolute()),
    ]
    for name in ("settings", "stages", "prompts", "peer_prompts", "pictures"):
        value = getattr(options, name)
        if value is not None:
            command += ["--" + name.replace("_", "-"), str(value.absolute() if isinstance(value, Path) else value)]
    # one thread a process: two busy OpenMP pools on two cores are many times slower
    return run_child(command, {**os.environ, "OMP_NUM_THREADS": "1"})


def _campaign(options: argparse.Namespace) -> int:
    layout = Layout.from_environment()
    host = chosen_host(layout, options.host_version)
    set_up(layout, [host], [packages.HOST, packages.TEST])
    command = [str(layout.python), "-m", "research", "campaign", "--host", str(host.path)]
    command += ["--long" if options.long else "--quick", "--seed", str(options.seed)]
    command += ["--out", str(options.out.absolute())]
    for name in ("parts", "minutes"):
        if (value := getattr(options, name)) is not None:
            command += [f"--{name}", str(value)]
    return run_child(command, {**os.environ, "OMP_NUM_THREADS": "1"})


def run_child(command: Sequence[str], environment: dict[str, str] | None = None) -> int:
    """Runs a program on this terminal and returns its exit status; ends it when this command is ended."""
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        return process.wait()
    except BaseException:
        with contextlib.suppress(KeyboardInterrupt):
            process.terminate()
            process.wait(10)
        raise


def _test(options: argparse.Namespace) -> int:
    layout = Layout.from_environment()
    own = comfyui.user_host(layout)
    hosts = [own] if own else [comfyui.pinned_host(layout, version) for version in comfyui.PINS]
    set_up(layout, hosts, [packages.HOST, packages.TEST])
    return checks.run(layout, hosts, options.only or checks.PARTS, run_child)


def _serve(options: argparse.Namespace) -> int:
    layout = Layout.from_environment()
    host = chosen_host(layout, options.host_version)
    # The host's usual port where it is free, so that saved links work.
    port = options.port or (DEFAULT_PAGE_PORT if is_free(DEFAULT_PAGE_PORT) else free_port())
    chosen_port(port)
    if comfyui.user_python() is None:
        if host.pinned and not comfyui.is_present(host):  # Its own list names the page's versions.
            set_up(layout, [host], [packages.HOST])
        set_up(layout, [host], [packages.HOST, packages.page_group(host.path)])
    else:
        set_up(layout, [host], [packages.CLIENT])
    # A lasting base directory, so that workflows and pictures made on the page are there the next time.
    name = f"page-{port}" if port in (options.port, DEFAULT_PAGE_PORT) else None
    with running_host(layout, host, port=port, cpu=options.cpu, page=True, base_name=name) as server:
        say(f"{host} with BudgetFusion: {server.url}")
        say("Templates are under Workflow > Browse Templates > budgetfusion. Ctrl-C ends the server.")
        say(f"Pictures go to {server.base / 'output'}; your models go to {server.base / 'models'}.")
        if not options.no_browser:
            webbrowser.open(server.url)
        while True:
            time.sleep(3600)


def _page(options: argparse.Namespace) -> int:
    """A program of tests/web in Chromium, with the host and the page that it names."""
    layout = Layout.from_environment()
    host = chosen_host(layout, options.host_version)
    chromium = browser.find_chromium()
    if chromium is None:
        raise LaunchError("This command needs Chromium, and none was found.", f"{browser.advice().capitalize()}.")
    set_up(layout, [host], _runtime_groups())
    node, needed = browser.page_tools(layout, host, chromium)
    environment = {**os.environ, **needed}
    environment.setdefault("OMP_NUM_THREADS", str(default_threads()))
    return run_child([str(node.program), str(browser.PAGE_TEST.with_name(options.program))], environment)


def _startup_cost(options: argparse.Namespace) -> int:
    layout = Layout.from_environment()
    host = chosen_host(layout, options.host_version)
    set_up(layout, [host], _runtime_groups())
    return startup_cost.run(layout, host, options.boots, cpu=options.cpu)
