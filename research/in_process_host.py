"""Starts a genuine ComfyUI inside this process, for tests, studies and benchmarks.

No mock: the host's own loader, validator, executor, cache and sampler run; only the web server's socket is replaced
by a list of the messages it would have sent. One host a process (ComfyUI keeps its state in modules).

    session = start_host(".run/host/0.30.0", "some/empty/folder", custom_nodes=[pack_root])
    run = session.execute(api_prompt)          # run.outputs["7"][0], run.ui["7"]["text"]
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import importlib
import inspect
import logging
import os
import sys
import uuid
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)

PACK_ROOT = Path(__file__).resolve().parents[1]
"""The folder that a user clones into `custom_nodes`."""

DEFAULT_EXTRAS = ("nodes_custom_sampler.py", "nodes_preview_any.py", "nodes_mask.py", "nodes_model_advanced.py")
"""Core extra nodes that the pack's graphs and tests use; all of them would cost seconds and packages."""

_running: list[HostSession] = []


class HostStartError(RuntimeError):
    """The folder is no ComfyUI, or a host already runs in this process."""


class HostRunError(RuntimeError):
    """A node of an executed graph failed. Carries what the page would show."""

    def __init__(self, node_id: str, node_type: str, exception_type: str, message: str, traceback: str) -> None:
        super().__init__(f"node {node_id} ({node_type}): {exception_type}: {message}")
        self.node_id = node_id
        self.node_type = node_type
        self.exception_type = exception_type
        self.message = message
        self.traceback = traceback


class HostValidationError(RuntimeError):
    """The host's `validate_prompt` refused the graph, or a branch of it. `node_errors` is the host's own report."""

    def __init__(self, error: Any, node_errors: Mapping[str, Any]) -> None:
        super().__init__(f"{error}; {dict(node_errors)}")
        self.error = error
        self.node_errors = dict(node_errors)


class HostInterrupted(RuntimeError):
    """The run was interrupted, as with the page's cancel button."""


@dataclass(frozen=True)
class HostRun:
    """What one executed graph gave."""

    outputs: dict[str, list[Any]]
    """Node id -> its outputs in order. An output that is a list to the host stays a list; others are the bare value."""
    ui: dict[str, dict[str, Any]]
    """Node id -> the `ui` dict that the page receives."""
    messages: list[tuple[str, Any]]
    """(event, data) pairs that the server would have sent."""
    cached: tuple[str, ...]
    """Node ids that were not executed, because the host had their results."""


@dataclass
class HostSession:
    """A running host. Create with `start_host`."""

    version: str
    host_dir: Path
    base_dir: Path
    loop: asyncio.AbstractEventLoop
    server: Any
    executor: Any
    messages: list[tuple[str, Any]] = field(default_factory=list)

    # -- nodes -------------------------------------------------------------------------------------------------
    @property
    def node_classes(self) -> dict[str, Any]:
        """The host's `NODE_CLASS_MAPPINGS`."""
        return importlib.import_module("nodes").NODE_CLASS_MAPPINGS

    def load_pack(self, folder: str | os.PathLike[str]) -> ModuleType:
        """Loads one custom node folder through the host's `load_custom_node`; returns the module it became."""
        nodes = importlib.import_module("nodes")
        path = os.fspath(folder)
        if not self.wait(nodes.load_custom_node(path, set(), module_parent="custom_nodes")):
            raise HostStartError(f"ComfyUI could not load the custom node folder {path}; its log says why.")
        return sys.modules[path.replace(".", "_x_")]

    def load_external(self) -> None:
        """The host's `init_external_custom_nodes`: everything in `<base_dir>/custom_nodes`."""
        self.wait(importlib.import_module("nodes").init_external_custom_nodes())

    def object_info(self, *names: str) -> dict[str, Any]:
        """What `/object_info` answers, computed by the server's own code, for `names` (default: every node)."""
        node_info = _node_info_function(self.server)
        return {name: node_info(name) for name in (names or tuple(self.node_classes))}

    # -- running -----------------------------------------------------------------------------------------------
    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Runs a coroutine of the host on the host's loop."""
        return self.loop.run_until_complete(coroutine)

    def validate(self, prompt: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
        """(output node ids that can run, node errors). Raises `HostValidationError` if nothing can run."""
        execution = importlib.import_module("execution")
        valid, error, outputs, node_errors = self.wait(execution.validate_prompt(str(uuid.uuid4()), prompt, None))
        if not valid:
            raise HostValidationError(error, node_errors)
        return list(outputs), dict(node_errors)

    def execute(self, prompt: Mapping[str, Any], *, allow_node_errors: bool = False) -> HostRun:
        """Runs an API-format graph. The host's cache stays warm between runs, as on the page.

        Raises `HostValidationError`, `HostRunError` or `HostInterrupted`. A branch that the host's validator
        drops is an error too, unless `allow_node_errors`.
        """
        prompt = copy.deepcopy(dict(prompt))
        output_ids, node_errors = self.validate(prompt)
        if node_errors and not allow_node_errors:
            raise HostValidationError("a branch of the graph is not valid", node_errors)
        self.messages.clear()
        prompt_id = str(uuid.uuid4())
        self.server.last_prompt_id = prompt_id
        self.wait(self.executor.execute_async(prompt, prompt_id, {"client_id": "budgetfusion"}, output_ids))
        self._raise_failure()
        ui = dict(self.executor.history_result["outputs"])
        return HostRun(
            outputs={node_id: self._outputs(node_id, entry["class_type"]) for node_id, entry in prompt.items()},
            ui=ui,
            messages=list(self.messages),
            cached=tuple(
                n for event, data in self.executor.status_messages if event == "execution_cached" for n in data["nodes"]
            ),
        )

    def _raise_failure(self) -> None:
        for event, data in self.executor.status_messages:
            if event == "execution_error":
                raise HostRunError(
                    data["node_id"],
                    data["node_type"],
                    data["exception_type"],
                    data["exception_message"],
                    "".join(data["traceback"]),
                )
            if event == "execution_interrupted":
                raise HostInterrupted(f"interrupted at node {data['node_id']} ({data['node_type']})")

    def _outputs(self, node_id: str, class_type: str) -> list[Any]:
        entry = self.executor.caches.outputs.get(node_id)
        if inspect.isawaitable(entry):
            entry = self.wait(_awaited(entry))
        if entry is None or entry.outputs is None:
            return []
        is_list = getattr(self.node_classes[class_type], "OUTPUT_IS_LIST", None) or [False] * len(entry.outputs)
        return [values if listed else _only(values) for values, listed in zip(entry.outputs, is_list, strict=True)]

    def clear_cache(self) -> None:
        """Forgets every cached result, so that the next run executes all its nodes."""
        self.executor.reset()


def import_host(host_dir: str | os.PathLike[str], *, cpu: bool = True) -> Path:
    """Makes `import comfy` work in this process without starting anything: for training with the host's classes.

    PyTorch's own attention is chosen, because the host's default for CPUs is made for little memory. Returns the
    folder. Does nothing but check the folder if a host already runs here.
    """
    host = _checked_host(host_dir)
    if not _running:
        if str(host) not in sys.path:
            sys.path.insert(0, str(host))
        args = importlib.import_module("comfy.cli_args").args
        args.cpu = cpu
        args.use_pytorch_cross_attention = True
    return host


def start_host(
    host_dir: str | os.PathLike[str],
    base_dir: str | os.PathLike[str],
    custom_nodes: Iterable[str | os.PathLike[str]] = (),
    *,
    extras: Sequence[str] | None = DEFAULT_EXTRAS,
    cpu: bool = True,
    fp32_text_encoder: bool = False,
) -> HostSession:
    """Imports the ComfyUI at `host_dir` into this process and makes it ready to execute graphs.

    `base_dir` takes the place of the host's own folder for models, custom_nodes, input, output, temp and user, so
    nothing is written into the host. `custom_nodes` are folders that its loader loads. `extras` names files of
    `comfy_extras`; None loads all. `cpu=False` lets the host pick its device. A second call in a process
    returns the running session if it asks for the same host, and raises otherwise.
    """
    host, base = _checked_host(host_dir), Path(base_dir).resolve()
    if _running:
        if _running[0].host_dir != host:
            raise HostStartError(
                f"This process already runs the ComfyUI at {_running[0].host_dir}; one host a process."
            )
        return _running[0]
    _make_base(base)
    sys.path.insert(0, str(host))
    _set_arguments(base, cpu=cpu, fp32_text_encoder=fp32_text_encoder)
    importlib.import_module("utils.extra_config")  # first: it claims the name `utils` for the host's package
    folder_paths = importlib.import_module("folder_paths")
    folder_paths.set_user_directory(str(base / "user"))
    execution, server, nodes = (importlib.import_module(name) for name in ("execution", "server", "nodes"))
    loop = asyncio.new_event_loop()
    prompt_server = server.PromptServer(loop)
    session = HostSession(_version(), host, base, loop, prompt_server, _executor(execution, prompt_server))
    prompt_server.client_id = "budgetfusion"
    prompt_server.send_sync = lambda event, data, sid=None: session.messages.append((event, data))
    _hook_progress(prompt_server)
    session.wait(nodes.init_public_apis())
    if extras is None:
        session.wait(nodes.init_builtin_extra_nodes())
    for name in extras or ():
        if (host / "comfy_extras" / name).is_file():  # a few of them are younger than the oldest host
            session.wait(nodes.load_custom_node(str(host / "comfy_extras" / name), module_parent="comfy_extras"))
    for folder in custom_nodes:
        session.load_pack(folder)
    _running.append(session)
    return session


@contextlib.contextmanager
def interrupted_after(steps: int) -> Iterator[list[int]]:
    """Inside the block, the host is interrupted after `steps` steps or progress reports, as by the page's cancel
    button. A bar of the pack reports so many times a second and not each step."""
    utils = importlib.import_module("comfy.utils")
    management = importlib.import_module("comfy.model_management")
    previous, seen = utils.PROGRESS_BAR_HOOK, []

    def hook(value: int, total: int, preview: Any, **kwargs: Any) -> None:
        seen.append(value)
        if max(len(seen), value) >= steps:
            management.interrupt_current_processing()
        previous(value, total, preview, **kwargs)

    utils.set_progress_bar_global_hook(hook)
    try:
        yield seen
    finally:
        utils.set_progress_bar_global_hook(previous)
        management.interrupt_current_processing(False)


def _checked_host(host_dir: str | os.PathLike[str]) -> Path:
    host = Path(host_dir).resolve()
    if not (host / "comfy" / "samplers.py").is_file() or not (host / "nodes.py").is_file():
        raise HostStartError(f"{host} is no ComfyUI folder: it has no nodes.py and comfy/samplers.py.")
    return host


def _make_base(base: Path) -> None:
    for name in ("custom_nodes", "input", "output", "temp", "user", "models/checkpoints", "web"):
        (base / name).mkdir(parents=True, exist_ok=True)


def _set_arguments(base: Path, *, cpu: bool, fp32_text_encoder: bool) -> None:
    args = importlib.import_module("comfy.cli_args").args  # the command line is not parsed in this mode
    args.cpu = cpu
    args.base_directory = str(base)
    args.disable_api_nodes = True
    args.database_url = "sqlite:///:memory:"
    args.front_end_root = str(base / "web")  # no page is served, so the front-end package is not needed
    args.fp32_text_enc = fp32_text_encoder


def _version() -> str:
    return importlib.import_module("comfyui_version").__version__


def _executor(execution: ModuleType, server: Any) -> Any:
    lru = execution.CacheType.LRU
    if "cache_args" in inspect.signature(execution.PromptExecutor.__init__).parameters:
        arguments = {"lru": 100, "ram": 2.0, "ram_inactive": 16.0}
        return execution.PromptExecutor(server, cache_type=lru, cache_args=arguments)
    return execution.PromptExecutor(server, cache_type=lru, cache_size=100)


def _hook_progress(server: Any) -> None:
    """Does what `main.hijack_progress` does (main.py cannot be imported without starting a server)."""
    utils = importlib.import_module("comfy.utils")
    management = importlib.import_module("comfy.model_management")
    context = importlib.import_module("comfy_execution.utils").get_executing_context
    progress_state = importlib.import_module("comfy_execution.progress").get_progress_state

    def hook(value: int, total: int, preview: Any, prompt_id: str | None = None, node_id: str | None = None) -> None:
        current = context()
        if current is not None:
            prompt_id, node_id = prompt_id or current.prompt_id, node_id or current.node_id
        management.throw_exception_if_processing_interrupted()
        if node_id is None:  # a call outside a graph, for instance a study that calls the sampler itself
            return
        progress_state().update_progress(node_id, value, total, preview)
        server.send_sync("progress", {"value": value, "max": total, "prompt_id": prompt_id, "node": node_id})

    utils.set_progress_bar_global_hook(hook)


def _node_info_function(server: Any) -> Any:
    """What the server builds `/object_info` with: a function inside `add_routes`, taken from the route's closure."""
    if not getattr(server, "_budgetfusion_routes", False):
        server.add_routes()
        server._budgetfusion_routes = True
    for route in server.routes:
        if getattr(route, "path", None) == "/object_info/{node_class}":
            return inspect.getclosurevars(route.handler).nonlocals["node_info"]
    raise HostStartError("This ComfyUI has no /object_info route.")


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def _only(values: Any) -> Any:
    return values[0] if isinstance(values, list) and len(values) == 1 else values
