"""Two pictures of one trajectory that the artist rendered anyway: what a render leaves behind for memory, and how the
Blind Test finds out in its graph that its two pictures are one prompt and seed at two counts.

The host hands pictures on without saying where they come from. But what lies above a node in the graph, inputs and
links, decides its output (the host's own cache relies on it); so a render is known by a digest of that.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..core.messages import Message
from ..core.plan import Plan
from ..core.recent import Recent
from ..core.schedule import STOCK
from ..core.sources import COMPARED
from ..host.drafts import FINISHED, trajectory_of
from ..host.paths import encoder_folders
from ..host.sampling import Render
from ..predictor.planner import Planner
from .choice import planner_of
from .memory import only_seed
from .origin import Origin, known_counts, origin_of, remember
from .service import Request

log = logging.getLogger(__name__)

SAMPLER, BLIND_TEST = "BudgetFusion_AdaptiveKSampler", "BudgetFusion_BlindTest"
DECODERS = ("VAEDecode", "VAEDecodeTiled")
STOCK_SAMPLER = "KSampler"
SAME = ("model", "seed", "cfg", "sampler_name", "scheduler", "positive", "negative", "latent_image")
"""Inputs that two samplers must share to render one trajectory."""
MOST = 16
"""Renders that are known."""

_RENDERED: Recent[str, tuple[Origin, int, Planner]] = Recent(MOST)


def keep_for_memory(
    plan: Plan, done: Render, hidden: Any, request: Request, seed: int, inputs: tuple[Any, Any, Any, Mapping[str, Any]]
) -> None:
    """Keeps a planned render's picture and, where its graph has a Blind Test, where it comes from. inputs: model,
    positive, negative, latent_image. Never raises."""
    try:
        _keep(plan, done, hidden, request, seed, inputs)
    except Exception:  # a render that is done is never lost
        log.warning("BudgetFusion cannot remember this render", exc_info=True)


def _keep(
    plan: Plan, done: Render, hidden: Any, request: Request, seed: int, inputs: tuple[Any, Any, Any, Mapping[str, Any]]
) -> None:
    samples = done.latent.get("samples")
    alone = only_seed(seed, inputs[3]) is not None and request.denoise >= 1.0
    if plan.fallback is not None or plan.decision is None or not alone or not isinstance(samples, Tensor):
        return
    graph, node = getattr(hidden, "prompt", None), str(getattr(hidden, "unique_id", ""))
    graph = graph if isinstance(graph, Mapping) else {}
    judged = BLIND_TEST in (one.get("class_type") for one in graph.values())
    finished = done.key is not None and plan.schedule != STOCK
    # an origin digests all that the prompts carry: most renders need none
    origin = origin_of(*inputs, request, seed, plan.schedule) if judged or finished else None
    if origin is None:
        return
    if finished:
        FINISHED.keep(trajectory_of(done.key, inputs[0], origin.setting), done.steps, samples)
    key = graph_key(graph, node) if judged else None
    if key is not None:
        _RENDERED[key] = (origin, done.steps, planner_of(plan))


def remember_pair(hidden: Any, planned: Tensor, full: Tensor) -> Message | None:
    """Measures the Blind Test's two pictures [1, H, W, C] and remembers them; None where they are not one trajectory's
    at two counts, the greater its target, or are in the store already. Never raises."""
    graph, node = getattr(hidden, "prompt", None), str(getattr(hidden, "unique_id", ""))
    try:
        if not isinstance(graph, Mapping) or node not in graph:  # a node that another one made is in no graph
            return None
        if planned.shape[0] != 1 or planned.shape != full.shape:
            return None
        inputs = graph[node]["inputs"]
        found = _pair(graph, inputs["planned"], inputs["full"])
        return None if found is None else _measured(found, planned, full)
    except Exception:  # for the store's sake no test may fail
        log.warning("BudgetFusion could not remember this pair", exc_info=True)
        return None


@dataclass(frozen=True)
class _Pair:
    origin: Origin
    planner: Planner
    steps: int
    """Of the planned picture."""
    target: int
    """Of the full one."""


def _pair(graph: Mapping[str, Any], planned: Any, full: Any) -> _Pair | None:
    """None where the pictures are not of one trajectory."""
    (one, *how), (other, *alike) = _sampler(graph, planned), _sampler(graph, full)
    if how != alike:
        return None
    keys = graph_key(graph, one), graph_key(graph, other)
    if keys[0] is None or keys[1] is None or keys[0] not in _RENDERED:
        return None
    origin, steps, planner = _RENDERED[keys[0]]
    mine, its = graph[one]["inputs"], graph[other]["inputs"]
    if not all(json.dumps(mine.get(name)) == json.dumps(its.get(name)) for name in SAME):
        return None
    if keys[1] in _RENDERED:
        second, target, _ = _RENDERED[keys[1]]
        same = second.setting == origin.setting
    else:
        target, same = its.get("steps"), graph[other]["class_type"] == STOCK_SAMPLER and its.get("denoise", 1.0) == 1.0
        same = same and origin.setting.schedule == STOCK
    if not same or target != planner.target_steps or steps >= planner.target_steps:
        return None
    return _Pair(origin, planner, steps, planner.target_steps)


def _sampler(graph: Mapping[str, Any], image: Any) -> tuple[str, str, Any]:
    """(the node whose latent was decoded to this picture, empty where something lies between; by what; with which
    VAE)."""
    decoder = graph.get(image[0], {}) if _is_link(image) else {}
    kind, inputs = decoder.get("class_type", ""), decoder.get("inputs", {})
    samples = inputs.get("samples")
    direct = kind in DECODERS and _is_link(samples) and samples[1] == 0
    return samples[0] if direct else "", kind, inputs.get("vae")


def _measured(pair: _Pair, planned: Tensor, full: Tensor) -> Message | None:
    """None where a backend of the planner's is missing, or both counts are known."""
    # on use: not every render has a Blind Test
    from ..host.measuring import render_device
    from ..metrics.images import to_bchw
    from ..metrics.l_snr import l_snr
    from ..metrics.matching import very_backends
    from ..metrics.measure import measure

    planner = pair.planner
    wanted = {metric: planner.backends[metric] for metric in planner.metrics}
    if {pair.steps, pair.target} <= known_counts(pair.origin, pair.target, wanted).keys():
        return None
    backends, lacking = very_backends(wanted, folders=encoder_folders())
    if lacking:
        return None
    with render_device(backends, *to_bchw(planned).shape[2:]) as device:
        found = measure(planned, full, backends, device=device)
    distances = {
        pair.steps: {m: float(found[m]) for m in planner.metrics},
        pair.target: dict.fromkeys(planner.metrics, 0.0),
    }
    decibel = {pair.steps: float(l_snr(planned)), pair.target: float(l_snr(full))}
    return remember(pair.origin, distances, decibel, wanted, COMPARED, planner)


def graph_key(graph: Mapping[str, Any], node: str) -> str | None:
    """Digest of a node of an API graph and of everything above it; None for a node that is not there."""
    digest = hashlib.sha256()
    open_, seen = [node], dict[str, int]()
    while open_:
        name = open_.pop()
        if name not in graph:
            return None
        seen.setdefault(name, len(seen))
        one = graph[name]
        inputs = {key: one["inputs"][key] for key in sorted(one["inputs"])}
        for key, value in inputs.items():
            if _is_link(value):
                above = value[0]
                if above not in seen:
                    seen[above] = len(seen)
                    open_.append(above)
                inputs[key] = {"link": seen[above], "output": value[1]}
        digest.update(json.dumps([one["class_type"], seen[name], inputs], sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _is_link(value: Any) -> bool:
    """As the host tells links from values; a node in a subgraph is called "12:3"."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)
