"""Part `upgrade`: what earlier landed states of this repository wrote opens in this one.

tests/specimens holds one small file of each format, written by the code of the commit in its name: planners, stores of
every schema version, and the example workflows of every set of inputs that a node has had.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from budgetfusion_nodes.calibration import schema
from budgetfusion_nodes.calibration.memory_reader import reading
from budgetfusion_nodes.calibration.records import Encoded
from budgetfusion_nodes.calibration.store import Store
from budgetfusion_nodes.calibration.store_merge import merge_store
from budgetfusion_nodes.command_line.page_format import to_prompt
from budgetfusion_nodes.core.errors import BudgetFusionError
from budgetfusion_nodes.predictor.planner_file import load_any_planner, save_planner
from research.in_process_host import HostSession, HostValidationError
from research.options import ROOT

from .in_host import run_in_host
from .old_store import version
from .part import Finding, Part, Work

SPECIMENS = ROOT / "tests" / "specimens"
PLANNED_STEPS = 25
"""By the code that wrote the planners, of `_conditioning` at quality .9."""
COUNTS = (2, 4, 8)
"""That each of the two trajectories of a store has."""


def run(work: Work) -> Sequence[Finding]:
    """Opens every specimen."""
    return [planners(work.folder), stores(work.folder), *run_in_host(__name__, work)]


def inside(session: HostSession, work: Work) -> Sequence[Finding]:
    """The workflows, in the process of a host."""
    del work
    return [workflows(session)]


def unpacked(kind: str, folder: Path) -> Iterator[Path]:
    """The specimens of a kind, written into a folder."""
    for packed in sorted(SPECIMENS.glob(f"{kind}_*.gz")):
        path = folder / packed.stem
        path.write_bytes(gzip.decompress(packed.read_bytes()))
        yield path


def planners(folder: Path) -> Finding:
    """Each plans what it planned, also after it is saved anew."""
    problems, count = list[str](), 0
    for path in unpacked("planner", folder):
        count += 1
        try:
            planner = load_any_planner(path)
            save_planner(path, planner)
            steps = [
                one.plan(*_conditioning(), quality=0.9, max_steps=50).steps for one in (planner, load_any_planner(path))
            ]
        except BudgetFusionError as error:
            problems.append(f"{path.name}: {error}")
            continue
        if steps != [PLANNED_STEPS] * 2:
            problems.append(f"{path.name} plans {steps}")
    return _finding("planners of every format open and plan what they planned", count, problems)


def _conditioning() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(10, 6, generator=generator), torch.randn(4, generator=generator)


def stores(folder: Path) -> Finding:
    """Each is migrated with all it holds, and can be imported into another."""
    problems, versions = list[str](), list[int]()
    for path in unpacked("store", folder):
        versions.append(version(path)[0])
        problems += [f"{path.name}: {problem}" for problem in _of_store(path)]
    lacking = set(range(1, len(schema.MIGRATIONS))) - set(versions)
    problems += [f"there is no specimen of version {one}" for one in sorted(lacking)]
    return _finding(f"stores of versions 1 to {max(versions)} open with all they hold", len(versions), problems)


def _of_store(path: Path) -> Iterator[str]:
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    with Store.at(path) as store:
        (content,) = store.contents()
        if (
            store.said is not None
            or content.measurements != 2 * len(COUNTS)
            or content.setting.model_name != "specimen"
        ):
            yield f"it opens with {content}, {store.said}"
    with reading(path) as connection:
        (memories,) = connection.execute("SELECT count(*) FROM memories").fetchone()
        (signatures,) = connection.execute("SELECT count(*) FROM signatures").fetchone()
        features = [
            Encoded.from_bytes(row[0]).tokens.shape for row in connection.execute("SELECT features FROM prompts")
        ]
    if (memories, signatures, features) != (2, 2, [(3, 6)] * 2):
        yield f"{memories} remembered renders, {signatures} signatures, features {features}"
    with Store.at(path.with_suffix(".other")) as other:
        came = merge_store(other, copy)
        if came != 2 * len(COUNTS):
            yield f"{came} counts come in"


OUTSIDE = tuple(f"BudgetFusion_BudgetPlanner: required_input_missing {name}" for name in ("model", "positive"))


def workflows(session: HostSession) -> Finding:
    """Each becomes a graph in which the host finds nothing wrong with a node of ours."""
    info, problems, names = session.object_info(), list[str](), list[str]()
    for packed in sorted(SPECIMENS.glob("workflow_*.gz")):
        names.append(packed.stem)
        content = json.loads(gzip.decompress(packed.read_bytes()))
        graph = to_prompt(content, info) if "nodes" in content else content
        outside = OUTSIDE if "definitions" in content else ()  # a blueprint's links come from the graph around it
        problems += [f"{packed.stem}: {problem}" for problem in _faults(session, graph) if problem not in outside]
    return _finding("workflows of every set of inputs are valid", len(names), problems)


def _faults(session: HostSession, graph: dict[str, Any]) -> Iterator[str]:
    try:
        _, errors = session.validate(graph)
    except HostValidationError as error:
        errors = error.node_errors
    own = [key for key, node in graph.items() if node["class_type"].startswith("BudgetFusion_")]
    if not own:
        yield "it holds no node of ours"
    for key in own:
        if graph[key]["class_type"] not in session.node_classes:
            yield f"there is no node {graph[key]['class_type']}"
        for fault in errors.get(key, {}).get("errors", ()):
            if fault["type"] != "exception_during_inner_validation":  # of a node before it, whose file is not here
                yield f"{graph[key]['class_type']}: {fault['type']} {fault['details']}"


def _finding(what: str, count: int, problems: Sequence[str]) -> Finding:
    text = f"{count} {what}; {len(problems)} problems"
    return Finding("opens", text, bool(count) and not problems, {"specimens": count, "bad": problems})


PART = Part("upgrade", "Files of earlier states", run)
