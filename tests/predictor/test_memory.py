"""Memory: closed forms of the correction, the guarantee on a simulated studio, and what must not be mixed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from budgetfusion_nodes.core.curves import DEFAULT_GRID
from budgetfusion_nodes.core.plan import Decision
from budgetfusion_nodes.core.risk import calibrate, critical_thetas
from budgetfusion_nodes.predictor.memory import Memory, nearest
from budgetfusion_nodes.predictor.memory_drift import FAR, SHORT, beginning, since_change
from budgetfusion_nodes.predictor.memory_fit import fit_memory, refit
from budgetfusion_nodes.predictor.memory_space import OFFSET, SIGNATURE, Z90, Kernel, Space, high_level, signature
from research.memory.simulation import simulate, simulate_drift
from research.memory.world import NEW, RECURRING, Studio, World, signatures

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


def flags(text: str) -> np.ndarray:
    return np.array([letter == "x" for letter in text], bool)


@pytest.mark.parametrize(
    ("far", "began"),
    [
        ("", None),
        ("....................", None),
        ("......x.............", None),
        ("...............x..x.", None),  # what one prompt in twenty does anyway
        ("..................xx", 18),
        ("...x............xx.x", 16),  # a lone one long before is no beginning
        ("xxxxxxxxxxxxxxxxxxxx", 0),
        ("xx..................", None),  # it is over
    ],
)
def test_a_change_of_style_is_seen_where_it_began_and_not_without_evidence(far: str, began: int | None) -> None:
    assert FAR.beginning(flags(far)) == began
    assert beginning(flags(far), flags("." * len(far))) == began


def test_bets_lose_where_there_is_no_change() -> None:
    rng = np.random.default_rng(0)
    false = [FAR.beginning(rng.random(120) < 0.05) is not None for _ in range(400)]
    assert np.mean(false) < 0.03  # Ville's inequality for each beginning, over the few that are left
    seen = [SHORT.beginning(rng.random(90) < 0.4) is not None for _ in range(100)]
    assert np.mean(seen) > 0.95


def test_after_a_change_the_planners_most_careful_thresholds_stand_in_until_enough_is_measured(
    studio: Studio,
) -> None:
    planner = studio.world.risk_table
    none = since_change(None, planner)
    assert all(none.row(alpha) == planner.theta[0] for alpha in planner.alphas)
    upper, quality = np.sort(np.random.default_rng(1).random((2, 12, 9)), axis=-1)
    quality[:, -1] = 1.0
    some = since_change(calibrate(upper[:, ::-1], quality[:, None]), planner)
    measured = calibrate(upper[:, ::-1], quality[:, None])
    assert some.row(0.1) == measured.row(0.1)  # 12 prompts can guarantee 10 %, and not 5 %
    assert (np.diff(np.array(some.theta), axis=0) >= 0).all()
    assert np.all(np.array(some.row(0.05)) <= np.array(planner.theta[0]))
    assert some.enough_prompts(0.02)


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
    return studio.memory()


def test_a_prompt_met_before_moves_its_curve_toward_what_was_measured(studio: Studio, memory: Memory) -> None:
    assert memory.own is not None
    prediction = studio.world.prediction()
    recurring = [n for n in range(len(studio.prompts)) if studio.which.count(n) >= 3]
    off: list[list[float]] = []
    for number in recurring[:10]:
        recalled = memory.recall(prediction, studio.prompts[number].astype(np.float16), 0.1)
        assert recalled.own >= 3
        told = recalled.told(9, 12)
        assert told is not None
        assert told.said is not None
        assert (told.said.code, told.said.values["own"]) == ("memory_own", studio.which.count(number))
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
    far = memory.recall(prediction, np.full(len(studio.prompts[0]), 40.0, np.float16), 0.1)
    assert not far.used
    assert far.prediction is prediction
    few = Studio(World(5))
    few.work(8)
    small = few.memory()
    recalled = small.recall(prediction, few.prompts[0].astype(np.float16), 0.1)
    assert not recalled.used
    assert recalled.knots(0.1) is None


def test_a_risk_that_the_remembered_prompts_cannot_guarantee_is_not_guaranteed(studio: Studio, memory: Memory) -> None:
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
    partial = fit_memory(replace(curves, level=level), signatures(studio.prompts), studio.world.risk_table)
    assert partial.own is None
    assert partial.near is None


def test_renders_that_nobody_predicted_are_neighbours_only(studio: Studio) -> None:
    curves = studio.curves()
    unknown = replace(curves, median=np.full_like(curves.median, np.nan), high=np.full_like(curves.high, np.nan))
    assert fit_memory(unknown, signatures(studio.prompts), studio.world.risk_table).own is None


def test_space_of_one_prompt_knows_it_and_no_other() -> None:
    one = np.array([[1.0, 2.0, 3.0]], np.float16)
    space = Space.of(one)
    assert space.distances(space.place(one[0])[None])[0, 0] == 0.0
    assert space.distances(space.place(one[0] + np.float16(0.01))[None])[0, 0] > 1.0


# -------------------------------------------------------------------------------------------------- the guarantee


def test_the_guarantee_holds_and_memory_saves_on_a_simulated_studio() -> None:
    found = simulate(300, 2, 80, 0.9, 0.1, 0.5, lambda _: None)
    for tally in found.values():
        broken = np.mean(np.array(tally.steps) < np.array(tally.needed))
        assert broken <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / len(tally.steps)) + 0.01
    recurring = found["recurring"]
    assert np.mean(recurring.steps) < 0.97 * np.mean(recurring.without)


def test_after_a_change_of_style_the_guarantee_holds_where_the_planner_breaks_it() -> None:
    found = simulate_drift(200, 100, 2, 50, 0.9, 0.1, 0.5, lambda _: None, bias=1.2)
    for tally in found.values():
        needed = np.array(tally.needed)
        without, with_memory = (np.mean(np.array(steps) < needed) for steps in (tally.without, tally.steps))
        assert without > 0.15
        assert with_memory <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / len(needed))


def test_a_planner_that_keeps_its_word_keeps_its_thresholds() -> None:
    studio = Studio(World(11))
    for _ in range(60):
        studio.render(NEW)
    assert studio.memory().new is None
    lax = calibrate(np.tile(studio.world.high[None, [0, -1]], (20, 1)), np.ones((20, 1, 2)))
    lax = replace(lax, prompts=200)
    assert fit_memory(studio.curves(), signatures(studio.prompts), lax).new is not None


def test_fitting_twice_gives_the_same() -> None:
    studio = Studio(World(2))
    studio.work(60)
    studio.render(RECURRING)
    one, two = (studio.memory() for _ in range(2))
    again = refit(one, studio.world.risk_table)
    assert one.kernel == two.kernel == again.kernel
    assert one.own == two.own == again.own
    assert one.near == again.near


def test_renders_that_come_and_go_without_a_fit(studio: Studio, memory: Memory) -> None:
    curves = studio.curves()
    first = np.arange(len(curves)) < 300
    known, place = np.unique(curves.prompts[first], return_inverse=True)
    part = replace(curves.take(first), prompts=place, keys=curves.keys[known])
    whole = signatures(studio.prompts)
    small = fit_memory(part, whole[known], studio.world.risk_table)
    others, place = np.unique(curves.prompts[~first], return_inverse=True)
    fresh = replace(curves.take(~first), prompts=place, keys=curves.keys[others])
    grown = small.updated(np.arange(len(part)) >= 10, fresh, whole[others])
    assert grown.curves.rows.tolist() == list(range(10, len(curves)))
    assert (grown.curves.keys[grown.curves.prompts] == curves.keys[curves.prompts[10:]]).all()
    for render in (350, 399):  # the newest are known at once, by their own curve
        number = studio.which[render]
        recalled = grown.recall(studio.world.prediction(), whole[number], 0.1, str(number), render)
        assert recalled.exact
        assert recalled.prediction.normalised[:, 0, 2] == pytest.approx(studio.levels[render])
    assert not grown.recall(studio.world.prediction(), whole[studio.which[3]], 0.1, str(studio.which[3]), 3).exact
    assert grown.own is small.own
    places = small.space.place(whole[curves.prompts[10:]])
    assert grown.space.at(grown.curves.prompts) == pytest.approx(places)
    compact = grown.compacted()
    assert compact.space.late is None
    assert len(compact.space.places) == len(compact.curves.keys) < len(grown.curves.keys)
    for memory_of_them in (grown, compact):
        space, prompts = memory_of_them.space, memory_of_them.curves.prompts
        apart = ((places[:, None] - places[:3]) ** 2).sum(axis=-1)
        found = space.distances(places[:3])[:, prompts].T
        assert found == pytest.approx(apart, abs=1e-4)
