"""The stub renderers of the campaign, under the name that the tests here know."""

from research.campaign.stub import (
    BACKENDS,
    SETTING,
    SIZE,
    StubLooker,
    StubReference,
    StubRenderer,
    difficulty,
    karras,
    stub_executor,
    stub_prompts,
)

__all__ = [
    "BACKENDS",
    "SETTING",
    "SIZE",
    "StubLooker",
    "StubReference",
    "StubRenderer",
    "difficulty",
    "karras",
    "stub_executor",
    "stub_prompts",
]
