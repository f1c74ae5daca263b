"""Template graphs, stock and swapped, before the genuine host's own `validate_prompt`.

What is no fault of a graph is taken out of the way: model and input files are not here (any file stands in for them),
and a node that this host lacks is stood in for by one with the slots that the graph says it has. Everything else that
the host refuses in the swapped graph, and not in the stock one, is for our sake.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budgetfusion_nodes.host.paths import PLANNER_FOLDER
from research.in_process_host import HostSession, HostValidationError

from .graph import is_link
from .package import Prompt, sampling_prompts
from .swap import Swapped, swap

FILE_ENDINGS = (
    *(".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".gguf", ".onnx", ".latent"),
    *(
        ".png",
        ".jpg",
        ".jpeg",
        ".webp",
        ".mp4",
        ".webm",
        ".mov",
        ".mp3",
        ".wav",
        ".flac",
        ".m4a",
        ".glb",
        ".ply",
        ".txt",
    ),
)
STAND_INS = ("any.safetensors", "any.png", "any.mp4", "any.mp3", "any.glb", "any.latent")
ANY = "*"

Problem = tuple[str, str, str, str]
"""(node id, node type, the host's name of the error, input)."""


@dataclass(frozen=True)
class Verdict:
    """One graph."""

    name: str
    samplers: tuple[str, ...]
    """Stock classes that were swapped."""
    lacking: tuple[str, ...]
    """Node types that this host does not have."""
    stock: frozenset[Problem]
    """What the host refuses without us: mostly options that a newer host brings."""
    ours: frozenset[Problem]
    """What it refuses for our sake, in either way of swapping."""

    @property
    def passed(self) -> bool:
        return not self.ours


def verdicts(session: HostSession) -> Iterator[Verdict]:
    """Every sampling template of the package, one after another. Call it inside `stand_in_files`."""
    info = session.object_info()
    for name, page, prompt in sampling_prompts(info):
        with _standing_in(session, page, prompt) as lacking, _quiet():
            known = session.object_info(*{node["class_type"] for node in prompt.values()})
            filled = with_files(prompt, known)
            stock = problems(session, filled)
            ours: set[Problem] = set()
            for swapped in (swap(filled, info), swap(filled, info, sigmas=True)):
                ours |= _for_our_sake(swapped, problems(session, _all_reached(swapped)), stock)
            kinds = tuple(swap(filled, info).ours.values())
            yield Verdict(name, kinds, lacking, frozenset(stock), frozenset(ours))


def _for_our_sake(swapped: Swapped, found: set[Problem], stock: set[Problem]) -> set[Problem]:
    """Problems at our nodes and at inputs that come from them, less those that the stock node there has too."""
    known = {(number, error, name) for number, _, error, name in stock}

    def is_ours(number: str, name: str) -> bool:
        value = swapped.prompt.get(number, {"inputs": {}})["inputs"].get(name)
        return not number or number in swapped.ours or (is_link(value) and value[0] in swapped.ours)

    return {one for one in found if is_ours(one[0], one[3]) and (one[0], one[2], one[3]) not in known}


def with_files(prompt: Mapping[str, Any], info: Mapping[str, Any]) -> Prompt:
    """The prompt with a file that is there in the place of each that is not."""
    made = copy.deepcopy(dict(prompt))
    for node in made.values():
        declared = info.get(node["class_type"], {}).get("input", {})
        for name, spec in ((n, s) for part in ("required", "optional") for n, s in declared.get(part, {}).items()):
            value, options = node["inputs"].get(name), _options(spec)
            if isinstance(value, str) and value not in options and value.lower().endswith(FILE_ENDINGS):
                node["inputs"][name] = next((one for one in options if one in STAND_INS), value)
    return made


def _options(spec: Any) -> list[Any]:
    if isinstance(spec[0], list):
        return spec[0]
    return (spec[1].get("options") or []) if spec[0] == "COMBO" and len(spec) > 1 else []


@contextlib.contextmanager
def stand_in_files(session: HostSession) -> Iterator[None]:
    """Inside, one empty file of each kind lies wherever the host looks for files."""
    folder_paths = importlib.import_module("folder_paths")
    folders = [Path(paths[0]) for paths, _ in folder_paths.folder_names_and_paths.values() if paths]
    folders.append(Path(folder_paths.get_input_directory()))
    made: list[Path] = []
    for folder in folders:
        if session.base_dir in folder.parents and folder.name not in ("custom_nodes", PLANNER_FOLDER):
            folder.mkdir(parents=True, exist_ok=True)
            made += [folder / name for name in STAND_INS if not (folder / name).exists()]
    for file in made:
        file.touch()
    folder_paths.filename_list_cache.clear()
    try:
        yield
    finally:
        for file in made:
            file.unlink(missing_ok=True)
        folder_paths.filename_list_cache.clear()


def _all_reached(swapped: Swapped) -> Prompt:
    """With an output node behind each of ours: the host validates only what an output needs."""
    probes = {
        f"{number}-look": {"class_type": "PreviewAny", "inputs": {"source": [number, 1]}} for number in swapped.ours
    }
    return {**swapped.prompt, **probes}


def problems(session: HostSession, prompt: Mapping[str, Any]) -> set[Problem]:
    """What the host's validator refuses in an API prompt."""
    try:
        _, found = session.validate(copy.deepcopy(dict(prompt)))
    except HostValidationError as refused:
        found = refused.node_errors
        if not found:
            return {("", "", str(refused.error.get("type")), str(refused.error.get("details")))}
    return {
        (number, entry["class_type"], error["type"], str(error.get("extra_info", {}).get("input_name", "")))
        for number, entry in found.items()
        for error in entry["errors"]
    }


@contextlib.contextmanager
def _standing_in(session: HostSession, page: Mapping[str, Any], prompt: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Inside, the host has a node for each type that it lacks; yields those types."""
    classes = session.node_classes
    lacking = sorted({node["class_type"] for node in prompt.values()} - set(classes))
    outputs = {kind: _slots(page, kind) for kind in lacking}
    classes.update({kind: _stand_in(kind, outputs[kind]) for kind in lacking})
    try:
        yield tuple(lacking)
    finally:
        for kind in lacking:
            del classes[kind]


def _slots(page: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """The output types that the file gives a node."""
    graphs = [page, *((page.get("definitions") or {}).get("subgraphs") or ())]
    found = (node for graph in graphs for node in graph["nodes"] if node["type"] == kind)
    return tuple(slot["type"] if slot["type"].isupper() else ANY for slot in next(found).get("outputs") or ())


def _stand_in(kind: str, outputs: tuple[str, ...]) -> type:
    return type(
        kind,
        (),
        {
            "INPUT_TYPES": classmethod(lambda cls: {"required": {}}),
            "RETURN_TYPES": outputs,
            "OUTPUT_NODE": not outputs,
            "FUNCTION": "run",
            "CATEGORY": "stand-in",
            "run": lambda self: (None,) * len(outputs),
        },
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The host logs every refusal at length."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
