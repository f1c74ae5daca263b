"""Scenes, splits, wording and tokens."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from budgetfusion_nodes.tiny_scenes import captions
from budgetfusion_nodes.tiny_scenes.captions import MAX_TOKENS, UNKNOWN, describe, vocabulary, words
from budgetfusion_nodes.tiny_scenes.scenes import (
    COLOURS,
    HELD_OUT,
    MAX_COUNT,
    SHAPES,
    Group,
    Scene,
    is_held_out,
    sample_scenes,
)
from budgetfusion_nodes.tiny_scenes.tokenizer import WordTokenizer
from research.tiny_scenes_training.data import attribute_names, attributes_of


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    return sample_scenes(1500, 1, held_out=False)


def test_split_by_scene_is_disjoint_and_stable(many: list[Scene]) -> None:
    held_out = sample_scenes(300, 2, held_out=True)
    assert not {scene.key for scene in many} & {scene.key for scene in held_out}
    assert all(is_held_out(scene) for scene in held_out)
    assert not any(is_held_out(scene) for scene in many)
    assert all(scene.bucket < HELD_OUT for scene in held_out)
    assert [scene.key for scene in sample_scenes(300, 2, held_out=True)] == [scene.key for scene in held_out]
    assert len({scene.key for scene in held_out}) == 300


def test_held_out_share_is_a_tenth() -> None:
    rng = np.random.default_rng(0)
    from budgetfusion_nodes.tiny_scenes.scenes import sample_scene

    share = np.mean([is_held_out(sample_scene(rng)) for _ in range(4000)])
    assert share == pytest.approx(HELD_OUT, abs=0.02)


def test_order_of_groups_does_not_change_the_key(many: list[Scene]) -> None:
    several = [scene for scene in many if len(scene.groups) == 3]
    assert len(several) > 50
    for scene in several:
        assert Scene(scene.background, scene.groups[::-1]).key == scene.key


def test_every_word_is_in_the_vocabulary_and_every_caption_fits(many: list[Scene]) -> None:
    rng, known, used = np.random.default_rng(3), set(vocabulary()), Counter[str]()
    for scene in many:
        for _ in range(3):
            found = words(describe(scene, rng))
            used.update(found)
            assert set(found) <= known
            assert len(found) + 2 <= MAX_TOKENS
    assert len(vocabulary()) == len(known) < 255  # data.py stores ids as bytes
    unused = known - set(used) - {captions.START, captions.END, UNKNOWN}
    assert not unused - {"zero", "dotted"}, unused


def plural_of(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def test_a_caption_says_what_the_scene_holds(many: list[Scene]) -> None:
    rng = np.random.default_rng(4)
    for scene in many[:400]:
        said = words(describe(scene, rng))
        assert scene.background.colour in said
        for group in scene.groups:
            assert (group.shape if group.count == 1 else plural_of(group.shape)) in said
            assert group.colour in said
            if group.count > 1:
                assert captions.NUMBERS[group.count] in said


def test_phrasings_differ_but_the_scene_stays(many: list[Scene]) -> None:
    rng = np.random.default_rng(5)
    rich = [scene for scene in many if len(scene.groups) >= 2][:40]
    for scene in rich:
        told = {describe(scene, rng) for _ in range(12)}
        assert len(told) >= 4
        # no wording may change what is said: the multiset of colours and shapes is always the same
        facts = {_facts(text) for text in told}
        assert len(facts) == 1, facts
        assert scene.key == Scene(scene.background, scene.groups).key


def _facts(text: str) -> tuple[str, ...]:
    singular = {plural_of(shape): shape for shape in SHAPES} | {shape: shape for shape in SHAPES}
    return tuple(sorted(singular.get(word, word) for word in words(text) if word in singular or word in COLOURS))


def test_grammar_keeps_objects_visible(many: list[Scene]) -> None:
    for scene in many:
        for group in scene.groups:
            assert group.colour not in (scene.background.colour, scene.background.second)
            assert 1 <= group.count <= MAX_COUNT[group.size]
    assert {len(scene.groups) for scene in many} == {0, 1, 2, 3}


def test_attributes_are_what_the_scene_holds(many: list[Scene]) -> None:
    names = attribute_names()
    assert len(names) == len(set(names))
    for scene in many[:200]:
        true = {name for name, value in zip(names, attributes_of(scene), strict=True) if value}
        assert f"pattern {scene.background.pattern}" in true
        assert (f"second {scene.background.second}" in true) == (scene.background.second is not None)
        expected = {f"{group.colour} {group.shape}" for group in scene.groups}
        assert {name for name in true if re.fullmatch(rf"({'|'.join(COLOURS)}) \w+", name)} == expected


def test_tokenizer_pads_cuts_and_knows_unknown_words() -> None:
    tokenizer = WordTokenizer()
    ids = tokenizer.padded("A red STAR, on quux!")
    names = vocabulary()
    assert [names[i] for i in ids[:8]] == ["<start>", "a", "red", "star", ",", "on", UNKNOWN, UNKNOWN]
    assert set(ids[8:]) == {names.index("<end>")}
    assert len(ids) == len(tokenizer.padded("star " * 400)) == len(tokenizer.padded("")) == MAX_TOKENS
    assert tokenizer.padded("star " * 400)[-1] == names.index("<end>")
    assert tokenizer.decode(tokenizer("two red crosses")["input_ids"]) == "two red crosses"


def test_group_description_of_one_and_many() -> None:
    rng = np.random.default_rng(0)
    one = Group(1, "large", "solid", "red", "cross", "on the left")
    many = Group(4, "large", "solid", "red", "cross", None)
    for _ in range(10):
        assert "cross on the left" in captions.describe_group(one, rng)
        assert captions.describe_group(many, rng).startswith("four ")
        assert captions.describe_group(many, rng).endswith("red crosses")
