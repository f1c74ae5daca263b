"""The search for a nested schedule on simulated renders, where the right answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from budgetfusion_nodes.calibration.schedule_search import (
    COARSE_TAIL,
    Measure,
    Worsening,
    commit_candidates,
    commit_runs,
    find_commit,
    find_prefix,
    worsening,
)
from budgetfusion_nodes.calibration.spec import SEARCHES
from budgetfusion_nodes.core.schedule import NestedSchedule, SigmaQuantile, Sigmas
from tests.calibration.stub import karras

PROMPTS, SEEDS = 40, 2
QUANTILE = SigmaQuantile.from_sigmas(karras(128))
DENSE = karras(50)


def test_runs_of_the_commit_search_share_ever_more_of_the_dense_run() -> None:
    runs = commit_runs(QUANTILE, DENSE, commit_candidates(QUANTILE))
    levels = list(runs)
    assert levels == sorted(levels) and len(levels) == 7
    for level, sigmas in runs.items():
        kept = int(np.flatnonzero(np.isclose(DENSE, level))[0])
        assert np.array_equal(sigmas[:kept], DENSE[:kept]) and sigmas[kept] == pytest.approx(level, rel=1e-6)
        assert len(sigmas) == kept + COARSE_TAIL + 1 and sigmas[-1] == 0 and (np.diff(sigmas) < 0).all()


def coarse_from(sigmas: Sigmas) -> float:
    """The last level that a run has in common with the dense one."""
    length = min(len(sigmas), len(DENSE))
    same = np.isclose(sigmas[:length], DENSE[:length], rtol=1e-5)
    return float(sigmas[int(same.argmin()) - 1])


@pytest.mark.parametrize("settled", [0.6, 1.3, 2.5])
def test_the_commit_point_is_the_greatest_sigma_that_keeps_the_composition(settled: float) -> None:
    """A tenth of the renders change where the run becomes coarse above `settled`."""
    runs = commit_runs(QUANTILE, DENSE, commit_candidates(QUANTILE))

    def changed(found: float, _dense: float) -> np.ndarray:
        return np.arange(100) < (10 if found > settled * 1.0001 else 1)

    commit, shares = find_commit(coarse_from, 0.0, changed, runs)
    assert commit == max(level for level in runs if level <= settled)
    assert set(shares.values()) == {0.1, 0.01}


def test_a_model_whose_composition_never_settles_keeps_the_stock_schedule() -> None:
    runs = commit_runs(QUANTILE, DENSE, (2.0, 1.0))
    commit, shares = find_commit(coarse_from, 0.0, lambda *_: np.ones(10, bool), runs)
    assert commit is None and set(shares.values()) == {1.0}


def prefix_of(sigmas: Sigmas) -> int:
    return int((sigmas > 1.001).sum())


@pytest.mark.parametrize("kind", ["larger", "other", "set"])
def test_the_second_of_two_prefixes_whose_targets_are_as_good_is_taken(kind: str) -> None:
    """Prefixes below 5 are worse by .2; the pictures of every prefix are others than the dense ones."""
    rng = np.random.default_rng(0)

    def render(sigmas: Sigmas) -> np.ndarray:
        bias = 0.2 if prefix_of(sigmas) < 5 else 0.0
        if kind == "set":
            return rng.normal(0, 0.1, (PROMPTS * SEEDS, 8)) + 1 + 3 * bias
        return rng.normal(0, 0.1, PROMPTS * SEEDS) - (bias if kind == "other" else -bias)

    measures = {"judge": Measure(lambda pictures: pictures, 0.1, kind)}
    dense = rng.normal(0, 0.1, (PROMPTS * SEEDS, 8)) + 1 if kind == "set" else rng.normal(0, 0.1, PROMPTS * SEEDS)
    start = NestedSchedule(1, 1.0)
    found, trials = find_prefix(render, QUANTILE, dense, start, measures, PROMPTS, prefixes=(3, 4, 5, 6, 8))
    assert found == NestedSchedule(6, 1.0)
    assert [trial.accepted for trial in trials] == [False, False, True, True]
    refused = trials[0].worsening["judge"]
    assert refused.low > 0 and refused.low <= refused.value <= refused.high


@pytest.mark.parametrize("good", [(), (4,), (4, 6)])
def test_without_two_good_prefixes_in_a_row_none_is_taken_whatever_it_saves(good: tuple[int, ...]) -> None:
    measures = {"judge": Measure(lambda pictures: pictures, 0.05)}
    worse, same = np.linspace(0.4, 0.6, PROMPTS * SEEDS), np.zeros(PROMPTS * SEEDS)
    found, trials = find_prefix(
        lambda sigmas: same if prefix_of(sigmas) in good else worse,
        QUANTILE,
        same,
        NestedSchedule(1, 1.0),
        measures,
        PROMPTS,
        prefixes=(3, 4, 5, 6),
    )
    assert found is None and len(trials) == 4


def test_the_interval_is_that_of_a_mean_over_prompts() -> None:
    """Against scipy's interval of the prompts' means; seeds of one prompt that agree count once."""
    rng = np.random.default_rng(3)
    each = np.repeat(rng.normal(0.3, 1.0, 20), SEEDS)
    found = worsening(Measure(lambda x: x, 1.0), each, np.zeros_like(each), 20)
    means = each[::SEEDS]
    expected = stats.t.interval(0.95, 19, means.mean(), stats.sem(means))
    assert (found.low, found.high) == pytest.approx(expected)
    other = worsening(Measure(lambda x: x, 1.0, "other"), -each, np.zeros_like(each), 20)
    assert (other.low, other.high) == pytest.approx(expected), "a departure to the other side is the same"


@pytest.mark.parametrize(("shift", "alike"), [(0.0, 0.0), (0.6, 0.0), (0.6, 0.8)])
def test_the_interval_of_a_set_distance_covers_it(shift: float, alike: float) -> None:
    """300 simulated sets of 24 prompts with two seeds; alike: how much a target picture has of its dense one."""
    dim, prompts, times = 6, 24, 300
    rng = np.random.default_rng(7)

    def features(own: np.ndarray, moved: float) -> np.ndarray:
        """As an encoder's: of length sqrt(D)."""
        rows = own + moved * np.eye(dim)[0] + 1.0
        return rows / np.linalg.norm(rows, axis=1, keepdims=True) * dim**0.5

    def distance(size: int) -> Worsening:
        dense = rng.normal(size=(size * SEEDS, dim))
        target = alike * dense + (1 - alike**2) ** 0.5 * rng.normal(size=dense.shape)
        return worsening(Measure(lambda x: x, 1.0, "set"), features(target, shift), features(dense, 0.0), size)

    truth = float(np.mean([distance(600).value for _ in range(6)])) if shift else 0.0
    found = [distance(prompts) for _ in range(times)]
    spread = float(np.std([one.value for one in found]))
    assert np.mean([one.value for one in found]) == pytest.approx(truth, abs=4 * spread / times**0.5)
    assert np.mean([one.high < truth for one in found]) <= 0.06, "2.5 % are meant; few prompts and no normal law"
    half = np.mean([(one.high - one.low) / 2 for one in found])
    assert 1.5 * spread < half < 3.0 * spread, "neither blind nor wider than need be"


# ---------------------------------------------------------------------- what the amounts of a search can tell


LIMIT = 0.1
SPREADS = {3: 0.5, 4: 0.37, 5: 0.18, 6: 0.14, 8: 0.12, 10: 0.1, 13: 0.08}
"""dB. Prefix -> standard deviation over prompts of a target's L-SNR less the dense one's: 4 and 5 as measured on Tiny
Scenes (dpmpp_2m, karras, two seeds a prompt), 8 and more like stock runs of 17 and 20 steps, the others between."""


def taken(rng: np.random.Generator, prompts: int, losses: dict[int, float], accepted: Any = None) -> int | None:
    """The prefix that one simulated search takes, where each one's target is worse by its loss."""

    def render(sigmas: Sigmas) -> np.ndarray:
        prefix = prefix_of(sigmas)
        return np.repeat(rng.normal(losses[prefix], SPREADS[prefix], prompts), SEEDS)

    measures = {"L-SNR": Measure(lambda pictures: pictures, LIMIT, "other")}
    dense, start = np.zeros(prompts * SEEDS), NestedSchedule(1, 1.0)
    found, trials = find_prefix(render, QUANTILE, dense, start, measures, prompts, stop=accepted is None)
    if accepted is not None:
        return next((t.schedule.prefix_steps for t in trials if accepted(t.worsening["L-SNR"])), None)
    return None if found is None else found.prefix_steps


@pytest.mark.parametrize("prompts", [prompts for prompts, _ in SEARCHES.values()])
@pytest.mark.parametrize("short", [4, 6])
def test_a_prefix_that_is_worse_by_the_limit_is_seldom_taken(prompts: int, short: int) -> None:
    """All prefixes up to `short` are worse by exactly the limit: at most 5 % of 400 searches take one of them, however
    many are looked at."""
    losses = {prefix: LIMIT if prefix <= short else 0.0 for prefix in SPREADS}
    found = [taken(np.random.default_rng(seed), prompts, losses) for seed in range(400)]
    assert np.mean([one is not None and one <= short for one in found]) <= 0.05


def test_good_prefixes_are_found_and_the_shortest_is_not_by_chance() -> None:
    """With no loss anywhere, thorough takes one of 5, 6 and 8 in at least nine of ten, and hardly ever 4 or less, which
    so few pictures cannot certify."""
    prompts, _ = SEARCHES["thorough"]
    found = [taken(np.random.default_rng(seed), prompts, dict.fromkeys(SPREADS, 0.0)) for seed in range(400)]
    assert np.mean([one in (5, 6, 8) for one in found]) >= 0.9
    assert np.mean([one in (3, 4) for one in found]) <= 0.02


def test_the_simulation_would_notice_that_what_is_not_surely_worse_is_accepted() -> None:
    """The rule before: the least prefix that is not surely worse, by a mean within the limit."""
    losses = {prefix: LIMIT if prefix <= 4 else 0.0 for prefix in SPREADS}

    def not_surely(found: Worsening) -> bool:
        return found.low <= 0.0 and found.value <= LIMIT

    found = [taken(np.random.default_rng(seed), 32, losses, not_surely) for seed in range(100)]
    assert np.mean([one is not None and one <= 4 for one in found]) > 0.5
