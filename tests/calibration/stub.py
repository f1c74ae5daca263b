"""The stub renderer of the campaign, under the name that the tests here know."""

from research.campaign.stub import (
    BACKENDS,
    SETTING,
    SIZE,
    StubReference,
    StubRenderer,
    difficulty,
    stub_executor,
    stub_prompts,
)

__all__ = [
    "BACKENDS",
    "SETTING",
    "SIZE",
    "StubReference",
    "StubRenderer",
    "difficulty",
    "stub_executor",
    "stub_prompts",
]
