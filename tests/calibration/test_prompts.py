"""The built-in list, and which prompts are rendered in which order."""

from __future__ import annotations

from collections import Counter

import torch

from budgetfusion_nodes.calibration.prompts import built_in, farthest_points, from_text, position, rendering_order
from budgetfusion_nodes.calibration.records import Encoded
from tests.calibration.stub import StubRenderer, stub_prompts

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
