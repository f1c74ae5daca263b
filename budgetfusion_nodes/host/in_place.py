"""Methods of a loaded network that another pack put in the place of its class's, past the host's patches."""

from __future__ import annotations

import importlib
import inspect
import weakref
from collections.abc import Iterator
from typing import Any

from torch import nn

from .weights import original_network

FORWARD = "forward"

Part = tuple[str, weakref.ref[nn.Module]]

_parts: weakref.WeakKeyDictionary[nn.Module, list[Part]] = weakref.WeakKeyDictionary()
"""Of each network, so that thousands of modules are not walked at every read."""


def replaced_in_place(model: Any) -> dict[str, Any]:
    """Path -> what stands there in place of a method: of the network any method, of its modules `forward`. Nothing
    while layers are changed by a run, which takes that back."""
    inner = model.model
    if not isinstance(inner, nn.Module) or _is_injected(inner):
        return {}
    by_run = getattr(model, "object_patches_backup", None) or {}
    network = original_network(model)
    found = dict(_methods(inner))
    found |= {f"diffusion_model.{name}": held for name, held in _methods(network) if network is not inner}
    for path, ref in _parts_of(network):
        module = ref()
        if module is not None and FORWARD in module.__dict__ and _is_other(module, FORWARD):
            found[f"diffusion_model.{path}.{FORWARD}"] = module.__dict__[FORWARD]
    return {path: held for path, held in found.items() if path not in by_run}


def _is_injected(inner: nn.Module) -> bool:
    """Whether a MODEL of this network is loaded whose layers the host has changed until it is unloaded."""
    loaded = importlib.import_module("comfy.model_management").current_loaded_models
    patchers = (one.model for one in loaded)
    return any(getattr(p, "is_injected", False) and getattr(p, "model", None) is inner for p in patchers)


def _parts_of(network: nn.Module) -> list[Part]:
    if network not in _parts:
        _parts[network] = [(name, weakref.ref(part)) for name, part in network.named_modules() if name]
    return _parts[network]


def _methods(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, held in module.__dict__.items():
        if callable(held) and _is_other(module, name):
            yield name, held


def _is_other(module: nn.Module, name: str) -> bool:
    """Whether the class has such a method, and this is another one. The host puts the class's own back as well."""
    own = getattr(type(module), name, None)
    return inspect.isfunction(own) and getattr(module.__dict__[name], "__func__", None) is not own
