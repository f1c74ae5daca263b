"""What was done to a MODEL since it was loaded, each kind of change by its name."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..core.messages import Message, message
from .model_sampling import OBJECT, loaded_sampling, read_sampling
from .patches import WeightPatches
from .weights import COMPILED

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
        yield message("model_lora", n=weights.loras, weights=weights.lora_weights)


def _beside(model: Any) -> Iterator[Message]:
    """What runs beside the weights or changes them while sampling."""
    injections = {str(key): held for key, held in (getattr(model, "injections", None) or {}).items() if held}
    if injections.pop(BYPASS, None):
        yield message("model_bypass_lora")
    if injections:
        yield message("model_injections", names=_some(injections))
    if getattr(model, "hook_patches", None):
        yield message("model_hooks")
    wrapped = getattr(model, "weight_wrapper_patches", None)
    if wrapped:
        yield message("model_weight_functions", n=len(wrapped))
    others = [key for key, held in (getattr(model, "additional_models", None) or {}).items() if held]
    others += [str(key) for key in getattr(model, "attachments", None) or {}]
    if _without(others, "multigpu"):
        yield message("model_additional", names=_some(_without(others, "multigpu")))


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
    """The option, and the node or class that made its function, where that can be seen: `sampler_cfg_function
    (RescaleCFG)`."""
    makers = dict.fromkeys(maker for maker in map(_maker, _functions(held)) if maker)
    return f"{key} ({', '.join(makers)})" if makers else key


def _functions(held: Any) -> Iterable[Any]:
    if isinstance(held, Mapping):
        return list(held.values())
    return held if isinstance(held, (list, tuple)) else [held]


def _maker(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    if not callable(function):
        return ""
    name = getattr(function, "__qualname__", type(function).__name__)
    return name.split(".")[0].removesuffix("<lambda>")


def _without(names: Iterable[Any], unwanted: str) -> list[str]:
    return [str(name) for name in names if name != unwanted]


def _some(names: Iterable[str]) -> str:
    """The first SHOWN, sorted, and how many more there are."""
    listed = sorted(set(names))
    rest = len(listed) - SHOWN
    return ", ".join(listed[:SHOWN]) + (f" (+ {rest})" if rest > 0 else "")
