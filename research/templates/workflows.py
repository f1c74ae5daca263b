"""The example graphs: one description each, written as a page file and as its API twin.

    python -m research.templates.workflows <ComfyUI folder>

writes `workflows/*.json` (the host lists them as templates), `workflows/api/*.json`, and the blueprint in
`subgraphs/`. `page.to_api` is the page's own conversion, repeated: the tests convert each page file with it and compare
with the twin.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.in_process_host import PACK_ROOT, start_host

from .blueprint import BLUEPRINT, blueprint_nodes, to_blueprint
from .examples import graphs
from .page import titled, to_api_twin, to_page

FOLDER = PACK_ROOT / "workflows"
BLUEPRINTS = PACK_ROOT / "subgraphs"
EXTRAS = (
    "nodes_custom_sampler.py",
    "nodes_flux.py",
    "nodes_mask.py",
    "nodes_model_advanced.py",
    "nodes_preview_any.py",
    "nodes_primitive.py",
    "nodes_sd3.py",
    "nodes_toolkit.py",
)
"""Files of the host's comfy_extras that define nodes of the graphs."""


def write(host_dir: str) -> list[Path]:
    """Writes page files, twins and the blueprint with the node definitions of the ComfyUI at `host_dir`; returns the
    paths."""
    with tempfile.TemporaryDirectory() as base:
        session = start_host(host_dir, base, [PACK_ROOT], extras=EXTRAS)
        written: list[Path] = []
        for graph in graphs():
            info = session.object_info(*{node.type for node in graph.nodes})
            shown = titled(graph, info)
            written += [
                _write(FOLDER / f"{graph.name}.json", to_page(shown, info)),
                _write(FOLDER / "api" / f"{graph.name}.json", to_api_twin(shown)),
            ]
        nodes = blueprint_nodes()
        info = session.object_info(*{node.type for node in nodes})
        written.append(_write(BLUEPRINTS / f"{BLUEPRINT}.json", to_blueprint(nodes, info)))
    return written


def _write(path: Path, content: Mapping[str, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    for file in write(sys.argv[1]):
        sys.stdout.write(f"{file}\n")
