"""Whether a sentence names the stage that failed, or the reason."""

from __future__ import annotations

import re
from dataclasses import dataclass

from budgetfusion_nodes.core.messages import message
from research.in_process_host import HostRunError

A_STAGE = re.compile(r"\[[\w/]+\.py \w+\]")
ON_PURPOSE = ("InputError", "UnsupportedError", "PlannerFileError", "BackendMissingError", "StoreError")
"""The pack's errors that say what is wrong with something, and what to do."""
REASONS = (message("render_out_of_memory"), message("render_not_finite"), message("render_empty"))
"""Why a render is left out."""


@dataclass(frozen=True)
class Named:
    """A stage, as it is to be named."""

    stage: str | None
    """None: any will do."""

    def inside(self, text: str) -> bool:
        return bool(A_STAGE.search(text)) if self.stage is None else f"[{self.stage}]" in text


def explained(text: str) -> bool:
    """Whether it says why a render was left out."""
    return any(reason.text() in text for reason in REASONS)


def says(error: HostRunError, named: Named) -> bool:
    """Whether an error that stopped a node names the stage, or the reason."""
    own = error.exception_type.rpartition(".")[2]
    if named.stage is None and own == "CalibrationError":  # a wrong value may look like a model without a count
        return True
    return own in ON_PURPOSE or named.inside(error.message) or explained(error.message)
