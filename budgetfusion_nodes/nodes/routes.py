"""What the page may ask the host for beside the nodes' results. Nothing heavy is imported before it is asked."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

ANSWER = "/budgetfusion/blind_test"
CSV = "/budgetfusion/blind_test.csv"
MOST_BYTES = 1024
"""Of an answer."""


def register_routes() -> None:
    """Adds them to the host's server. Safe to call twice: of two copies of the pack the first one answers."""
    server = getattr(importlib.import_module("server").PromptServer, "instance", None)
    if server is None or any(getattr(route, "path", None) == ANSWER for route in server.routes):
        return
    server.routes.post(ANSWER)(answer_blind_test)
    server.routes.get(CSV)(export_blind_test)


async def answer_blind_test(request: Any) -> Any:
    """Keeps one choice. In a thread: another process may hold the store for a while."""
    from aiohttp import web

    from ..calibration.host_blind_test import answer

    if request.content_type != "application/json":
        return web.json_response({"error": "expected application/json"}, status=415)
    if request.content_length is None or request.content_length > MOST_BYTES:
        return web.json_response({"error": f"expected at most {MOST_BYTES} bytes"}, status=413)
    status, content = await asyncio.to_thread(answer, await request.read())
    return web.json_response(content, status=status)


async def export_blind_test(request: Any) -> Any:
    """All choices as a CSV file."""
    from aiohttp import web

    from ..calibration.host_blind_test import as_csv
    from ..core.errors import BudgetFusionError

    del request
    try:
        text = await asyncio.to_thread(as_csv)
    except BudgetFusionError as error:
        return web.Response(text=str(error), status=503)
    headers = {"Content-Disposition": 'attachment; filename="budgetfusion_blind_test.csv"'}
    return web.Response(text=text, content_type="text/csv", charset="utf-8", headers=headers)
