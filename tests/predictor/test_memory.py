"""Memory: closed forms of the correction, the promise on a simulated studio, and what must not be mixed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from budgetfusion_nodes.core.curves import DEFAULT_GRID
from budgetfusion_nodes.core.plan import Decision
from budgetfusion_nodes.core.risk import calibrate, critical_thetas
from budgetfusion_nodes.predictor.memory import Curves, Memory, nearest
from budgetfusion_nodes.predictor.memory_fit import at_least, fit_memory
from budgetfusion_nodes.predictor.memory_space import OFFSET, SIGNATURE, Z90, Kernel, Space, high_level, signature
from research.memory.simulation import simulate, simulate_drift
from research.memory.world import NEW, RECURRING, Studio, World

GRID = DEFAULT_GRID


# ------------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize(("renders", "share"), [(1, 0.5), (3, 0.5), (7, 0.2)])
def test_renders_of_one_prompt_are_shrunk_by_spearman_and_browns_formula(renders: int, share: float) -> None:
    apart, between = np.zeros(renders), np.zeros((renders, renders))
    weights, explained = Kernel(share, 0.5).weights(apart, between)
    reliability = renders * share / (1 + (renders - 1) * share)
    assert weights.sum() == pytest.approx(reliability, rel=1e-4)
    assert explained == pytest.approx(share * reliability, rel=1e-4)


def test_a_far_prompt_weighs_nothing_and_a_nearer_one_more() -> None:
    kernel = Kernel(0.5, 0.3)
    found = [kernel.weights(np.array([d]), np.zeros((1, 1)))[0][0] for d in (0.0, 0.05, 0.2, 50.0)]
    assert found == sorted(found, reverse=True)
    assert found[-1] == pytest.approx(0.0, abs=1e-12)
    assert found[1] == pytest.approx(0.5 * np.exp(-0.5 * 0.05 / 0.09), rel=1e-4)


def test_a_count_that_was_not_measured_is_left_as_predicted() -> None:
    z = np.full((1, 4), np.nan)
    z[0, 2] = 1.0
    mean, explained = Kernel(0.5, 0.3).expected(z, np.zeros(1), np.zeros((1, 1)))
    assert mean == pytest.approx([0.0, 0.0, 0.5, 0.0], rel=1e-4)
    assert explained[[0, 1, 3]].tolist() == [0.0, 0.0, 0.0]
    median, high = np.array([1.0, 0.5, 0.2, 0.0]), np.array([2.0, 1.0, 0.4, 0.0])
    after = high_level(median, high, mean, explained)
    assert after[:2].tolist() == high[:2].tolist()
    spread = (np.log(0.4 + OFFSET) - np.log(0.2 + OFFSET)) / Z90
    expected = np.exp(np.log(0.2 + OFFSET) + spread * (0.5 + Z90 * np.sqrt(0.75))) - OFFSET
    assert after[2] == pytest.approx(expected, rel=1e-4)


def test_a_wide_encoders_signature_keeps_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randn(5, 4096, generator=generator) for _ in range(8)]
    full = np.stack([torch.cat([p.mean(0), p.std(0, correction=0)]).numpy() for p in prompts])
    kept = np.stack([signature(p, None) for p in prompts]).astype(np.float64)
    assert kept.shape == (8, SIGNATURE)
    ratio = [((kept[i] - kept[j]) ** 2).sum() / ((full[i] - full[j]) ** 2).sum() for i in range(8) for j in range(i)]
    assert np.mean(ratio) == pytest.approx(1.0, abs=0.1)
    assert np.array_equal(signature(prompts[0], None), signature(prompts[0].clone(), None))


def test_the_nearest_come_first_and_of_equals_the_latest() -> None:
    assert nearest(np.array([0.0, 3.0, 0.0, 1.0, 0.0, np.inf]), 3).tolist() == [0, 2, 4]
    assert nearest(np.array([0.0, 3.0, 0.0, 1.0, 0.0, np.inf]), 2).tolist() == [2, 4]
    assert nearest(np.array([np.inf, 1.0]), 5).tolist() == [1]


def test_chance_of_many_violations_is_the_binomial_one() -> None:
    assert at_least(0, 5, 0.1) == pytest.approx(1.0)
    assert at_least(1, 20, 0.1) == pytest.approx(1.0 - 0.9**20)
    assert at_least(4, 4, 0.3) == pytest.approx(0.3**4)
    assert at_least(2, 3, 0.5) == pytest.approx(0.5)


def test_thresholds_of_seeds_with_curves_of_their_own() -> None:
    rng = np.random.default_rng(0)
    upper, quality = np.sort(rng.random((4, 3, 9)))[..., ::-1], np.sort(rng.random((4, 3, 9)))
    quality[..., -1] = 1.0
    each = critical_thetas(upper, quality, 0.7)
    for n in range(4):
        for s in range(3):
            one = critical_thetas(upper[n, s][None], quality[n, s][None, None], 0.7)
            assert one[0, 0] == each[n, s]


# ------------------------------------------------------------------------------------------------ what is recalled


@pytest.fixture(scope="module")
def studio() -> Studio:
    studio = Studio(World(3))
    studio.work(400)
    return studio


@pytest.fixture(scope="module")
def memory(studio: Studio) -> Memory:
    return fit_memory(studio.curves(), studio.world.risk_table)


def test_a_prompt_met_before_moves_its_curve_toward_what_was_measured(studio: Studio, memory: Memory) -> None:
    assert memory.own is not None
    prediction = studio.world.prediction()
    recurring = [n for n in range(len(studio.prompts)) if studio.which.count(n) >= 3]
    off: list[list[float]] = []
    for number in recurring[:10]:
        recalled = memory.recall(prediction, studio.prompts[number].astype(np.float16), 0.1)
        assert recalled.own >= 3
        own = [np.log(studio.levels[j] + OFFSET) for j, n in enumerate(studio.which) if n == number]
        measured = np.mean(own, axis=0)
        before, after = (np.log(p.normalised[:, 0, 1] + OFFSET) for p in (prediction, recalled.prediction))
        off.append([np.abs(curve - measured)[:-1].mean() for curve in (before, after)])
        assert (np.diff(recalled.prediction.normalised, axis=-1) >= 0).all()
        assert recalled.points
    before, after = np.mean(off, axis=0)
    assert after < 0.7 * before


def test_the_very_same_render_gets_its_own_curve_and_another_seed_does_not(studio: Studio, memory: Memory) -> None:
    prediction, render = studio.world.prediction(), 17
    number = studio.which[render]
    place = studio.prompts[number].astype(np.float16)
    exact = memory.recall(prediction, place, 0.1, str(number), render)
    assert exact.exact
    assert exact.prediction.normalised[:, 0, 2] == pytest.approx(studio.levels[render])
    decision = Decision.from_curves(GRID, exact.prediction.high(), exact.prediction.quality(1), exact.knots(0.1) or ())
    counts = np.array(decision.counts)
    quality = 1.0 - np.array(decision.upper)
    for q in (0.5, 0.8, 0.9, 0.99):
        tail = np.minimum.accumulate(quality[::-1])[::-1] >= q - 1e-9
        assert decision.steps(q, 1, 50) == counts[tail.argmax()]
    assert not memory.recall(prediction, place, 0.1, str(number), 100_000).exact
    assert not memory.recall(prediction, place, 0.1, "another digest", render).exact


def test_an_unlike_prompt_and_too_few_prompts_change_nothing(studio: Studio, memory: Memory) -> None:
    prediction = studio.world.prediction()
    far = memory.recall(prediction, np.full_like(memory.curves.signatures[0], 40.0), 0.1)
    assert not far.used
    assert far.prediction is prediction
    few = Studio(World(5))
    few.work(8)
    small = fit_memory(few.curves(), few.world.risk_table)
    recalled = small.recall(prediction, few.prompts[0].astype(np.float16), 0.1)
    assert not recalled.used
    assert recalled.knots(0.1) is None


def test_a_risk_that_the_remembered_prompts_cannot_promise_is_not_promised(studio: Studio, memory: Memory) -> None:
    assert memory.own is not None
    starved = replace(memory, own=replace(memory.own, prompts=30))
    number = studio.which[0]
    place = studio.prompts[number].astype(np.float16)
    assert starved.recall(studio.world.prediction(), place, 0.1).used
    assert not starved.recall(studio.world.prediction(), place, 0.02).used


def test_partly_measured_renders_correct_but_do_not_calibrate(studio: Studio) -> None:
    curves = studio.curves()
    level = curves.level.copy()
    level[:, 3] = np.nan
    partial = fit_memory(replace(curves, level=level), studio.world.risk_table)
    assert partial.own is None
    assert partial.near is None


def test_renders_that_nobody_predicted_are_neighbours_only(studio: Studio) -> None:
    curves = studio.curves()
    unknown = replace(curves, median=np.full_like(curves.median, np.nan), high=np.full_like(curves.high, np.nan))
    assert fit_memory(unknown, studio.world.risk_table).own is None


def test_space_of_one_prompt_knows_it_and_no_other() -> None:
    one = np.array([[1.0, 2.0, 3.0]], np.float16)
    space = Space.of(one)
    assert space.distances(space.place(one[0])[None])[0, 0] == 0.0
    assert space.distances(space.place(one[0] + np.float16(0.01))[None])[0, 0] > 1.0


# -------------------------------------------------------------------------------------------------- the promise


def test_the_promise_holds_and_memory_saves_on_a_simulated_studio() -> None:
    found = simulate(300, 2, 80, 0.9, 0.1, 0.5, lambda _: None)
    for tally in found.values():
        broken = np.mean(np.array(tally.steps) < np.array(tally.needed))
        assert broken <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / len(tally.steps)) + 0.01
    recurring = found["recurring"]
    assert np.mean(recurring.steps) < 0.97 * np.mean(recurring.without)


def test_after_a_change_of_style_the_plans_follow() -> None:
    found = simulate_drift(200, 120, 2, 60, 0.9, 0.1, 0.5, lambda _: None, bias=1.2)
    for tally in found.values():
        needed = np.array(tally.needed)
        without, with_memory = (np.mean(np.array(steps) < needed) for steps in (tally.without, tally.steps))
        assert without > 0.15
        assert with_memory < 0.7 * without


def test_a_planner_that_keeps_its_word_keeps_its_thresholds() -> None:
    studio = Studio(World(11))
    for _ in range(60):
        studio.render(NEW)
    assert fit_memory(studio.curves(), studio.world.risk_table).new is None
    lax = calibrate(np.tile(studio.world.high[None, [0, -1]], (20, 1)), np.ones((20, 1, 2)))
    assert fit_memory(studio.curves(), replace(lax, prompts=200)).new is not None


def test_fitting_twice_gives_the_same() -> None:
    studio = Studio(World(2))
    studio.work(60)
    studio.render(RECURRING)
    curves: Curves = studio.curves()
    one, two = (fit_memory(curves, studio.world.risk_table) for _ in range(2))
    assert one.kernel == two.kernel
    assert one.own == two.own
