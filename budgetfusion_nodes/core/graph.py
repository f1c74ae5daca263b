"""What an API prompt says about the files above a node, the only place where the names of LoRAs are known, and about
what its outputs are used for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

MODEL_FILES = (".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pth", ".bin")
NOT_THE_MODEL = frozenset(
    {
        "clip",
        "vae",
        "positive",
        "negative",
        "conditioning",
        "latent",
        "latent_image",
        "samples",
        "image",
        "images",
        "control_net",
        "clip_vision",
        "mask",
        "seed",
    }
)
"""Links of these names lead to other things than the denoiser and its LoRAs."""
NODES_AT_MOST = 500
STEP_INPUTS = ("steps", "start_at_step", "end_at_step")
"""Of samplers and schedulers that space the steps themselves; SplitSigmas, which takes sigmas, calls it `step`."""


def files_above(prompt: Any, node_id: Any, name: str = "model") -> tuple[str, ...]:
    """Model files of the nodes from which input `name` of `node_id` gets its model, nearest first, without repeats.

    prompt: the API graph, id -> {"class_type", "inputs"}, as the host hands it to a node. Whatever is not shaped like
    that gives nothing: an unknown name is no reason to fail. A LoRA at strength 0, or switched off, is left out.
    """
    if not isinstance(prompt, Mapping):
        return ()
    start = _inputs(prompt, node_id).get(name)
    found: dict[str, None] = {}
    seen: set[str] = set()
    waiting: list[Any] = [start]
    while waiting and len(seen) < NODES_AT_MOST:
        link = waiting.pop(0)
        if not _is_link(link) or str(link[0]) in seen:
            continue
        seen.add(str(link[0]))
        inputs = _inputs(prompt, link[0])
        found.update(dict.fromkeys(_files(inputs)))
        waiting.extend(value for key, value in inputs.items() if key.lower() not in NOT_THE_MODEL)
    return tuple(found)


def spaced_elsewhere(prompt: Any, node_id: Any, outputs: Collection[int]) -> bool:
    """Whether one of these outputs of a node ends, through whatever lies between, at an input of STEP_INPUTS. False for
    what is no API graph."""
    if not isinstance(prompt, Mapping):
        return False
    takers: dict[str, list[tuple[Any, str, str]]] = {}
    for other in prompt:
        for key, value in _inputs(prompt, other).items():
            if _is_link(value):
                takers.setdefault(str(value[0]), []).append((value[1], str(other), key))
    reached = {str(node_id)}
    following = [(taker, key) for output, taker, key in takers.get(str(node_id), []) if output in outputs]
    while following:
        node, name = following.pop()
        if name in STEP_INPUTS:
            return True
        if node not in reached:
            reached.add(node)
            following += [(taker, key) for _, taker, key in takers.get(node, [])]
    return False


def _files(inputs: Mapping[str, Any]) -> Iterator[str]:
    strength = inputs.get("strength_model", inputs.get("strength", 1.0))
    if strength == 0:
        return
    for key, value in inputs.items():
        if (
            isinstance(value, str)
            and value.lower().endswith(MODEL_FILES)
            and key.lower() not in ("clip_name", "vae_name")
        ):
            yield value
        elif isinstance(value, Mapping) and value.get("on", True) and value.get("strength", 1.0) != 0:
            yield from (v for v in value.values() if isinstance(v, str) and v.lower().endswith(MODEL_FILES))


def _inputs(prompt: Mapping[Any, Any], node_id: Any) -> Mapping[str, Any]:
    node = prompt.get(str(node_id), prompt.get(node_id))
    inputs = node.get("inputs") if isinstance(node, Mapping) else None
    return inputs if isinstance(inputs, Mapping) else {}


def _is_link(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and isinstance(value[1], int)
