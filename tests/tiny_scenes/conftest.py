"""Fixtures of tests/fixtures."""

from tests.fixtures.scenes import comfy, make_group, make_plain  # noqa: F401 - fixtures
