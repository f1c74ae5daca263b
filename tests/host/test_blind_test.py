"""Blind Test in the genuine host: pictures as its previews, pairs asked again, and the page's answers over HTTP."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from research.in_process_host import HostRunError

NODE = "BudgetFusion_BlindTest"


def batch(count: int, seed: int, width: int = 64) -> torch.Tensor:
    return torch.rand(count, 64, width, 3, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def blind(pack: Any) -> Iterator[Any]:
    """The session module, with a store of its own for each test."""
    module = pack("calibration.host_blind_test")
    module.session.cache_clear()
    yield module
    module.store_path().unlink(missing_ok=True)
    module.session.cache_clear()


def asked(bench: Any, make_node: Any, to: Any, planned: Any, full: Any, plan: bool = False, **more: Any) -> Any:
    given = {
        "7": make_node("GivenIMAGE", key=bench.value(planned)),
        "8": make_node("GivenIMAGE", key=bench.value(full)),
    }
    if "reference" in more:
        given["9"] = make_node("GivenIMAGE", key=bench.value(more.pop("reference")))
        more["reference"] = to("9")
    graph = {**bench.base(), "5": bench.planner(), **given} if plan else given
    if plan:
        more["plan"] = to("5")
    run = bench.run({**graph, "10": make_node(NODE, planned=to("7"), full=to("8"), **more)})
    (sent,) = run.ui["10"]["blind_test"]
    json.dumps(sent, allow_nan=False)
    return sent


def pixels(session: Any, file: Any) -> np.ndarray:
    assert file["type"] == "temp"
    image = Image.open(session.base_dir / "temp" / file["subfolder"] / file["filename"])
    assert not getattr(image, "text", {}), "the graph, which holds the node's inputs, is not inside"
    return np.asarray(image)


def test_both_pictures_are_shown_and_a_choice_is_kept_as_what_it_was(
    session: Any, bench: Any, make_node: Any, to: Any, blind: Any
) -> None:
    planned, full, reference = batch(3, 0), batch(3, 1), batch(1, 2)
    sent = asked(bench, make_node, to, planned, full, plan=True, reference=reference, quality=0.6)
    assert [pair["question"] for pair in sent["pairs"]] == ["nearer"] * 3
    chosen = []
    for i, pair in enumerate(sent["pairs"]):
        shown = [pixels(session, pair[side]) for side in ("left", "right")]
        ours = [(x[i].numpy() * 255).astype(np.uint8) for x in (planned, full)]
        order = [next(j for j, own in enumerate(ours) if np.array_equal(own, picture)) for picture in shown]
        assert sorted(order) == [0, 1]
        assert np.array_equal(pixels(session, pair["reference"]), (reference[0].numpy() * 255).astype(np.uint8))
        chosen.append(order[0] == 1)
        status, reply = blind.answer(json.dumps({"pair": pair["id"], "choice": "left"}).encode())
        assert (status, reply["state"]) == (200, "kept")
    rows = list(csv.DictReader(io.StringIO(blind.as_csv())))
    assert [row["chosen"] == "full" for row in rows] == chosen
    for row in rows:
        assert (row["question"], row["quality"]) == ("nearer", "0.8"), "the plan's quality, not the widget's"
        assert "karras" in row["label"]
        assert json.loads(row["facts"])["max_steps"] == 50


def test_a_second_queue_asks_what_was_not_judged(bench: Any, make_node: Any, to: Any, blind: Any) -> None:
    planned, full = batch(2, 3), batch(2, 4)
    first, second = asked(bench, make_node, to, planned, full)["pairs"]
    blind.answer(json.dumps({"pair": first["id"], "choice": "same"}).encode())
    again = asked(bench, make_node, to, planned, full)
    assert [pair["key"] for pair in again["pairs"]] == [second["key"]]
    assert again["pairs"][0]["id"] != second["id"]
    assert "blind_before" in [one["code"] for one in again["messages"]]


def test_the_very_same_graph_is_asked_again(bench: Any, make_node: Any, to: Any, blind: Any) -> None:
    """Although nothing in it changed: the host's cache must not answer for the node."""
    given = {str(i): make_node("GivenIMAGE", key=bench.value(batch(1, 20 + i))) for i in (7, 8)}
    graph = {**given, "10": make_node(NODE, planned=to("7"), full=to("8"))}
    first, second = (bench.run(graph).ui["10"]["blind_test"][0] for _ in range(2))
    assert first["run"] != second["run"]
    assert first["pairs"][0]["key"] == second["pairs"][0]["key"]
    assert blind.answer(json.dumps({"pair": second["pairs"][0]["id"], "choice": "left"}).encode())[1]["state"] == "kept"
    assert blind.answer(json.dumps({"pair": first["pairs"][0]["id"], "choice": "left"}).encode())[1]["state"] == "once"


def test_equal_pictures_and_pictures_that_do_not_fit(bench: Any, make_node: Any, to: Any, blind: Any) -> None:
    del blind
    sent = asked(bench, make_node, to, batch(2, 5), batch(2, 5))
    assert sent["pairs"] == []
    assert sent["messages"][0]["code"] == "blind_equal"
    for other in (batch(3, 6), batch(2, 6, width=72)):
        with pytest.raises(HostRunError, match=r"planned (is|holds)"):
            asked(bench, make_node, to, batch(2, 5), other)


def test_a_store_that_cannot_be_made_stops_no_graph(bench: Any, make_node: Any, to: Any, blind: Any) -> None:
    folder = blind.store_path().parent
    kept = folder.with_name("kept aside")
    if folder.exists():
        folder.rename(kept)
    try:
        folder.write_text("in the way")
        sent = asked(bench, make_node, to, batch(1, 7), batch(1, 8))
        assert sent["pairs"] == []
        assert [one["code"] for one in sent["messages"]] == ["blind_no_store"]
    finally:
        folder.unlink()
        if kept.exists():
            kept.rename(folder)


def test_the_routes_take_what_the_page_sends_and_nothing_else(
    session: Any, bench: Any, make_node: Any, to: Any, blind: Any, pack: Any
) -> None:
    from aiohttp import web
    from aiohttp.test_utils import TestClient, TestServer

    del blind
    routes = pack("nodes.routes")
    own = [route for route in session.server.routes if getattr(route, "path", "").startswith(routes.ANSWER)]
    assert {(route.method, route.path) for route in own} == {("POST", routes.ANSWER), ("GET", routes.CSV)}
    routes.register_routes()
    assert len([r for r in session.server.routes if getattr(r, "path", "") == routes.ANSWER]) == 1
    (pair,) = asked(bench, make_node, to, batch(1, 9), batch(1, 10), label="=1+1")["pairs"]

    async def talk() -> list[tuple[int, str]]:
        app = web.Application()
        app.add_routes(own)
        good = {"pair": pair["id"], "choice": "right"}
        bodies: list[Any] = [good, {**good, "pair": "../" * 10}, {**good, "choice": "full"}, {**good, "path": "/"}, []]
        async with TestClient(TestServer(app)) as client:
            answers = [await client.post(routes.ANSWER, json=body) for body in bodies]
            answers.append(await client.post(routes.ANSWER, data=json.dumps(good)))
            answers.append(await client.post(routes.ANSWER, json={**good, "pair": "a" * 2000}))
            answers.append(await client.get(routes.CSV))
            return [(answer.status, await answer.text()) for answer in answers]

    statuses, texts = zip(*session.wait(talk()), strict=True)
    assert statuses == (200, 400, 400, 400, 400, 415, 413, 200)
    assert json.loads(texts[0])["state"] == "kept"
    assert "'=1+1" in texts[-1]
    assert len(texts[-1].splitlines()) == 2
