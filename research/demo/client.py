"""A client of a genuine ComfyUI: queue a graph, follow it over the websocket, fetch what it made."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import aiohttp

from .errors import DemoError
from .graph import Graph

SILENCE_SECONDS = 600.0
"""A host that says nothing for this long hangs; it reports each sampling step."""

Progress = Callable[[str, float], None]
"""Called with a node id and the share of its work that is done."""


@dataclass(frozen=True)
class Finished:
    """What a graph gave."""

    ui: dict[str, dict[str, list[Any]]]
    """Node id -> what the node shows."""
    seconds: dict[str, float]
    """Node id -> from its start to the next node's, as the host announced them; absent for cached nodes."""


@dataclass
class _Clock:
    """Seconds of each node, from the host's `executing` messages."""

    seconds: dict[str, float] = field(default_factory=dict)
    _node: str | None = None
    _since: float = 0.0

    def starts(self, node: str | None) -> None:
        now = time.perf_counter()
        if self._node is not None:
            self.seconds[self._node] = self.seconds.get(self._node, 0.0) + now - self._since
        self._node, self._since = node, now


class Client:
    """`async with Client(url) as client: await client.run(graph)`; one graph at a time."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._id = uuid.uuid4().hex
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Client:
        try:
            # trust_env is off by default: the host is local, so no proxy is asked.
            self._http = await self._stack.enter_async_context(aiohttp.ClientSession())
            self._socket = await self._stack.enter_async_context(
                self._http.ws_connect(f"{self.url}/ws", params={"clientId": self._id}, max_msg_size=0, heartbeat=None)
            )
        except aiohttp.ClientError as error:
            await self._stack.aclose()
            raise DemoError(
                f"No ComfyUI answers at {self.url} ({error}). Start one, or use `python run.py demo`, which does."
            ) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def host_version(self) -> str:
        async with self._http.get(f"{self.url}/system_stats") as answer:
            return str((await answer.json())["system"].get("comfyui_version", "unknown"))

    async def run(self, graph: Graph, on_progress: Progress = lambda node, share: None) -> Finished:
        """Queues the graph and waits for its end. Raises DemoError with the node's own words when it fails."""
        prompt_id = await self._queue(graph)
        clock = _Clock()
        ui: dict[str, dict[str, list[Any]]] = {}
        while True:
            kind, data = await self._next_message()
            if data.get("prompt_id") != prompt_id:
                continue
            if kind == "executing":
                clock.starts(data["node"])
            elif kind == "progress":
                on_progress(str(data["node"]), data["value"] / max(1, data["max"]))
            elif kind == "executed" and data.get("output"):
                ui[str(data["node"])] = data["output"]
            elif kind == "execution_error":
                raise DemoError(
                    f"The node {data.get('node_type')} stopped: {str(data.get('exception_message', '')).strip()}"
                )
            elif kind == "execution_interrupted":
                raise DemoError("The render was interrupted from outside. Run the demo again.")
            elif kind == "execution_success":
                clock.starts(None)
                return Finished(ui, clock.seconds)

    async def _queue(self, graph: Graph) -> str:
        try:
            async with self._http.post(f"{self.url}/prompt", json={"prompt": graph, "client_id": self._id}) as answer:
                body = await answer.json()
        except (aiohttp.ClientError, ValueError) as error:
            raise DemoError(f"ComfyUI did not take the graph ({error}).") from error
        if body.get("node_errors") or "prompt_id" not in body:
            raise DemoError(f"ComfyUI refused the graph: {explain_refusal(body)}")
        return str(body["prompt_id"])

    async def _next_message(self) -> tuple[str, dict[str, Any]]:
        """The next text message; previews arrive as binary ones and are passed over."""
        while True:
            try:
                message = await self._socket.receive(timeout=SILENCE_SECONDS)
            except asyncio.TimeoutError as error:
                raise DemoError(f"ComfyUI said nothing for {SILENCE_SECONDS:.0f} s. Look at its log.") from error
            if message.type == aiohttp.WSMsgType.TEXT:
                content = json.loads(message.data)
                return str(content["type"]), content.get("data") or {}
            if message.type != aiohttp.WSMsgType.BINARY:
                raise DemoError("ComfyUI ended in the middle of a render. Its log says why.")

    async def image(self, saved: dict[str, str]) -> bytes:
        """The file of an entry of SaveImage's `ui`, as PNG."""
        parameters = {key: saved.get(key, "") for key in ("filename", "subfolder", "type")}
        async with self._http.get(f"{self.url}/view", params=parameters) as answer:
            if answer.status != 200:
                raise DemoError(f"ComfyUI did not hand out {saved.get('filename')} (status {answer.status}).")
            return await answer.read()


def explain_refusal(body: dict[str, Any]) -> str:
    """The host's answer to a graph it refuses -> one sentence."""
    error = body.get("error")
    parts = [str(error.get("message", "")).strip()] if isinstance(error, dict) else []
    for node in (body.get("node_errors") or {}).values():
        for one in node.get("errors", ()):
            parts.append(f"{node.get('class_type')}: {one.get('message')} ({one.get('details')})")
    if any("does not exist" in part or "not found" in part for part in parts):
        parts.append("The pack did not load; the host's log says why.")
    return " ".join(part for part in parts if part) or "it gave no reason."
