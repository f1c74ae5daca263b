"""`python -m research models`: see table.py, which is imported on use."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from research.options import ROOT, add_host_option


def add_parser(groups: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `models`."""
    text = "write docs/models.md: what the pack does in the official template graphs"
    parser = groups.add_parser("models", help=text)
    add_host_option(parser)
    page = ROOT / "docs" / "models.md"
    parser.add_argument("--out", type=Path, default=page, metavar="FILE", help="where to write (default: %(default)s)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from research.in_process_host import PACK_ROOT, start_host

    from .table import page_for

    with tempfile.TemporaryDirectory() as base:
        text = page_for(start_host(options.host, base, [PACK_ROOT], extras=None))
    options.out.write_text(text, encoding="utf-8")
    return 0
