"""Runs the browser code's own tests where there is a Node.js; nothing has to be installed for them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def test_node_tests_pass():
    node = shutil.which("node")
    if node is None:
        pytest.skip("No Node.js on this machine: the chart's own tests were not run. Install Node.js 20 or newer.")
    files = sorted(str(path) for path in FOLDER.glob("*.test.mjs"))
    done = subprocess.run(
        [node, "--test", "--test-reporter=tap", *files], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"^# pass (\d+)", done.stdout, re.MULTILINE)
    assert passed and int(passed.group(1)) > 45  # the shared cases alone are 45
