"""One worker of a calibration on many machines: a genuine ComfyUI of its own, and the tasks that it is given.

Ray makes an actor of it on whatever machine has room. What passes between the machines is JSON, errors included.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import BudgetFusionError
from .client import run_graph
from .comfyui import ComfyUI, ServerGone, find_comfyui, running_server

TASK, EVENT = "task", "budgetfusion.task"
"""As in calibration/wire.py, which would import torch into every worker."""
OWN_FOLDERS = ("temp", "user", "output")
"""Servers that share one of these wipe each other's files or wait for each other's database."""

Json = dict[str, Any]


class Worker:
    """Its ComfyUI starts with the first task and ends with it, however it ends."""

    def __init__(self, graph: Mapping[str, Any], node: str, folder: str, base: str, options: Sequence[str]) -> None:
        """graph, node: what is calibrated. folder, base: the leading machine's ComfyUI, taken where this one has the
        same. options: for main.py."""
        self._graph, self._node = graph, node
        self._folder, self._base, self._options = Path(folder), Path(base), tuple(options)
        self._open = contextlib.ExitStack()
        self._url = ""

    def where(self) -> str:
        """The name of this machine."""
        return socket.gethostname()

    async def close(self) -> None:
        """Ends the ComfyUI and removes its folders."""
        self._open.close()

    async def ask(self, task: Json) -> AsyncIterator[Json]:
        """The answers to a task of calibration/wire.py; or {"gone": reason} where this worker is of no use any more,
        and {"error": reason} where every worker would fail."""
        try:
            self._url = self._url or self._start()
            async for answer in self._answers(task):
                yield answer
        except ServerGone as error:
            yield {"gone": str(error)}
        except BudgetFusionError as error:
            yield {"error": str(error)}

    def _start(self) -> str:
        own = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="budgetfusion-worker-")))
        folders = [f"--{name}-directory={_made(own / name)}" for name in OWN_FOLDERS]
        options = ["--database-url=sqlite:///:memory:", *folders, *self._options]
        return self._open.enter_context(running_server(self._comfyui(), options))

    def _comfyui(self) -> ComfyUI:
        there = (self._folder / "main.py").is_file()
        return ComfyUI(self._folder, self._base) if there else find_comfyui()

    async def _answers(self, task: Json) -> AsyncIterator[Json]:
        answers: asyncio.Queue[Json | None] = asyncio.Queue()

        def follow(kind: str, data: Mapping[str, Any]) -> None:
            if kind == EVENT:
                answers.put_nowait(dict(data))

        own = {**task, "id": uuid.uuid4().hex}  # the host answers the same graph from its cache, and sends nothing
        node = self._graph[self._node]
        graph = {**self._graph, self._node: {**node, "inputs": {**node["inputs"], TASK: own}}}
        running = asyncio.create_task(run_graph(self._url, graph, self._node, follow))
        running.add_done_callback(lambda _: answers.put_nowait(None))
        try:
            while (answer := await answers.get()) is not None:
                yield answer
            await running
        finally:
            running.cancel()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
