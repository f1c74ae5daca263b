"""Named errors. Every message says what was wrong, what was expected and what the artist can do about it."""

from __future__ import annotations

from .messages import Message, verbatim


class BudgetFusionError(Exception):
    """Base of all errors this pack raises on purpose; nodes turn each into a stated fallback or a clear message."""

    def __init__(self, said: Message | str) -> None:
        """said: a Message where the sentence may be shown on a node; plain text for a command line."""
        self.message = said if isinstance(said, Message) else verbatim(said)
        super().__init__(self.message.text())


class InputError(BudgetFusionError):
    """A value typed or connected by the artist cannot be used. The message names the input and the remedy."""


class PlannerFileError(BudgetFusionError):
    """A planner file is missing, foreign, damaged, or of another version. Nothing was built from it."""


class UnsupportedError(BudgetFusionError):
    """A valid input that this planner or sampler cannot serve, such as conditioning of another text encoder."""


class BackendMissingError(BudgetFusionError):
    """A metric backend or its weights are not installed. The message names what to install."""
