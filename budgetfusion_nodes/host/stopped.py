"""How a node ends that has no render to go on with: at an error that nobody foresaw it says which stage failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..core.errors import BudgetFusionError
from ..core.messages import message
from ..core.stages import told
from .memory import is_cancel, is_out_of_memory, unload_everything


class StoppedError(BudgetFusionError):
    """A node's work was left at an error that nobody foresaw. The message names the stage, and what to do."""


@contextmanager
def naming_the_stage(node: str) -> Iterator[None]:
    """Whatever is raised inside leaves as a StoppedError, but for what this pack raises on purpose and the host's
    cancel. node: its name on the page. What caused it is in the host's log."""
    try:
        yield
    except Exception as error:
        if isinstance(error, BudgetFusionError) or is_cancel(error):
            raise
        if is_out_of_memory(error):
            unload_everything()  # the host does so for an error that it knows, and this one is in ours
        raise StoppedError(message("stopped", node=node, error=told(error))) from error
