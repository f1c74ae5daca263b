"""The study of plans at the commit point: what a useful and a useless look at the picture must give."""

import numpy as np
import pytest

from research.bench.commit_level import chances, cross_validated, explained, saving, steps_at

COUNTS = np.arange(6, 51, dtype=float)


def geometric(rng, size=400):
    """t* [N] whose tail falls geometrically from 7 on."""
    return np.minimum(7.0 + rng.geometric(0.6, size) - 1, 50.0)


def planned(predicted, need, allowed):
    return steps_at(chances(predicted, need, COUNTS), need, COUNTS, allowed)


def test_without_a_prediction_the_plan_is_the_one_count_that_lets_the_allowed_share_fall_short():
    need = geometric(np.random.default_rng(2))
    least = next(c for c in COUNTS if (need > c).mean() <= 0.1)
    assert set(planned(np.zeros(400), need, 0.1)) == {least}


def test_a_prediction_that_tells_two_kinds_apart_gives_each_its_own_count():
    need = np.array([8.0] * 50 + [9.0] * 50)
    assert planned(np.log(need), need, 0.05).tolist() == need.tolist()


def test_a_prediction_without_any_use_costs_no_more_than_one_count():
    rng = np.random.default_rng(6)
    need = geometric(rng)
    useless = np.log(8.0) + 0.02 * rng.normal(size=400)
    one = planned(np.zeros(400), need, 0.1).mean()
    assert planned(useless, need, 0.1).mean() <= one + 0.1


def test_plans_lie_within_the_counts():
    assert set(planned(np.zeros(20), np.full(20, 60.0), 0.0)) <= set(COUNTS)
    assert set(planned(np.zeros(20), np.full(20, 3.0), 0.0)) == {6.0}


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
    by_prompt, by_commit, need = (v.reshape(80, 2) for v in (by_prompt, by_commit, np.exp(y)))
    found = saving(learner, by_prompt, by_commit, need, COUNTS, 0.1, 1)
    assert found.steps_commit < found.steps_prompt < found.steps_one
    assert found.saved[1] > 0.05


def test_a_picture_that_tells_nothing_saves_nothing(renders):
    words, _, y, groups = renders
    noise = np.random.default_rng(4).normal(size=(160, 4))
    by_prompt = cross_validated(words, y, groups, "ridge")
    by_commit = cross_validated(np.hstack([words, noise]), y, groups, "ridge")
    by_prompt, by_commit, need = (v.reshape(80, 2) for v in (by_prompt, by_commit, np.exp(y)))
    found = saving("ridge", by_prompt, by_commit, need, COUNTS, 0.1, 1)
    assert found.saved[1] < 0.02
    assert found.explained_commit < found.explained_prompt + 0.02


def test_a_prompt_is_never_predicted_from_its_own_other_seed():
    """No feature of another prompt tells a prompt's level: only a model that saw its other seed would know."""
    rng = np.random.default_rng(5)
    level = rng.normal(size=60)
    x = np.repeat(rng.normal(size=(60, 30)), 2, axis=0)
    y = np.repeat(level, 2)
    assert explained(cross_validated(x, y, np.repeat(np.arange(60), 2), "kernel ridge"), y) < 0.2
