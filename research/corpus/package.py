"""The registry package `comfyui-workflow-templates-json`: where its files are, and those that sample."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from budgetfusion_nodes.command_line.page_format import Info, to_prompt

PACKAGE = "comfyui-workflow-templates-json"
SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")

Prompt = dict[str, Any]
"""API format: node id -> {class_type, inputs}."""


class CorpusError(ValueError):
    """The template package is not installed."""


def installed_version() -> str:
    """Of the template package. CorpusError where it is missing."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise CorpusError(
            f"The package {PACKAGE} is not installed. Install it in the version that requirements/test.txt names."
        ) from None


def template_files() -> list[Path]:
    """Every graph of the package, by name; its indexes are left out."""
    installed_version()
    found = [Path(str(metadata.distribution(PACKAGE).locate_file(file))) for file in metadata.files(PACKAGE) or ()]
    return sorted(file for file in found if file.suffix == ".json" and _is_graph(file))


def _is_graph(file: Path) -> bool:
    return file.parent.name == "templates" and not file.name.startswith(("index", "fuse_options"))


def read_page(file: Path) -> Mapping[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def sampling_prompts(info: Info) -> Iterator[tuple[str, Mapping[str, Any], Prompt]]:
    """(name, page file, API prompt) of each template in which a sampler node is active, subgraphs included."""
    for file in template_files():
        page = read_page(file)
        prompt = to_prompt(page, info)
        if any(node["class_type"] in SAMPLERS for node in prompt.values()):
            yield file.stem, page, prompt
