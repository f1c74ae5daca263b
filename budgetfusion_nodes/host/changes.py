"""What was done to a MODEL since it was loaded, each kind of change by its name."""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor

from ..core.messages import Message, message
from .model_sampling import OBJECT, loaded_sampling, read_sampling
from .patches import WeightPatches, adapters_digest
from .weights import COMPILED

LONGEST = 24
"""Letters of a word that is told as a setting of a patch."""
UNSEEN = "?"
"""In place of a LoRA's fingerprint, where a host keeps its weights elsewhere."""
SHOWN = 4
"""Names in one sentence; the rest is counted."""

COMPILE_KEY = "torch.compile"
"""The host's wrapper key. Compiling changes the rounding, not the picture."""
PRECISION = "manual_cast_dtype"
"""An object patch that is told as the precision."""
BYPASS = "bypass_lora"
"""The host's key of LoRAs that run beside the weights."""
HARMLESS_CALLBACKS = ("on_clone", "on_deepclone_multigpu", "on_match_multigpu_clones", "on_cleanup", "on_detach_after")
HARMLESS_OPTIONS = ("transformer_options", "torch_compile_kwargs", "multigpu_clones", "ignore_multigpu")
HARMLESS_OPTIONS += ("disable_cfg1_optimization",)
"""Of these the last costs time only: the negative prompt is evaluated at cfg 1 too."""
OWN = "budgetfusion"
"""Keys of our own wrappers begin so."""


def read_changes(model: Any, weights: WeightPatches) -> tuple[Message, ...]:
    """One Message for each kind of change that a planner calibrated on the plain model cannot know of."""
    return tuple(
        found
        for kind in (
            _merge(weights),
            _lora(weights),
            _beside(model),
            _sampling(model),
            _objects(model),
            _run_time(model),
        )
        for found in kind
    )


def _merge(weights: WeightPatches) -> Iterator[Message]:
    if weights.merged:
        yield message("model_merge", n=weights.merged)


def _lora(weights: WeightPatches) -> Iterator[Message]:
    if weights.lora_weights:
        yield message("model_lora", n=weights.loras, weights=weights.lora_weights, which=weights.lora_digest)


def _beside(model: Any) -> Iterator[Message]:
    """What runs beside the weights or changes them while sampling."""
    injections = {str(key): held for key, held in (getattr(model, "injections", None) or {}).items() if held}
    beside = injections.pop(BYPASS, None)
    if beside:
        yield message("model_bypass_lora", which=adapters_digest(_bypassing(beside)) or UNSEEN)
    if injections:
        yield message("model_injections", names=_some(injections))
    hooks = getattr(model, "hook_patches", None)
    if hooks:
        listed = [(key, *patch[:2]) for by_key in hooks.values() for key, held in by_key.items() for patch in held]
        yield message("model_hooks", which=adapters_digest(listed) or UNSEEN)
    wrapped = getattr(model, "weight_wrapper_patches", None)
    if wrapped:
        yield message("model_weight_functions", n=len(wrapped))
    others = [key for key, held in (getattr(model, "additional_models", None) or {}).items() if held]
    others += [str(key) for key in getattr(model, "attachments", None) or {}]
    if _without(others, "multigpu"):
        yield message("model_additional", names=_some(_without(others, "multigpu")))


def _bypassing(injections: Iterable[Any]) -> Iterator[tuple[str, Any, Any]]:
    """(key, strength, adapter) of LoRAs in bypass mode: the host keeps them in what its injections close over."""
    for injection in injections:
        for held in _closed_over(getattr(injection, "inject", None)).values():
            adapters = getattr(held, "adapters", None)
            if isinstance(adapters, Mapping):
                yield from ((key, strength, adapter) for key, (adapter, strength) in adapters.items())


def _sampling(model: Any) -> Iterator[Message]:
    if OBJECT in (getattr(model, "object_patches", None) or {}):
        now, loaded = read_sampling(model), loaded_sampling(model)
        if now.text() != loaded.text():
            yield message("model_sampling", now=now.text(), loaded=loaded.text())


def _objects(model: Any) -> Iterator[Message]:
    patches: Mapping[str, Any] = getattr(model, "object_patches", None) or {}
    names = [name for name, new in patches.items() if name not in (OBJECT, PRECISION) and not _is_compiled(new)]
    if names:
        yield message("model_objects", names=_some(names))


def _is_compiled(thing: Any) -> bool:
    return COMPILED in getattr(thing, "_modules", {})


def _run_time(model: Any) -> Iterator[Message]:
    """Functions that the host calls around the denoiser."""
    options: Mapping[str, Any] = getattr(model, "model_options", None) or {}
    inside: Mapping[str, Any] = options.get("transformer_options") or {}
    wrappers = {**_registered(getattr(model, "wrappers", None)), **_registered(inside.get("wrappers"))}
    callbacks = {**_registered(getattr(model, "callbacks", None)), **_registered(inside.get("callbacks"))}
    named = [key or kind for kind, key in wrappers if key != COMPILE_KEY and not key.startswith(OWN)]
    if named:
        yield message("model_wrappers", names=_some(named))
    named = [key or kind for kind, key in callbacks if kind not in HARMLESS_CALLBACKS and not key.startswith(OWN)]
    if named:
        yield message("model_callbacks", names=_some(named))
    attention = [
        name for key, held in inside.items() if key not in ("wrappers", "callbacks") for name in _held(key, held)
    ]
    if attention:
        yield message("model_attention", names=_some(attention))
    named = [_with_maker(key, held) for key, held in options.items() if key not in HARMLESS_OPTIONS and _is_set(held)]
    if named:
        yield message("model_functions", names=_some(named))


def _registered(by_kind: Mapping[str, Mapping[Any, list[Any]]] | None) -> dict[tuple[str, str], None]:
    """(kind, key) of all that is registered; an empty key where it has no name."""
    return {
        (str(kind), str(key or "")): None
        for kind, by_key in (by_kind or {}).items()
        for key, listed in by_key.items()
        if listed
    }


def _held(key: str, held: Any) -> list[str]:
    """`patches` and `patches_replace` by the names of what they patch; other options by their own."""
    if key in ("patches", "patches_replace") and isinstance(held, Mapping):
        return [_with_maker(str(name), inner) for name, inner in held.items() if _is_set(inner)]
    return [_with_maker(key, held)] if _is_set(held) else []


def _is_set(held: Any) -> bool:
    return held is not None and held is not False and not (isinstance(held, (list, tuple, dict)) and not held)


def _with_maker(key: str, held: Any) -> str:
    """The option with the node or class that made its function and the numbers it was given, where those can be seen:
    `sampler_cfg_function (RescaleCFG multiplier 0.7)`."""
    parts = [_made_by(value) for value in _values(held)]
    parts += [*_plain(held)] if isinstance(held, Mapping) else [] if held is True else [_short(held)]
    told = dict.fromkeys(part for part in parts if part)
    return f"{key} ({', '.join(told)})" if told else key


def _values(held: Any) -> Iterable[Any]:
    if isinstance(held, Mapping):
        return list(held.values())
    return held if isinstance(held, (list, tuple)) else [held]


def _made_by(thing: Any) -> str:
    """The maker of a function, or the class of an object, with its settings; empty for plain values."""
    given: dict[str, Any] = {}
    while isinstance(thing, functools.partial):
        given |= thing.keywords
        thing = thing.func
    if thing is None or isinstance(thing, (str, int, float, Tensor, list, tuple, Mapping)):
        return ""
    name = getattr(thing, "__qualname__", type(thing).__name__).split(".")[0].removesuffix("<lambda>")
    return " ".join([name, *_plain(_closed_over(thing) | _constructed(thing) | given)])


def _closed_over(function: Any) -> dict[str, Any]:
    """What a function closes over, by its names, without what it writes itself: that is a state of the run."""
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None) or ()
    if code is None:
        return {}
    pairs = zip(code.co_freevars, cells, strict=False)
    return {name: held for name, cell in pairs if name not in _written(code) for held in _content(cell)}


def _content(cell: Any) -> Iterator[Any]:
    with suppress(ValueError):  # nothing in it yet
        held = cell.cell_contents
        seen = isinstance(held, dict) and any(not isinstance(key, (str, int, float)) for key in held)
        if not seen:  # devices and the like: what a run has shown to the function
            yield held


@functools.lru_cache(maxsize=128)
def _written(code: Any) -> frozenset[str]:
    return frozenset(step.argval for step in dis.get_instructions(code) if step.opname == "STORE_DEREF")


def _constructed(thing: Any) -> dict[str, Any]:
    """The attributes of an object that have the name of an argument of its class: others are a state of the run."""
    attributes = getattr(thing, "__dict__", {})
    return {name: attributes[name] for name in _arguments(type(thing)) if name in attributes}


@functools.lru_cache(maxsize=128)
def _arguments(kind: type) -> tuple[str, ...]:
    try:
        return tuple(inspect.signature(kind).parameters)
    except (TypeError, ValueError):
        return ()


def _plain(named: Mapping[str, Any]) -> Iterator[str]:
    """`name value` of numbers and short words, sorted."""
    texts = {str(name): _short(value) for name, value in named.items()}
    return (f"{name} {text}" for name, text in sorted(texts.items()) if text)


def _short(value: Any) -> str:
    """A number, a short word or a few of them as text; empty for anything else."""
    if isinstance(value, (int, float, str)):
        text = f"{value:g}" if isinstance(value, float) else str(value)
    elif isinstance(value, (list, tuple, Mapping)):
        texts = [_short(part) for part in _values(value)]
        text = "/".join(texts) if all(texts) else ""
    else:
        text = ""
    return text if len(text) <= LONGEST else ""


def _without(names: Iterable[Any], unwanted: str) -> list[str]:
    return [str(name) for name in names if name != unwanted]


def _some(names: Iterable[str]) -> str:
    """The first SHOWN, sorted, and how many more there are."""
    listed = sorted(set(names))
    rest = len(listed) - SHOWN
    return ", ".join(listed[:SHOWN]) + (f" (+ {rest})" if rest > 0 else "")
