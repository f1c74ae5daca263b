"""Writes docs/reliability.md and reliability.json: the promises, what holds each, and a table a part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from budgetfusion_nodes.core.files import in_one_piece

from .part import PROMISES
from .registry import NAMES

TEMPLATES = Path(__file__).parent / "templates"
PAGE, FIGURES = "reliability.md", "reliability.json"
SHOWN = 220
"""Letters of a text in a cell."""

TESTS: Mapping[str, tuple[str, ...]] = {
    "kept": ("tests/calibration/test_job.py", "tests/calibration/test_store_faults.py"),
    "same": ("tests/calibration/test_job.py", "tests/calibration/test_store.py"),
    "shared": ("tests/calibration/test_claims.py", "tests/calibration/test_store.py"),
    "set_aside": ("tests/calibration/test_store.py", "tests/calibration/test_store_faults.py"),
    "goes_on": ("tests/host/test_planner_files.py", "tests/host/test_memory.py", "tests/host/test_campaign.py"),
    "refused": ("tests/predictor/test_planner_file.py", "tests/calibration/test_store.py"),
    "flat": ("tests/host/test_prefix_cache.py",),
    "confined": ("tests/host/test_planner_folders.py", "tests/web/page_markup.mjs"),
    "once": ("tests/calibration/test_ray_executor.py", "tests/run/test_calibrate_command.py"),
    "opens": ("tests/calibration/test_store.py",),
}
"""Promise -> what every change is tested by, besides the quick amount of the parts."""


def write_report(out: Path, fresh: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """fresh: part -> result. Parts without a fresh one stay as the folder's reliability.json has them. Gives all."""
    out.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = {}
    if (out / FIGURES).is_file():
        known = json.loads((out / FIGURES).read_text(encoding="utf-8"))["parts"]
    found = {**known, **fresh}
    parts = {name: found[name] for name in NAMES if name in found}
    _write(out / PAGE, page(parts))
    _write(out / FIGURES, json.dumps({"promises": dict(PROMISES), "parts": parts}, indent=1, allow_nan=False) + "\n")
    return parts


def _write(path: Path, text: str) -> None:
    with in_one_piece(path) as partial:
        partial.write_text(text, encoding="utf-8")


def page(parts: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = _cell
    about = {code: [n for n, part in parts.items() if _tells(part, code)] for code in PROMISES}
    return environment.get_template(f"{PAGE}.j2").render(
        promises=PROMISES, tests=TESTS, parts=parts, about=about, missing=[name for name in NAMES if name not in parts]
    )


def _cell(value: Any) -> str:
    """A figure as a cell of a table shows it; all of it is in the JSON file."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value if isinstance(value, (str, int)) else len(value))
    text = text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _tells(part: Mapping[str, Any], code: str) -> bool:
    return any(one["promise"] == code for one in part["findings"])
