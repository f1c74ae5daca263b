"""Fixtures of tests/fixtures."""

from tests.fixtures.datasets import _make_dataset  # noqa: F401 - fixtures
from tests.fixtures.planners import _make_planner, conditioning, planner  # noqa: F401 - fixtures
