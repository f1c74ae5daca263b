"""The host's memory and its cancel button, as a long job needs them."""

from __future__ import annotations

import gc
import importlib
from typing import Any

import torch


def management() -> Any:
    """The host's `comfy.model_management`."""
    return importlib.import_module("comfy.model_management")


def render_device() -> torch.device:
    """Where the host samples."""
    return management().get_torch_device()


def make_room(needed: int) -> None:
    """Asks the host to unload models until `needed` bytes are free on the render device."""
    management().free_memory(needed, render_device())


def unload_everything() -> None:
    """Before a failed render is tried again."""
    management().unload_all_models()
    gc.collect()
    management().soft_empty_cache()


def stop_if_cancelled() -> None:
    """Raises the host's own exception where the artist pressed cancel."""
    management().throw_exception_if_processing_interrupted()


def is_cancel(error: BaseException) -> bool:
    """Whether this is the host's cancel: a BaseException in newer hosts, an Exception in older ones."""
    return isinstance(error, management().InterruptProcessingException)


def is_out_of_memory(error: BaseException) -> bool:
    """The host's own judgement where it has one, else the words that PyTorch uses on every device."""
    known = management().OOM_EXCEPTION
    if known is not Exception and isinstance(error, known):
        return True
    text = str(error).lower()
    return isinstance(error, (RuntimeError, MemoryError)) and ("out of memory" in text or "not enough memory" in text)
