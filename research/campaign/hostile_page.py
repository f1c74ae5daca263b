"""Part `hostile_page`: a web page that asks the pack's routes for what it likes, and workflows that hold anything.

A genuine ComfyUI answers. Audit events tell what was read, written and started meanwhile. Every file of the page is
searched for ways to turn a text into markup: it shows texts by `textContent` alone.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.in_process_host import HostRunError, HostSession, HostValidationError
from research.options import ROOT, WEIGHTS

from .in_host import node, run_in_host
from .mutations import ESCAPES, MARKUP, NASTY
from .part import Finding, Part, Work
from .watch import Watch

ROUTES = ("/budgetfusion/blind_test", "/budgetfusion/blind_test.csv")
REFUSED = {400, 403, 404, 405, 411, 413, 415}
FORGING = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|srcdoc|\beval\(|new Function|javascript:"
    r"|createContextualFragment|DOMParser|setHTMLUnsafe|\.setAttribute\(\s*[\"']on|dialog\.show\("
)
"""Ways of a page to make markup or code of a text."""


def run(work: Work) -> Sequence[Finding]:
    """Asks routes, runs workflows, searches the page's files."""
    return [*run_in_host(__name__, work), page_files()]


def inside(session: HostSession, work: Work) -> Sequence[Finding]:
    """The first two, in the process of the host."""
    secret = work.folder / "secret"
    secret.mkdir()
    planner = (WEIGHTS / "planners" / "tiny_scenes_euler_nested.safetensors").read_bytes()
    (secret / "planner.safetensors").write_bytes(planner)
    (secret / "prompts.txt").write_text("a secret prompt\n")
    return [_routes(session, work, secret), _workflows(session, work, secret)]


# ------------------------------------------------------------------------------------------------------------ routes


def _routes(session: HostSession, work: Work, secret: Path) -> Finding:
    session.object_info("KSampler")  # builds the server's routes
    with Watch() as watch:
        statuses = session.wait(_ask(session, work))
    wrong = {status: n for status, n in statuses.items() if status not in REFUSED and status != 200}
    problems = [*watch.below(secret), *watch.beside((session.base_dir,)), *sorted(watch.ran)]
    count = sum(statuses.values())
    crossed = statuses.get(403, 0)
    what = (
        f"{count} requests of a hostile page: {count - statuses[200]} refused ({crossed} of another origin), "
        f"{sum(wrong.values())} with another status; {len(problems)} accesses outside of the store"
    )
    figures = {**{f"status {status}": n for status, n in sorted(statuses.items())}, "bad": problems}
    return Finding("confined", what, not wrong and not problems and crossed > 0, figures)


async def _ask(session: HostSession, work: Work) -> Counter[int]:
    from aiohttp import ClientSession
    from aiohttp.test_utils import TestServer

    rng, statuses = random.Random(work.seed), Counter[int]()
    async with TestServer(session.server.app) as server, ClientSession() as client:
        for number in range(work.count(quick=60, long=3000)):
            method, path, headers, body = _request(rng, number)
            async with client.request(method, server.make_url(path), headers=headers, data=body) as answer:
                content = await answer.read()
                statuses[answer.status] += 1
                if "script" in answer.headers.get("Content-Type", "") or MARKUP.encode() in content:
                    statuses[599] += 1  # what was sent comes back as something to run
    return statuses


def _request(rng: random.Random, number: int) -> tuple[str, str, dict[str, str], Any]:
    pair, choice = rng.choice(("0" * 32, MARKUP, "../" * 9, 7, None)), rng.choice(("left", "same", "up", [], {}))
    bodies: tuple[bytes, ...] = (
        json.dumps({"pair": pair, "choice": choice}).encode(),
        json.dumps({"pair": "0" * 32, "choice": "left", "path": "/etc/passwd"}).encode(),
        json.dumps(rng.choice(NASTY[:-6])).encode("utf-8", "surrogatepass"),
        rng.randbytes(rng.choice((0, 1, 100, 1024))),
        b"[" * 1000,
        b"9" * 1000,
        b"{" + b'"pair":1,' * 100,
        rng.randbytes(200_000),
    )
    headers = {"Content-Type": rng.choice(("application/json",) * 4 + ("text/plain", "multipart/form-data", "x/y"))}
    if number % 4 == 0:
        headers |= {"Origin": rng.choice(("http://evil.example", "null", "https://127.0.0.1.evil.example"))}
    if number % 7 == 0:
        headers |= {"Host": "127.0.0.1:8188", "Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    method = rng.choice(("POST",) * 5 + ("GET", "PUT", "DELETE", "PATCH"))
    suffix = rng.choice(("", "", "", "?file=/etc/passwd", "/../../etc/passwd", "%2f..%2f..%2fx", "?" + "a" * 2000))
    return method, rng.choice(ROUTES) + suffix, headers, rng.choice(bodies)


# --------------------------------------------------------------------------------------------------------- workflows


def _workflows(session: HostSession, work: Work, secret: Path) -> Finding:
    rng, ends, problems = random.Random(work.seed), Counter[str](), []
    allowed = (session.base_dir, work.folder / "base")
    count = work.count(quick=8, long=600)
    for _ in range(count):
        graph = _graph(session, rng, secret)
        with Watch() as watch:
            end = _run(session, graph)
        ends[end.partition(":")[0]] += 1
        found = [*watch.below(secret), *watch.beside(allowed), *sorted(one for one in watch.ran if "dlopen" not in one)]
        problems += [f"{graph['5']['class_type']} {one}" for one in found]
        if end.startswith("bad"):
            problems.append(end)
    told = ", ".join(f"{n} {end}" for end, n in sorted(ends.items()))
    what = f"{count} hostile workflows ({told}): {len(problems)} accesses outside of the host's folders, or faults"
    return Finding("confined", what, not problems, {**ends, "bad": problems})


def _run(session: HostSession, graph: dict[str, Any]) -> str:
    """How it ended."""
    try:
        run = session.execute(graph, allow_node_errors=True)
    except HostValidationError:
        return "refused by the host"
    except HostRunError as error:
        own = error.exception_type.rpartition(".")[2]
        known = own in ("InputError", "UnsupportedError", "PlannerFileError", "BackendMissingError", "StoreError")
        return "refused by the node" if known else f"bad: {error}"
    json.dumps(run.ui, allow_nan=False)
    return "run"


def _texts(rng: random.Random, secret: Path) -> str:
    up = "../" * 12 + str(secret)[1:]
    texts = (
        *(str(secret / "planner.safetensors"), str(secret / "prompts.txt"), up + "/planner", up + "/prompts.txt"),
        *("..\\..\\secret\\planner", "C:\\secret\\planner", "~/x", "file:///etc/passwd", "//host/share/x", "/dev/zero"),
        *("a\0b", "x" * 5000, "%2e%2e/x", "$HOME", "con", "nul.safetensors", ".", "..", "", "http://evil.example/x"),
        *(
            MARKUP,
            ESCAPES,
            "{0.__class__}",
            "{planner.__globals__}",
            "%s%n",
            "\ud800",
            "auto/../../x",
            "=cmd|' /C calc'!A0",
        ),
    )
    return rng.choice(texts)


def _graph(session: HostSession, rng: random.Random, secret: Path) -> dict[str, Any]:
    text = lambda: _texts(rng, secret)  # noqa: E731
    linked = {"model": ["1", 0], "positive": ["2", 0], "latent_image": ["4", 0], "vae": ["1", 2], "clip": ["1", 1]}
    sampled = {"negative": ["3", 0], "sampler_name": "euler", "scheduler": "normal", "cfg": 3.0}
    counts = {"max_steps": rng.choice((2, 3)), "min_steps": 1, "seed": rng.randrange(2**64)}
    kinds: dict[str, dict[str, Any]] = {
        "AdaptiveKSampler": {**counts, "quality": 0.8, "planner": text(), "schedule": rng.choice(("auto", text()))},
        "BudgetPlanner": {"quality": 0.8, "planner": text(), "max_steps": 3},
        "Learn": {"seed": 1, "planner": text(), "schedule": "auto"},
        "StepSweep": {"seed": 1, "step_counts": rng.choice((text(), "1 2", "2," * 3000, "9" * 400, "1e9", "-1 2"))},
        "Calibrate": {
            "max_steps": 20,
            "thoroughness": "quick",
            "prompts": rng.choice(("file in the input folder", text())),
            "prompt_text": text(),
            "name": text(),
            "width": 32,
            "height": 32,
            "budgetfusion.task": rng.choice(NASTY[:30]),
        },
    }
    kind = rng.choice(list(kinds))
    declared = session.node_classes[f"BudgetFusion_{kind}"].INPUT_TYPES()
    names = {name for group in ("required", "optional") for name in declared.get(group, ())}
    inputs = {**{name: value for name, value in {**linked, **sampled}.items() if name in names}, **kinds[kind]}
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name="tiny_scenes.safetensors"),
        "2": node("CLIPTextEncode", text=rng.choice(("a star", text())), clip=["1", 1]),
        "3": node("CLIPTextEncode", text="", clip=["1", 1]),
        "4": node("EmptyLatentImage", width=32, height=32, batch_size=1),
        "5": {**node(f"BudgetFusion_{kind}", **inputs), "_meta": {"title": MARKUP}},
        "6": node("PreviewAny", source=["5", 0]),
    }


# -------------------------------------------------------------------------------------------------------------- page


def page_files(folder: Path = ROOT / "budgetfusion_nodes" / "web") -> Finding:
    """Whether a file of the page makes markup or code of a text."""
    files = sorted(folder.rglob("*.js"))
    found = [
        f"{path.name}: {match.group()}"
        for path in files
        for match in FORGING.finditer(path.read_text(encoding="utf-8"))
    ]
    what = f"{len(files)} files of the page: {len(found)} places that make markup or code of a text"
    return Finding("confined", what, not found and bool(files), {"files": len(files), "bad": found})


PART = Part("hostile_page", "Hostile pages and workflows", run)
