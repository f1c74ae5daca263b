"""The host's queue: what runs now, and work that gives way to whatever the artist queues."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

QUEUE = "budgetfusion_queue"


class GivesWay(BaseException):
    """Something was queued. No error, so that no handler of errors keeps it."""


def others_wait() -> bool:
    """Whether the host's queue holds anything besides what runs now."""
    server = getattr(importlib.import_module("server").PromptServer, "instance", None)
    return server is not None and server.prompt_queue.get_tasks_remaining() > 1


def running_prompt() -> Any:
    """The API graph that the host runs now; None where it has no queue, or an empty one."""
    queue = getattr(getattr(importlib.import_module("server").PromptServer, "instance", None), "prompt_queue", None)
    running = list(getattr(queue, "currently_running", {}).values())
    return running[0][2] if running else None  # (number, id, prompt, ...)


def giving_way(model: Any) -> Any:
    """A clone of the MODEL whose sampling ends within one step when something is queued. GivesWay now, if it is."""
    if others_wait():
        raise GivesWay
    clone = model.clone()
    kinds = importlib.import_module("comfy.patcher_extension").WrappersMP
    clone.add_wrapper_with_key(kinds.OUTER_SAMPLE, QUEUE, _watched)
    return clone


def _watched(executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # outer_sample(noise, latent_image, sampler, sigmas, denoise_mask, callback, ...)
    own = kwargs["callback"] if "callback" in kwargs else args[5]

    def callback(*step: Any) -> None:
        if others_wait():
            raise GivesWay
        if own is not None:
            own(*step)

    if "callback" in kwargs:
        return executor(*args, **{**kwargs, "callback": callback})
    return executor(*args[:5], callback, *args[6:], **kwargs)
