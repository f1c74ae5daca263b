"""The one error that ends a command."""

from __future__ import annotations


class LaunchError(Exception):
    """Something the person at the terminal can mend: what is wrong, and what to do about it, in one sentence each."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem} {remedy}")
        self.problem = problem
        self.remedy = remedy
