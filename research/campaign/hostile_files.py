"""Part `hostile_files`: thousands of hostile planner files, opened and imported in processes of their own.

Each file is made from a shipped planner by mutations.py. It is refused with a reason, or it is a planner that can be
described, listed and planned with. A process that ends counts as a crash of the file that it was at.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from budgetfusion_nodes.cli import main
from budgetfusion_nodes.core.errors import BudgetFusionError, PlannerFileError
from budgetfusion_nodes.core.plan import Plan
from budgetfusion_nodes.predictor.planner import Planner
from budgetfusion_nodes.predictor.planner_file import AnyPlanner, load_any_planner
from research.options import ROOT, WEIGHTS

from .hostile_names import Room, placed
from .memory_use import peak, start_peak
from .mutations import hostile
from .part import Finding, Part, Work

CHUNK = 1000
"""Files of one process."""
MOST_SECONDS, MOST_MEGABYTES = 1.0, 200.0
PATIENCE = 3600.0
"""Seconds for CHUNK files, after which one of them hangs."""
OPEN, IMPORT = "open", "import"


@dataclass(frozen=True)
class Case:
    """What became of one file."""

    number: int
    kind: str
    outcome: str
    """refused, accepted or failed."""
    detail: str
    seconds: float
    """Of the processor: what other programs took is no property of the file."""
    megabytes: float
    """That the process grew by, at most, since before its first file."""


def run(work: Work) -> Sequence[Finding]:
    """Opens and imports hostile files."""
    count = work.count(quick=80, long=10_000)
    found: dict[str, list[Case]] = {OPEN: [], IMPORT: []}
    while not work.is_over() and any(len(cases) < count for cases in found.values()):
        for way, cases in found.items():
            if len(cases) < count:
                cases += _chunk(way, work, len(cases), count)
    return [_finding(way, cases) for way, cases in found.items()]


def _chunk(way: str, work: Work, first: int, count: int) -> list[Case]:
    scratch = work.folder / f"{way}-{first}"
    scratch.mkdir(parents=True)
    found, crash = _child(way, scratch, work.seed, first, min(first + CHUNK, count))
    if crash:
        found.append(Case(first + len(found), "?", "failed", crash, 0.0, 0.0))
    shutil.rmtree(scratch)
    return found


def _child(way: str, scratch: Path, seed: int, first: int, last: int) -> tuple[list[Case], str]:
    """What a process of its own found; and how it ended, where it did so before the last file."""
    own = [sys.executable, "-m", "research.campaign.hostile_files", way, str(scratch), *map(str, (seed, first, last))]
    with (scratch / "out").open("w+") as out, (scratch / "errors").open("w+") as errors:
        try:
            status = subprocess.run(own, cwd=ROOT, stdout=out, stderr=errors, timeout=PATIENCE, check=False).returncode
            ended = "" if status == 0 else f"the process ended with {status}: "
        except subprocess.TimeoutExpired:
            ended = "it hangs: "
    cases = [Case(**json.loads(line)) for line in (scratch / "out").read_text().splitlines()]
    return cases, ended and ended + (scratch / "errors").read_text()[-300:]


def _finding(way: str, cases: Sequence[Case]) -> Finding:
    outcomes = Counter(case.outcome for case in cases)
    slowest, largest = (max(cases, key=key) for key in (lambda c: c.seconds, lambda c: c.megabytes))
    bad = [case for case in cases if case.outcome == "failed"]
    bounded = slowest.seconds <= MOST_SECONDS and largest.megabytes <= MOST_MEGABYTES
    verb = "opened" if way == OPEN else "imported"
    what = (
        f"{len(cases)} hostile files {verb}: {outcomes['refused']} refused with a reason, {outcomes['accepted']} taken "
        f"and planned with, {len(bad)} failed; slowest {slowest.seconds:.2f} s, most memory {largest.megabytes:.0f} MB"
    )
    figures = {"files": len(cases), **outcomes, "slowest_s": slowest.seconds, "memory_mb": largest.megabytes}
    told = {"bad": [f"{c.number} {c.kind}: {c.detail}" for c in bad]}
    dear = {"slowest": f"{slowest.number} {slowest.kind}", "largest": f"{largest.number} {largest.kind}"}
    return Finding("refused", what, not bad and bounded, {**figures, **dear, **told})


# ------------------------------------------------------------------------------------------------ in the own process


def child(way: str, scratch: Path, seed: int, first: int, last: int) -> Iterator[Case]:
    """Tries files `first` to `last` - 1 of a seed."""
    originals = [path.read_bytes() for path in sorted((WEIGHTS / "planners").glob("*.safetensors"))]
    make = _maker(way)
    (scratch / "warm.safetensors").write_bytes(originals[0])
    with make(scratch / "room", random.Random(0)) as warm:  # what is imported on use is no file's cost
        warm.check(warm.take(scratch / "warm.safetensors"))
    start_peak()
    base = peak()
    for number in range(first, last):
        rng = random.Random(f"{seed} {number}")
        kind, content = hostile(rng, originals)
        path = placed(rng, scratch, content)
        with make(scratch / "room", rng) as attempt:
            yield _tried(attempt, path, number, kind, base)


def _maker(way: str) -> Callable[[Path, random.Random], Attempt]:
    return Opening if way == OPEN else Importing


def _tried(attempt: Attempt, path: Path, number: int, kind: str, base: float) -> Case:
    start_peak()
    started = time.process_time()
    outcome, detail, taken, seconds = "accepted", "", None, None
    try:
        taken = attempt.take(path)
        seconds = time.process_time() - started
        attempt.check(taken)
    except Refused as reason:
        outcome, detail = "refused", str(reason)
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        outcome, detail = "failed", f"{type(error).__name__}: {error} at {Path(where.filename).name}:{where.lineno}"
    seconds = time.process_time() - started if seconds is None else seconds
    return Case(number, kind, outcome, detail[:300], round(seconds, 4), round(peak() - base, 1))


class Refused(Exception):
    """With a reason."""


class Attempt(Protocol):
    """One way to meet a file."""

    def __enter__(self) -> Attempt: ...

    def __exit__(self, *_: object) -> None: ...

    def take(self, path: Path, /) -> Any:
        """What was made of it. Refused with a reason; any other error is a failure."""

    def check(self, taken: Any, /) -> None:
        """AssertionError where what was taken is not usable."""


class Opening:
    """As a node does; then a plan is made."""

    def __init__(self, room: Path, rng: random.Random) -> None:
        del room
        self._rng = rng

    def __enter__(self) -> Opening:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was made."""

    def take(self, path: Path) -> AnyPlanner:
        try:
            return load_any_planner(path)
        except PlannerFileError as error:
            if error.message.code != "planner_file":
                raise AssertionError(f"no reason: {error!r}") from error
            raise Refused(str(error)) from error

    def check(self, planner: AnyPlanner) -> None:
        """It plans within the limits, and the page can read the plan; or it says why it cannot."""
        generator = torch.Generator().manual_seed(self._rng.randrange(2**32))
        width, pooled = (7, 0)
        if isinstance(planner, Planner):
            width, pooled = len(planner.projection.token_mean), len(planner.projection.pooled_mean)
        tokens, vector = torch.randn(11, width, generator=generator), torch.randn(pooled, generator=generator)
        try:
            plan = planner.plan(tokens, vector if pooled else None, quality=0.9, max_steps=40)
        except BudgetFusionError as error:  # a fallback on the node
            json.dumps(error.message.to_dict(), allow_nan=False)
            return
        told = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
        if not plan.min_steps <= plan.steps <= plan.max_steps:
            raise AssertionError(f"{plan.steps} steps outside {plan.min_steps} to {plan.max_steps}")
        if Plan.from_dict(told).steps != plan.steps or not plan.summary():
            raise AssertionError("another plan after JSON")


class Importing:
    """As `planners import` does; then what came in is listed and shown. Nothing is written beside the folder."""

    def __init__(self, room: Path, rng: random.Random) -> None:
        self._room, self._rng = Room(room, rng), rng

    def __enter__(self) -> Importing:
        self._room.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._room.__exit__()

    def take(self, path: Path) -> str:
        status, said = self._command("import", str(path), *self._rng.choice(((), ("--replace",))))
        if status:
            self._room.check()
            if not said.startswith("Error: ") or "Traceback" in said:
                raise AssertionError(f"no reason: {said[:200]}")
            raise Refused(said)
        return said

    def check(self, said: str) -> None:
        self._room.check()
        listed = json.loads(self._command("list", "--json")[1])
        own = [row for row in listed if not row["shipped"]]
        if any(row["error"] and row["file"] not in self._room.before for row in own):
            raise AssertionError(f"a file that cannot be read came in: {said}")
        come_in = [row["file"] for row in own if not row["error"] and row["file"] != "good.safetensors"]
        for arguments in (("list",), *(("show", file) for file in come_in)):
            status, text = self._command(*arguments)
            if status or any(ord(letter) < 32 and letter not in "\n\t" for letter in text):
                raise AssertionError(f"{arguments} gave {status}, or commands for a terminal")

    def _command(self, *arguments: str) -> tuple[int, str]:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            status = main(["planners", *arguments, "--folder", str(self._room.folder)])
        return status, out.getvalue()


def _main(arguments: Sequence[str]) -> None:
    way, scratch, *numbers = arguments
    for case in child(way, Path(scratch), *map(int, numbers)):
        sys.stdout.write(json.dumps(asdict(case)) + "\n")
        sys.stdout.flush()


PART = Part("hostile_files", "Hostile planner files and imports", run)

if __name__ == "__main__":
    _main(sys.argv[1:])
