"""One task of a calibration that is led elsewhere, answered by the Calibrate node of a worker's host.

The node does it in place of a job of its own: it keeps nothing, opens no store and makes no planner. Every answer is
sent as it comes, a count before the next one is rendered.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..core.errors import InputError
from ..core.messages import message
from ..core.schedule import NESTED
from ..host.measuring import offloaded
from .host_job import Teller, along, prepare
from .host_renderer import Graph
from .leading import Asked
from .wire import DESCRIBE, ENCODE, EVENT, TASK, Described, Json, encoded_to_json, event_to_json, work_from_json


def task_of(hidden: Any) -> Mapping[str, Any] | None:
    """The task that the API graph gives to the node that holds `hidden`; None where it is an artist's own."""
    prompt = getattr(hidden, "prompt", None) or {}
    node = prompt.get(str(getattr(hidden, "unique_id", None)), {})
    return node.get("inputs", {}).get(TASK)


def answer_task(task: Mapping[str, Any], graph: Graph, asked: Asked, clip_vision: Any) -> None:
    """Does the task and sends its answers to whoever queued the graph."""
    server = importlib.import_module("server").PromptServer.instance
    for answer in _answers(task, graph, asked, clip_vision):
        server.send_sync(EVENT, answer, server.client_id)


def _answers(task: Mapping[str, Any], graph: Graph, asked: Asked, clip_vision: Any) -> Iterator[Json]:
    if asked.schedule == NESTED:
        raise InputError(message("calibrate_task_search"))
    ready = along(prepare(graph, asked, clip_vision, Teller(None).model_for), asked.schedule)
    executor, asked = ready.executor, replace(asked, spec=ready.spec, name=ready.name)
    if task["kind"] == DESCRIBE:
        yield Described(executor.subject, executor.backends, asked).to_json()
    elif task["kind"] == ENCODE:
        yield encoded_to_json(executor.encode(task["text"]))
    else:
        with offloaded(ready.renderer.backends):
            for _, event in executor.run([work_from_json(task)]):
                yield event_to_json(event)
