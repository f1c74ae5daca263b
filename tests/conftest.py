"""Shared by all tests: where the genuine ComfyUI is. Nothing is imported from it here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PREFERRED = "0.30.0"


def find_host() -> Path | None:
    """BUDGETFUSION_TEST_HOST, else COMFYUI_PATH, else what run.py fetched (the preferred version first)."""
    for variable in ("BUDGETFUSION_TEST_HOST", "COMFYUI_PATH"):
        if os.environ.get(variable):
            return Path(os.environ[variable])
    run_dir = Path(os.environ.get("BUDGETFUSION_RUN_DIR") or ROOT / ".run")
    fetched = sorted((run_dir / "host").glob("*/nodes.py"), key=lambda p: p.parent.name != PREFERRED)
    return fetched[0].parent if fetched else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order in which `run.py test` hands files to its workers."""
    items.sort(key=lambda item: item.get_closest_marker("long_file") is None)


@pytest.fixture(scope="session")
def host_dir() -> Path:
    """The ComfyUI folder that this run tests. A missing host fails: a skipped host test would pass unseen."""
    found = find_host()
    if found is None:
        pytest.fail("No ComfyUI found. Run 'python3 run.py test', or set BUDGETFUSION_TEST_HOST to a ComfyUI folder.")
    return found
