"""The built-in list, and which prompts are rendered in which order."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin

from budgetfusion_nodes.calibration.prompts import (
    built_in,
    farthest_points,
    from_file,
    from_text,
    position,
    rendering_order,
)
from budgetfusion_nodes.calibration.records import Encoded
from budgetfusion_nodes.core.errors import InputError
from tests.calibration.stub import StubRenderer, stub_prompts
from tests.fixtures.graphs import node

CATEGORIES = {"subject", "style", "complexity", "text", "people", "animals", "places", "abstract"}


def test_the_built_in_list_is_as_large_and_varied_as_it_says() -> None:
    prompts = built_in()
    words = [len(prompt.text.split()) for prompt in prompts]
    counted = Counter(prompt.category for prompt in prompts)
    assert len(prompts) >= 400
    assert set(counted) == CATEGORIES
    assert min(counted.values()) >= 40
    assert len({" ".join(sorted(prompt.text.lower().split())) for prompt in prompts}) == len(prompts), "no duplicates"
    assert min(words) == 1
    assert 40 <= max(words) <= 80
    vocabulary = {word.strip(".,:;\"'()") for prompt in prompts for word in prompt.text.lower().split()}
    assert len(vocabulary) > 2000, "no list of one pattern"


def test_farthest_points_of_a_line_are_its_ends() -> None:
    points = torch.tensor([[0.0], [1.0], [2.0], [5.0], [9.0], [10.0]])
    assert farthest_points(points, [], 4) == [3, 0, 5, 2], "the middle, the ends, then the widest gap"
    first = farthest_points(points, [], 2)
    assert farthest_points(points, first, 2) == farthest_points(points, [], 4)[2:], "goes on where it was"


def test_chosen_prompts_cover_more_than_the_first_ones() -> None:
    renderer = StubRenderer(20)
    prompts = stub_prompts(200)
    encode = lambda prompt: renderer.encode(prompt.text)  # noqa: E731
    order = rendering_order(prompts, 28, encode)
    assert len({p.text for p in order}) == 28

    def radius(chosen: list) -> float:
        """The largest distance from any candidate to its nearest chosen one."""
        everyone = torch.stack([position(encode(p)) for p in prompts])
        kept = torch.stack([position(encode(p)) for p in chosen])
        return float(torch.cdist(everyone, kept).amin(1).mean())

    assert radius(order) < radius(prompts[:28]) * 1.05


def test_a_thorough_order_begins_with_the_quick_one() -> None:
    renderer = StubRenderer(20)
    encode = lambda prompt: renderer.encode(prompt.text)  # noqa: E731
    quick, standard = (rendering_order(stub_prompts(400), n, encode) for n in (28, 90))
    assert standard[:28] == quick
    assert len(set(standard)) == 90


def test_seeds_belong_to_the_prompt_alone() -> None:
    one, again = from_text("a fox")[0], from_text("\n a   fox \n# x\n")[0]
    assert one == again
    assert one.seed(0) == again.seed(0) != one.seed(1)
    assert 0 <= one.seed(0) < 2**48


def test_prompts_lie_where_their_meaning_does() -> None:
    near = Encoded.of(torch.ones(3, 4), None)
    assert torch.allclose(position(near), position(Encoded.of(torch.ones(9, 4) * 7.0, None)))


# ---------------------------------------------------------------------------------------------------------------- files


def read(path: Path, content: str, newline: str = "\n", encoding: str = "utf-8") -> list[str]:
    path.write_bytes(content.replace("\n", newline).encode(encoding))
    return [prompt.text for prompt in from_file(path)]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_wildcard_file_of_any_system(newline: str, encoding: str, tmp_path: Path) -> None:
    content = "# animals\na fox\n\n  a  grey wolf\n\ta fox\n   # no more\n" + "x" * 5000 + "\nun ren\u00e9 #1\n"
    assert read(tmp_path / "list.txt", content, newline, encoding) == ["a fox", "a grey wolf", "un ren\u00e9 #1"]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.tsv", "prompt\na cat, asleep\na dog\n", ["a cat, asleep", "a dog"]),
        ("a.csv", "prompt\na cat, asleep\na dog\n", ["a cat, asleep", "a dog"]),
        ("a.csv", 'name,prompt\none,"a cat, asleep"\ntwo,"a ""big"" dog"\n', ["a cat, asleep", 'a "big" dog']),
        ("a.csv", "name;prompt\none;a cat, asleep\n", ["a cat, asleep"]),
        ("a.tsv", 'prompt\tkind\n"STOP" in red letters\ttext\n"open\ttext\na dog\tanimal\n', 3),
        ("a.tsv", "animal\ta cat\nanimal\ta dog\n\n", ["a cat", "a dog"]),
        ("a.csv", "prompt\n" + "x" * 200_000 + "\na dog\n", ["a dog"]),
        ("a.json", '{"prompts": ["a cat", {"text": "a dog"}, {"prompt": 3}, 4, null, "a cat"]}', ["a cat", "a dog"]),
    ],
)
def test_tables_and_lists(name: str, content: str, found: Any, tmp_path: Path) -> None:
    texts = read(tmp_path / name, content)
    assert texts == found if isinstance(found, list) else len(texts) == found


def test_what_is_no_list_of_prompts_is_said(tmp_path: Path) -> None:
    for name, content in (
        ("a.json", b"[1"),
        ("a.json", b"3"),
        ("a.txt", b"\xff\xfea\x00"),
        ("a.txt", b"# x\n"),
        ("a.tsv", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=r"prompts: a\."):
            from_file(tmp_path / name)
    with pytest.raises(InputError, match="nothing"):
        from_file(tmp_path / "nothing.txt")


# ------------------------------------------------------------------------------------------------------------- pictures


LOADER = node("DualCLIPLoader", clip_name1="a_very_long_name_of_a_text_encoder.safetensors", clip_name2="b")
FLUX = {
    "1": LOADER,
    "2": node("CLIPTextEncodeFlux", clip=["1", 0], clip_l="fox", t5xxl="a fox asleep", guidance=3.5),
    "3": node("BasicGuider", model=["9", 0], conditioning=["2", 0]),
    "4": node("SamplerCustomAdvanced", guider=["3", 0]),
}
LINKED = {
    "1": LOADER,
    "2:7": node("PrimitiveStringMultiline", value="a fox asleep"),
    "2:8": node("CLIPTextEncode", clip=["1", 0], text=["2:7", 0]),
    "3": node("ControlNetApplyAdvanced", positive=["2:8", 0], negative=["5", 0], strength=1.0),
    "4": node("KSampler", positive=["3", 0], negative=["3", 1]),
    "5": node("CLIPTextEncode", clip=["1", 0], text="a blurred and ugly picture"),
}
LUMINA = {
    "1": LOADER,
    "2": node("CLIPTextEncodeLumina2", clip=["1", 0], system_prompt="superior_and_longer", user_prompt="a fox asleep"),
    "4": node("BudgetFusion_AdaptiveKSampler", positive=["2", 0], negative=["2", 0]),
}
SD3 = {
    "2": node("CLIPTextEncodeSD3", clip_l="a fox asleep", clip_g="", t5xxl="", empty_padding="none"),
    "3": node("ConditioningCombine", conditioning_1=["2", 0], conditioning_2=["3", 0]),
    "4": node("DualCFGGuider", cond1=["3", 0], cond2=["2", 0], negative=["5", 0]),
    "5": node("TextEncodeQwenImageEditPlus", prompt="a blurred and ugly picture"),
}
TEXT_ALONE = {"1": node("Efficient Loader", positive="a fox asleep", negative="a blurred and ugly picture")}


@pytest.mark.parametrize(
    "graph", [FLUX, LINKED, LUMINA, SD3, TEXT_ALONE], ids=["flux", "linked", "lumina", "sd3", "text"]
)
def test_the_prompt_of_a_picture_is_found_in_every_kind_of_graph(graph: dict[str, Any], tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", json.dumps(graph).replace("3.5", "NaN"))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    assert [prompt.text for prompt in from_file(tmp_path / "a.png")] == ["a fox asleep"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"1": {"inputs": {"positive": ["1", 0], "negative": [{}, 1]}}}'])
def test_a_picture_without_a_prompt_is_said(text: str, tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(InputError, match="no prompt"):
        from_file(tmp_path / "a.png")
