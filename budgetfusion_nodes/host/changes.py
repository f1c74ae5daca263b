"""What was done to a MODEL since it was loaded, each kind of change by its name."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

from ..core.messages import Message, message
from .contents import closed_over
from .in_place import replaced_in_place
from .model_sampling import OBJECT, loaded_sampling, read_sampling
from .patch_names import PatchNames
from .patches import WeightPatches, bypass_digest, hook_digest
from .weights import COMPILED

UNSEEN = "?"
"""In place of a LoRA's fingerprint, where a host keeps its weights elsewhere."""

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
REGISTERED = ("wrappers", "callbacks")
OWN = "budgetfusion"
"""Keys of our own wrappers begin so."""


def read_changes(model: Any, weights: WeightPatches) -> tuple[Message, ...]:
    """One Message for each kind of change that a planner calibrated on the plain model cannot know of."""
    names = PatchNames(
        model, [getattr(model, part, None) for part in ("model_options", "object_patches", "injections")]
    )
    return tuple(
        found
        for kind in (
            _merge(weights),
            _lora(weights),
            _beside(model, names),
            _sampling(model),
            _objects(model, names),
            _run_time(model, names),
        )
        for found in kind
    )


def _merge(weights: WeightPatches) -> Iterator[Message]:
    if weights.merged:
        yield message("model_merge", n=weights.merged)


def _lora(weights: WeightPatches) -> Iterator[Message]:
    if weights.lora_weights:
        yield message("model_lora", n=weights.loras, weights=weights.lora_weights, which=weights.lora_digest)


def _beside(model: Any, names: PatchNames) -> Iterator[Message]:
    """What runs beside the weights or changes them while sampling."""
    injections = {str(key): held for key, held in (getattr(model, "injections", None) or {}).items() if held}
    beside = injections.pop(BYPASS, None)
    if beside:
        yield message("model_bypass_lora", which=" ".join(_bypassing(beside)) or UNSEEN)
    if injections:
        yield message("model_injections", **names.all(injections))
    if getattr(model, "hook_patches", None):
        yield message("model_hooks", which=hook_digest(model) or UNSEEN)
    wrapped = getattr(model, "weight_wrapper_patches", None)
    if wrapped:
        yield message("model_weight_functions", n=len(wrapped), **names.all(wrapped, maker=True))
    others = {key: held for key, held in (getattr(model, "additional_models", None) or {}).items() if held}
    others |= getattr(model, "attachments", None) or {}
    others.pop("multigpu", None)
    if others:
        yield message("model_additional", **names.all({str(key): held for key, held in others.items()}))


def _bypassing(injections: Iterable[Any]) -> Iterator[str]:
    """A digest of each set of LoRAs in bypass mode: the host keeps them in what its injections close over."""
    for injection in injections:
        for held in closed_over(getattr(injection, "inject", None)).values():
            adapters = getattr(held, "adapters", None)
            if isinstance(adapters, Mapping) and all(isinstance(pair, tuple) for pair in adapters.values()):
                yield bypass_digest(held)


def _sampling(model: Any) -> Iterator[Message]:
    if OBJECT in (getattr(model, "object_patches", None) or {}):
        now, loaded = read_sampling(model), loaded_sampling(model)
        if now.text() != loaded.text():
            yield message("model_sampling", now=now.text(), loaded=loaded.text())


def _objects(model: Any, names: PatchNames) -> Iterator[Message]:
    patches: Mapping[str, Any] = getattr(model, "object_patches", None) or {}
    told = {**replaced_in_place(model), **patches}
    told = {n: new for n, new in told.items() if n not in (OBJECT, PRECISION) and not _is_compiled(new)}
    if told:
        yield message("model_objects", **names.all(told, maker=True))


def _is_compiled(thing: Any) -> bool:
    return COMPILED in getattr(thing, "_modules", {})


def _run_time(model: Any, names: PatchNames) -> Iterator[Message]:
    """Functions that the host calls around the denoiser."""
    options: Mapping[str, Any] = getattr(model, "model_options", None) or {}
    inside: Mapping[str, Any] = options.get("transformer_options") or {}
    wrappers = _registered(getattr(model, "wrappers", None), inside.get("wrappers"))
    wrappers.pop(COMPILE_KEY, None)
    if wrappers:
        yield message("model_wrappers", **names.all(wrappers))
    callbacks = _registered(getattr(model, "callbacks", None), inside.get("callbacks"), HARMLESS_CALLBACKS)
    if callbacks:
        yield message("model_callbacks", **names.all(callbacks))
    attention = {n: h for key, held in inside.items() if key not in REGISTERED for n, h in _patches(key, held)}
    if attention:
        yield message("model_attention", **names.all(attention, maker=True))
    functions = {key: held for key, held in options.items() if key not in HARMLESS_OPTIONS and _is_set(held)}
    if functions:
        yield message("model_functions", **names.all(functions, maker=True))


def _registered(
    of_model: Mapping[str, Any] | None, of_options: Mapping[str, Any] | None, without: Container[str] = ()
) -> dict[str, list[Any]]:
    """All that is registered, by its key; by its kind where it has no name. Our own is none."""
    found: dict[str, list[Any]] = {}
    for kind, by_key in (*(of_model or {}).items(), *(of_options or {}).items()):
        for key, listed in by_key.items():
            if listed and kind not in without and not str(key or "").startswith(OWN):
                found.setdefault(str(key or kind), []).extend(listed)
    return found


def _patches(key: str, held: Any) -> list[tuple[str, Any]]:
    """`patches` and `patches_replace` by the names of what they patch; other options by their own."""
    if key in ("patches", "patches_replace") and isinstance(held, Mapping):
        return [(str(name), inner) for name, inner in held.items() if _is_set(inner)]
    return [(key, held)] if _is_set(held) else []


def _is_set(held: Any) -> bool:
    return held is not None and held is not False and not (isinstance(held, (list, tuple, dict)) and not held)
