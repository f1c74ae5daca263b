"""The demo's client against a server that speaks the host's protocol."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from PIL import Image

from research.demo import __main__ as demo
from research.demo.client import Client, Finished, explain_refusal
from research.demo.errors import DemoError

Script = Callable[[web.WebSocketResponse, str], Awaitable[None]]


async def with_host(
    script: Script, use: Callable[[Client], Awaitable[Any]], refusal: dict[str, Any] | None = None
) -> Any:
    """Runs `use` against a server that speaks the host's protocol and plays `script` for each queued graph."""
    sockets: list[web.WebSocketResponse] = []
    background: list[asyncio.Task[None]] = []

    async def ws(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        sockets.append(socket)
        await socket.send_json({"type": "status", "data": {"status": {}}})
        async for _ in socket:
            pass
        return socket

    async def prompt(request: web.Request) -> web.Response:
        if refusal is not None:
            return web.json_response(refusal, status=400)
        background.append(asyncio.ensure_future(script(sockets[0], "id-1")))
        return web.json_response({"prompt_id": "id-1", "node_errors": {}})

    async def view(request: web.Request) -> web.Response:
        if request.query["filename"] != "a.png":
            return web.Response(status=404)
        content = io.BytesIO()
        Image.new("RGB", (8, 8), "green").save(content, "PNG")
        return web.Response(body=content.getvalue())

    app = web.Application()
    app.add_routes([web.get("/ws", ws), web.post("/prompt", prompt), web.get("/view", view)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # pyright: ignore[reportAttributeAccessIssue]
    try:
        async with Client(f"http://127.0.0.1:{port}") as client:
            return await use(client)
    finally:
        await runner.cleanup()


async def say(socket: web.WebSocketResponse, kind: str, prompt_id: str = "id-1", **data: Any) -> None:
    await socket.send_json({"type": kind, "data": {"prompt_id": prompt_id, **data}})


async def renders(socket: web.WebSocketResponse, prompt_id: str) -> None:
    await say(socket, "executing", "another-prompt", node="x")
    await say(socket, "executing", node="5")
    await asyncio.sleep(0.05)
    await say(socket, "executing", node="6")
    await socket.send_bytes(b"a preview")
    await say(socket, "progress", node="6", value=1, max=4)
    await say(socket, "progress", node="6", value=4, max=4)
    await asyncio.sleep(0.15)
    await say(socket, "executed", node="6", output={"receipt": [{"steps": 4}]})
    await say(socket, "execution_success", prompt_id)


def test_a_render_is_followed_timed_and_read() -> None:
    shares: list[tuple[str, float]] = []

    async def use(client: Client) -> Finished:
        return await client.run({}, lambda node, share: shares.append((node, share)))

    done = asyncio.run(with_host(renders, use))
    assert done.ui == {"6": {"receipt": [{"steps": 4}]}}
    assert shares == [("6", 0.25), ("6", 1.0)]
    assert set(done.seconds) == {"5", "6"}
    # No upper bound that a busy machine could break: a node lasts at least as long as the host worked on it.
    assert 0.045 <= done.seconds["5"] < 5 and 0.145 <= done.seconds["6"] < 5


async def fails(socket: web.WebSocketResponse, prompt_id: str) -> None:
    await say(socket, "execution_error", node_type="KSampler", exception_message="out of memory\n")


async def interrupts(socket: web.WebSocketResponse, prompt_id: str) -> None:
    await say(socket, "execution_interrupted")


async def dies(socket: web.WebSocketResponse, prompt_id: str) -> None:
    await socket.close()


@pytest.mark.parametrize(
    ("script", "sentence"),
    [(fails, "The node KSampler stopped: out of memory"), (interrupts, "interrupted"), (dies, "ended in the middle")],
)
def test_what_goes_wrong_in_the_host_is_said(script: Script, sentence: str) -> None:
    async def use(client: Client) -> Finished:
        return await client.run({})

    with pytest.raises(DemoError, match=sentence):
        asyncio.run(with_host(script, use))


def test_a_refused_graph_names_node_and_reason() -> None:
    error = {"message": "Value not in list", "details": "ckpt_name: 'tiny_scenes.safetensors' not in []"}
    body = {
        "error": {"message": "Prompt outputs failed validation"},
        "node_errors": {"1": {"class_type": "CheckpointLoaderSimple", "errors": [error]}},
    }

    async def use(client: Client) -> Finished:
        return await client.run({})

    with pytest.raises(DemoError, match=r"CheckpointLoaderSimple: Value not in list .*tiny_scenes"):
        asyncio.run(with_host(renders, use, refusal=body))
    gone = {"error": {"message": "Node 'BudgetFusion_BudgetPlanner' not found."}, "node_errors": {}}
    assert "The pack did not load" in explain_refusal(gone)
    assert explain_refusal({}) == "it gave no reason."


def test_a_picture_is_fetched_or_missed_loudly() -> None:
    async def use(client: Client) -> Image.Image:
        picture = Image.open(io.BytesIO(await client.image({"filename": "a.png", "subfolder": "", "type": "output"})))
        with pytest.raises(DemoError, match=r"did not hand out b\.png \(status 404\)"):
            await client.image({"filename": "b.png"})
        return picture

    assert asyncio.run(with_host(renders, use)).size == (8, 8)


def test_no_server_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--server", "http://127.0.0.1:9", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: No ComfyUI answers at http://127.0.0.1:9") and said.count("\n") == 1
