"""The official template graphs, which nobody here wrote, with our nodes swapped in, before the host's own validator."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from budgetfusion_nodes.command_line.page_format import to_prompt
from research.corpus.families import FAMILIES, UNKNOWN, family_of
from research.corpus.package import SAMPLERS, read_page, sampling_prompts, template_files
from research.corpus.swap import ADAPTIVE, PLANNER, swap
from research.corpus.table import PAGE, page_for
from research.corpus.uses import uses_of
from research.corpus.validation import Verdict, problems, stand_in_files, verdicts, with_files
from tests.conftest import PREFERRED

GRAPHS = 241
"""With an active sampler, in the pinned version of the package; counted by hand as well (issue 12)."""
FROM_THE_PAGE = Path(__file__).parents[1] / "cases" / "page_prompts.json"
"""What graphToPrompt of the page (frontend 1.58.1, ComfyUI 0.30.0) made of some templates; long texts by length."""
UNCHANGED = ("image_flux2_klein_image_edit_4b_distilled", "sdxl_simple_example", "flux_kontext_dev_basic")
"""Of these, whose nodes have the same inputs in the older host."""


@pytest.fixture(scope="module")
def host(session: Any) -> Iterator[Any]:
    """The host with all nodes that come with it, and files to choose."""
    session.wait(sys.modules["nodes"].init_builtin_extra_nodes())
    with stand_in_files(session):
        yield session


@pytest.fixture(scope="module")
def judged(host: Any) -> list[Verdict]:
    return list(verdicts(host))


def test_our_nodes_are_valid_in_every_graph(judged: list[Verdict]) -> None:
    """What is refused, the host refuses for its own sake: a node or an option that it does not have yet."""
    by_class = Counter(kind for verdict in judged for kind in verdict.samplers)
    good = Counter(kind for verdict in judged if verdict.passed for kind in verdict.samplers)
    complete = [verdict for verdict in judged if not verdict.lacking]
    print(f"{sum(v.passed for v in judged)} of {len(judged)} graphs; sampler nodes {dict(good)} of {dict(by_class)}")
    print(
        f"{len(complete)} graphs with nodes of this host alone, {sum(not v.stock for v in complete)} without complaint"
    )
    for kind, graphs in Counter(kind for verdict in judged for kind in verdict.lacking).most_common():
        print(f"host lacks node {kind}: {graphs} graphs")
    assert len(judged) == GRAPHS
    assert set(by_class) == set(SAMPLERS)
    assert {verdict.name: verdict.ours for verdict in judged if not verdict.passed} == {}


def test_the_stock_graphs_themselves_are_valid(judged: list[Verdict]) -> None:
    """Else the conversion would be wrong, and the test above would look at nothing."""
    complete = [verdict for verdict in judged if not verdict.lacking]
    assert len(complete) > GRAPHS / 2
    assert sum(not verdict.stock for verdict in complete) > 0.85 * len(complete)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"max_steps": 0}, "value_smaller_than_min"),
        ({"sampler_name": "no such sampler"}, "value_not_in_list"),
        ({"model": None}, "required_input_missing"),
        ({"steps_from_plan": True}, "return_type_mismatch"),
    ],
)
def test_a_swap_gone_wrong_is_found(host: Any, change: dict[str, Any], error: str) -> None:
    info = host.object_info()
    prompt = next(p for name, _, p in sampling_prompts(info) if name == "sdxl_simple_example")
    swapped = swap(with_files(prompt, info), info)
    assert problems(host, swapped.prompt) == set()
    planner = next(number for number in swapped.ours if swapped.prompt[number]["class_type"] == PLANNER)
    if change.pop("steps_from_plan", False):
        swapped.prompt[planner.removesuffix("-plan")]["inputs"]["steps"] = [planner, 0]
    swapped.prompt[planner]["inputs"].update(change)
    for name in [name for name, value in swapped.prompt[planner]["inputs"].items() if value is None]:
        del swapped.prompt[planner]["inputs"][name]
    assert error in {found for _, _, found, _ in problems(host, swapped.prompt)}


def test_every_sampler_is_swapped_and_keeps_its_setting(host: Any) -> None:
    info = host.object_info()
    for name, _, prompt in sampling_prompts(info):
        swapped = swap(prompt, info)
        stock = [number for number, node in prompt.items() if node["class_type"] in SAMPLERS]
        assert len(swapped.ours) == len(stock), name
        for number, node in prompt.items():
            if node["class_type"] == "KSampler":
                ours = swapped.prompt[number]
                assert ours["class_type"] == ADAPTIVE
                assert ours["inputs"]["max_steps"] == node["inputs"]["steps"], name
                kept = {key: value for key, value in node["inputs"].items() if key != "steps"}
                assert {key: ours["inputs"][key] for key in kept} == kept, name


def test_the_conversion_is_the_pages_own(host: Any) -> None:
    """Nested subgraphs, promoted widgets, Primitive, Reroute, bypassed nodes: as the page itself sends them."""
    info = host.object_info()
    recorded = json.loads(FROM_THE_PAGE.read_text(encoding="utf-8"))
    if host.version != PREFERRED:
        recorded = {name: recorded[name] for name in UNCHANGED}
    files = {file.stem: file for file in template_files()}
    for name, expected in recorded.items():
        made = to_prompt(read_page(files[name]), info)
        assert {number: sent(node) for number, node in made.items()} == expected, name


def sent(node: dict[str, Any]) -> dict[str, Any]:
    """A node as the record has it."""
    inputs = {name: shortened(value) for name, value in node["inputs"].items()}
    return {"class_type": node["class_type"], "inputs": inputs}


def shortened(value: Any) -> Any:
    return f"{len(value)} characters" if isinstance(value, str) and len(value) > 40 else value


def test_every_model_of_the_corpus_has_its_family(host: Any) -> None:
    files = {
        use.model_file for name, _, prompt in sampling_prompts(host.object_info()) for use in uses_of(name, prompt)
    }
    assert {file for file in files if family_of(file) is UNKNOWN} == set()
    assert {family_of(file).name for file in files} == {family.name for family in FAMILIES}


def test_the_page_of_models_says_what_the_pack_does(host: Any) -> None:
    """docs/models.md is what `python -m research models` writes. Older hosts have other definitions of some nodes."""
    made = page_for(host)
    assert "| Qwen-Image |" in made
    if host.version == PREFERRED:
        assert PAGE.read_text(encoding="utf-8") == made, "run: python -m research models"
