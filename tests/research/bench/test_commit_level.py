"""The study of plans at the commit point: what a useful and a useless look at the picture must give."""

import numpy as np
import pytest

from research.bench.commit_level import cross_validated, explained, saving, steps_at

COUNTS = np.arange(6, 51, dtype=float)


def test_the_margin_lets_just_the_allowed_share_fall_short():
    need = np.arange(6.0, 26.0)
    steps = steps_at(np.zeros(20), need, COUNTS, 0.1)
    assert set(steps) == {23.0}
    assert (need > steps).mean() == 0.1


def test_a_perfect_prediction_needs_no_margin():
    need = np.array([6.0, 9.0, 14.0, 30.0])
    assert steps_at(np.log(need), need, COUNTS, 0.0).tolist() == need.tolist()


def test_plans_lie_within_the_counts():
    assert steps_at(np.array([-5.0, 9.0]), np.array([6.0, 50.0]), COUNTS, 0.0).tolist() == [6.0, 50.0]
    assert steps_at(np.array([-5.0]), np.array([2.0]), COUNTS, 0.0).tolist() == [6.0]


@pytest.fixture
def renders():
    """(features of prompts [N, 3], of pictures [N, 4], log t* [N], groups): half of it is the prompt's, half
    shows in the picture."""
    rng = np.random.default_rng(3)
    words = np.repeat(rng.normal(size=(80, 3)), 2, axis=0)
    pictures = rng.normal(size=(160, 4))
    y = 2.3 + 0.3 * words[:, 0] + 0.3 * pictures[:, 1] + 0.05 * rng.normal(size=160)
    return words, pictures, y, np.repeat(np.arange(80), 2)


@pytest.mark.parametrize("learner", ["ridge", "kernel ridge"])
def test_a_picture_that_tells_saves_steps(renders, learner):
    words, pictures, y, groups = renders
    by_prompt = cross_validated(words, y, groups, learner)
    by_commit = cross_validated(np.hstack([words, pictures]), y, groups, learner)
    assert explained(by_prompt, y) == pytest.approx(0.5, abs=0.15)
    assert explained(by_commit, y) > 0.85
    shaped = (v.reshape(80, 2) for v in (by_prompt, by_commit, np.exp(y)))
    found = saving(learner, *shaped, COUNTS, 0.1, 1)
    assert found.steps_commit < found.steps_prompt < found.steps_one
    assert found.saved[1] > 0.05


def test_a_picture_that_tells_nothing_saves_nothing(renders):
    words, _, y, groups = renders
    noise = np.random.default_rng(4).normal(size=(160, 4))
    by_prompt = cross_validated(words, y, groups, "ridge")
    by_commit = cross_validated(np.hstack([words, noise]), y, groups, "ridge")
    shaped = (v.reshape(80, 2) for v in (by_prompt, by_commit, np.exp(y)))
    found = saving("ridge", *shaped, COUNTS, 0.1, 1)
    assert found.saved[1] < 0.02
    assert found.explained_commit < found.explained_prompt + 0.02


def test_a_prompt_is_never_predicted_from_its_own_other_seed():
    """No feature of another prompt tells a prompt's level: only a model that saw its other seed would know."""
    rng = np.random.default_rng(5)
    level = rng.normal(size=60)
    x = np.repeat(rng.normal(size=(60, 30)), 2, axis=0)
    y = np.repeat(level, 2)
    assert explained(cross_validated(x, y, np.repeat(np.arange(60), 2), "kernel ridge"), y) < 0.2
