"""A run folder of its own for each test, and a small package index on disk in place of the network."""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from launcher.layout import Layout


def make_wheel(folder: Path, name: str, version: str, content: str = "VALUE = 1\n") -> Path:
    """A genuine wheel with one module, so that the genuine pip has something to install without a network."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}\n"
        for path, text in files.items()
    )
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")
    return wheel


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setenv("BUDGETFUSION_RUN_DIR", str(tmp_path / "run"))
    for name in ("COMFYUI_PATH", "COMFYUI_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    made = Layout.from_environment()
    made.run_dir.mkdir()
    return made


def without_network(index: Path | None = None) -> dict[str, str]:
    """An environment in which pip knows nothing but a folder of wheels, or nothing but a port where nobody listens."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "COMFYUI_"))}
    kept.update(PIP_CONFIG_FILE=os.devnull, PIP_RETRIES="1", PIP_NO_CACHE_DIR="1")
    if index is None:
        kept.update(PIP_INDEX_URL="http://127.0.0.1:9/simple")
    else:
        kept.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(index))
    return kept
