"""What ends the demo."""

from __future__ import annotations


class DemoError(Exception):
    """One sentence that says what went wrong and one that says what to do."""
