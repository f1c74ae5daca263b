"""Where calibration prompts come from, and which of them are rendered in which order."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InputError
from .records import Encoded
from .spec import AMOUNTS

BUILT_IN = Path(__file__).with_name("prompts.tsv")
OWN = "own"
"""Category of an artist's own prompts."""
LONGEST = 4000
"""Characters of a prompt; a longer line is no prompt."""
MOST = 5000
"""Prompts that are read from one source."""
MOST_BYTES = 16 << 20
CANDIDATES = 2
"""Prompts that are encoded for each one that is chosen: text encoders take seconds on a CPU."""
TEXT_NODES = ("CLIPTextEncode", "TextEncode")
NO_PROMPTS = ("system_prompt", "empty_padding")
"""Choices of text encoders that are texts too."""
TEXT_INPUTS = re.compile("text|prompt|string|value|t5|bert|llama|qwen|clip_[lg]$")
"""Names of inputs that another node may give a text to."""
FARTHEST_NODE = 32
"""Links that are followed from a sampler to its prompt."""
LARGEST_SEED = 2**48


@dataclass(frozen=True)
class CalibrationPrompt:
    text: str
    category: str = OWN

    def seed(self, index: int) -> int:
        """The seed of its trajectory `index`: always the same, so that a calibration goes on after a restart."""
        digest = hashlib.sha256(f"{index}:{self.text}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % LARGEST_SEED


def built_in() -> tuple[CalibrationPrompt, ...]:
    """The list of the pack."""
    with BUILT_IN.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return tuple(CalibrationPrompt(row["prompt"], row["category"]) for row in rows)


def from_text(text: str, source: str = "the text") -> tuple[CalibrationPrompt, ...]:
    """One prompt a line; empty lines and lines that begin with # are none."""
    return _checked((line.strip() for line in text.splitlines() if not line.lstrip().startswith("#")), source)


def from_file(path: Path) -> tuple[CalibrationPrompt, ...]:
    """txt: one a line; tsv: the column `prompt`, else the last; json: a list of texts or of objects with `prompt` or
    `text`; png: the positive prompt of the workflow that ComfyUI saved in it; a folder: all its PNG files."""
    try:
        if path.is_dir():
            return _checked((text for file in sorted(path.rglob("*.png"))[:MOST] for text in _of_png(file)), path.name)
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"prompts: {path.name} is larger than {MOST_BYTES >> 20} MB; it is no list of prompts.")
        kind = path.suffix.lower()
        if kind == ".png":
            return _checked(_of_png(path), path.name)
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"prompts: {path.name} cannot be read as text ({error}). Save it as UTF-8.") from error
    if kind == ".json":
        return _checked(_of_json(text, path.name), path.name)
    return _checked(_of_table(text, kind), path.name) if kind in (".tsv", ".csv") else from_text(text, path.name)


def _of_table(text: str, kind: str) -> list[str]:
    first = text.partition("\n")[0]
    delimiter = "\t" if kind == ".tsv" else max("\t;,", key=first.count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error:  # quotation marks that belong to a prompt
        rows = [line.split(delimiter) for line in text.splitlines()]
    rows = [row for row in rows if row]
    head = [name.strip().lower() for name in rows[0]] if rows else []
    named = [head.index(name) for name in ("prompt", "text") if name in head]
    column = named[0] if named else -1
    return [row[column] for row in rows[1 if named else 0 :] if -1 <= column < len(row)]


def _of_json(text: str, name: str) -> list[str]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"prompts: {name} is no valid JSON ({error}).") from error
    if isinstance(content, dict):
        content = content.get("prompts", [])
    found = [
        item if isinstance(item, str) else item.get("prompt", item.get("text"))
        for item in (content if isinstance(content, list) else [])
        if isinstance(item, (str, dict))
    ]
    return [item for item in found if isinstance(item, str)]


def _of_png(path: Path) -> list[str]:
    """Texts of the text encoders that lead to a sampler's positive input in the graph that ComfyUI saved."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            graph = json.loads(picture.info.get("prompt", "{}"))
    except (OSError, ValueError, RecursionError, TypeError, Image.DecompressionBombError):
        return []
    if not isinstance(graph, dict):
        return []
    nodes = {
        key: node for key, node in graph.items() if isinstance(node, dict) and isinstance(node.get("inputs"), dict)
    }
    starts = [node["inputs"]["positive"] for node in nodes.values() if "positive" in node["inputs"]]
    starts += [  # of guiders without a negative prompt
        node["inputs"][name]
        for node in nodes.values()
        for name in ("conditioning", "cond1")
        if "Guider" in str(node.get("class_type")) and name in node["inputs"]
    ]
    return [text for start in starts for text in _texts_behind(start, nodes, 0)]


def _texts_behind(link: Any, nodes: dict[str, Any], depth: int) -> list[str]:
    """The texts of the encoders behind a CONDITIONING link; a node of other packs may hold the text itself."""
    if isinstance(link, str):
        return [link]
    inputs, kind = _node_behind(link, nodes, depth)
    if any(known in kind for known in TEXT_NODES):
        return _longest(inputs, nodes, depth)
    followed = [value for key, value in inputs.items() if key.startswith(("conditioning", "positive"))]
    return [text for value in followed for text in _texts_behind(value, nodes, depth + 1)]


def _longest(inputs: dict[str, Any], nodes: dict[str, Any], depth: int) -> list[str]:
    """At most one text: of several encoders in one node, or of what is linked to it, the longest."""
    own = [value for key, value in inputs.items() if isinstance(value, str) and key not in NO_PROMPTS]
    for value in (value for key, value in inputs.items() if TEXT_INPUTS.search(key)):
        own += _longest(_node_behind(value, nodes, depth)[0], nodes, depth + 1)
    return [text for text in sorted(own, key=len, reverse=True)[:1] if text.strip()]


def _node_behind(link: Any, nodes: dict[str, Any], depth: int) -> tuple[dict[str, Any], str]:
    """(its inputs, its class); no inputs where nothing is linked, or too far away."""
    linked = isinstance(link, list) and len(link) == 2 and str(link[0]) in nodes and depth <= FARTHEST_NODE
    node = nodes[str(link[0])] if linked else {"inputs": {}}
    return node["inputs"], str(node.get("class_type"))


def _checked(texts: Any, source: str) -> tuple[CalibrationPrompt, ...]:
    """Each once, in their order, at most MOST. InputError where there are none."""
    cleaned = (" ".join(str(text).split()) for text in texts)
    distinct = list(dict.fromkeys(text for text in cleaned if 0 < len(text) <= LONGEST))[:MOST]
    if not distinct:
        raise InputError(f"prompts: {source} holds no prompt. Write one a line, or choose the built-in list.")
    return tuple(CalibrationPrompt(text) for text in distinct)


# ---------------------------------------------------------------------------------------------------------- the order


def rendering_order(
    prompts: Sequence[CalibrationPrompt], wanted: int, encode: Callable[[CalibrationPrompt], Encoded]
) -> list[CalibrationPrompt]:
    """`wanted` prompts that cover the space of conditionings, in the order in which they are rendered.

    Chosen by greedy farthest point (Gonzalez 1985) among CANDIDATES times as many, level by level of thoroughness, so
    that a quick calibration is the beginning of a thorough one. Within a level the order is random: calibration and
    guide prompts are then alike, and any first part is a random part.
    """
    rng = np.random.default_rng(0)
    pool = [prompts[i] for i in rng.permutation(len(prompts))]
    order: list[CalibrationPrompt] = []
    chosen: list[int] = []
    points: list[Tensor] = []
    for level in sorted({min(a.prompts, wanted, len(pool)) for a in AMOUNTS.values()}):
        points += [position(encode(prompt)) for prompt in pool[len(points) : CANDIDATES * level]]
        more = farthest_points(torch.stack(points), chosen, level - len(chosen))
        chosen += more
        order += [pool[more[i]] for i in rng.permutation(len(more))]
    return order


def position(encoded: Encoded) -> Tensor:
    """[F] where a prompt lies: mean of its tokens and pooled output, each of length 1."""
    parts = [encoded.tokens.float().mean(0), *([] if encoded.pooled is None else [encoded.pooled.float().flatten()])]
    return torch.cat([part / part.norm().clamp_min(1e-12) for part in parts])


def farthest_points(points: Tensor, chosen: Sequence[int], count: int) -> list[int]:
    """`count` more rows of points [N, F], each the farthest from all that were chosen before; the first one, where
    none was, is the nearest to the middle."""
    distance = torch.full((len(points),), torch.inf)
    for index in chosen:
        distance = torch.minimum(distance, (points - points[index]).norm(dim=1))
    found: list[int] = []
    for _ in range(count):
        if not chosen and not found:
            index = int((points - points.mean(0)).norm(dim=1).argmin())
        else:
            index = int(distance.argmax())
        found.append(index)
        distance = torch.minimum(distance, (points - points[index]).norm(dim=1))
        distance[index] = -1.0
    return found
