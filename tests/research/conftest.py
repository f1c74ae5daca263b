"""Fixtures of tests/fixtures."""

from tests.fixtures.datasets import _make_dataset  # noqa: F401 - fixtures
