"""Queues a graph in a running ComfyUI and follows it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

from .comfyui import ServerError, ServerGone

SILENCE_SECONDS = 1800.0
"""A step of a large model on a CPU takes minutes; half an hour without a word is a hang."""

Follow = Callable[[str, Mapping[str, Any]], None]
"""Called with the kind of each message of the host and its content."""


async def run_graph(url: str, graph: Mapping[str, Any], node: str, follow: Follow) -> dict[str, Any]:
    """What `node` showed in the end. ServerError with the host's own words where it refused or failed, ServerGone where
    it does not answer."""
    url, client = url.rstrip("/"), uuid.uuid4().hex
    try:
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"{url}/ws", params={"clientId": client}, max_msg_size=0, heartbeat=None) as socket,
        ):
            await _check_node(http, url, graph[node]["class_type"])
            prompt = await _queue(http, url, graph, client)
            try:
                return await _followed(socket, prompt, node, follow)
            except BaseException:
                await _cancel(http, url, prompt)
                raise
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise _no_answer(url, error) from error


async def definitions(url: str) -> dict[str, Any]:
    """Every node of a running ComfyUI, as its /object_info answers. ServerGone where none answers."""
    try:
        async with aiohttp.ClientSession() as http, http.get(f"{url.rstrip('/')}/object_info") as answer:
            return await answer.json()
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise _no_answer(url, error) from error


def _no_answer(url: str, error: Exception) -> ServerGone:
    return ServerGone(f"No ComfyUI answers at {url} ({error}). Start it, or leave --server out.")


async def _check_node(http: aiohttp.ClientSession, url: str, kind: str) -> None:
    async with http.get(f"{url}/object_info/{kind}") as answer:
        if answer.status != 200 or kind not in await answer.json():
            raise ServerError(f"The ComfyUI at {url} has no node {kind}: install this pack there and start it again.")


async def _queue(http: aiohttp.ClientSession, url: str, graph: Mapping[str, Any], client: str) -> str:
    async with http.post(f"{url}/prompt", json={"prompt": graph, "client_id": client}) as answer:
        body = await answer.json(content_type=None)
    if not isinstance(body, dict) or body.get("node_errors") or "prompt_id" not in body:
        raise ServerError(f"ComfyUI refused the graph: {_refusal(body)}")
    return str(body["prompt_id"])


def _refusal(body: Any) -> str:
    if not isinstance(body, dict):
        return "it gave no reason."
    error = body.get("error")
    parts = [str(error.get("message", ""))] if isinstance(error, dict) else []
    for node in (body.get("node_errors") or {}).values():
        parts += [f"{node.get('class_type')}: {one.get('message')} ({one.get('details')})" for one in node["errors"]]
    return " ".join(part for part in parts if part) or "it gave no reason."


async def _followed(socket: Any, prompt: str, node: str, follow: Follow) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    while True:
        message = await socket.receive(timeout=SILENCE_SECONDS)
        if message.type == aiohttp.WSMsgType.BINARY:
            continue
        if message.type != aiohttp.WSMsgType.TEXT:
            raise ServerGone("ComfyUI ended in the middle. What was measured is kept; run the command again.")
        content = json.loads(message.data)
        kind, data = str(content.get("type")), content.get("data") or {}
        if data.get("prompt_id", prompt) != prompt:
            continue
        follow(kind, data)
        if kind == "executed" and str(data.get("node")) == node:
            shown = data.get("output") or {}
        elif kind == "execution_error":
            raise ServerError(str(data.get("exception_message", "")).strip() or "The graph failed; the log says why.")
        elif kind == "execution_interrupted":
            raise ServerError("It was cancelled. What was measured is kept; run the command again to go on.")
        elif kind == "execution_success":
            return shown


async def _cancel(http: aiohttp.ClientSession, url: str, prompt: str) -> None:
    """Takes our graph out of the queue and stops it if it runs; other people's graphs go on."""
    try:
        async with http.post(f"{url}/queue", json={"delete": [prompt]}):
            pass
        async with http.post(f"{url}/interrupt", json={"prompt_id": prompt}):
            pass
    except (aiohttp.ClientError, OSError):
        return
