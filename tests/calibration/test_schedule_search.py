"""The search for a nested schedule on simulated renders, where the right answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from budgetfusion_nodes.calibration.schedule_search import (
    COARSE_TAIL,
    Measure,
    commit_candidates,
    commit_runs,
    find_commit,
    find_prefix,
    worsening,
)
from budgetfusion_nodes.core.schedule import NestedSchedule, SigmaQuantile, Sigmas

PROMPTS, SEEDS = 40, 2


def karras(steps: int) -> Sigmas:
    share = np.linspace(0, 1, steps)
    levels = (14.6 ** (1 / 7) + share * (0.03 ** (1 / 7) - 14.6 ** (1 / 7))) ** 7
    return np.append(levels, 0).astype(np.float32)


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
def test_the_least_prefix_whose_target_is_as_good_is_taken(kind: str) -> None:
    """Prefixes below 5 are worse by .2; the pictures of every prefix are others than the dense ones."""
    rng = np.random.default_rng(0)

    def render(sigmas: Sigmas) -> np.ndarray:
        bias = 0.2 if prefix_of(sigmas) < 5 else 0.0
        if kind == "set":
            return rng.normal(0, 0.1, (PROMPTS * SEEDS, 8)) + 1 + 3 * bias
        return rng.normal(0, 0.1, PROMPTS * SEEDS) - (bias if kind == "other" else -bias)

    measures = {"judge": Measure(lambda pictures: pictures, 0.05, kind)}
    dense = rng.normal(0, 0.1, (PROMPTS * SEEDS, 8)) + 1 if kind == "set" else rng.normal(0, 0.1, PROMPTS * SEEDS)
    start = NestedSchedule(1, 1.0)
    found, trials = find_prefix(render, QUANTILE, dense, start, measures, PROMPTS, prefixes=(3, 4, 5, 6))
    assert found == NestedSchedule(5, 1.0)
    assert [trial.accepted for trial in trials] == [False, False, True]
    refused = trials[0].worsening["judge"]
    assert refused.low > 0 and refused.low <= refused.value <= refused.high


def test_where_no_prefix_is_good_enough_none_is_taken_whatever_it_saves() -> None:
    measures = {"judge": Measure(lambda pictures: pictures, 0.05)}
    worse = np.linspace(0.4, 0.6, PROMPTS * SEEDS)
    found, trials = find_prefix(
        lambda _: worse, QUANTILE, np.zeros(PROMPTS * SEEDS), NestedSchedule(1, 1.0), measures, PROMPTS, prefixes=(3, 8)
    )
    assert found is None and len(trials) == 2


def test_the_interval_is_that_of_a_mean_over_prompts() -> None:
    """Against the normal interval of the prompts' means; seeds of one prompt that agree count once."""
    rng = np.random.default_rng(3)
    each = np.repeat(rng.normal(0.3, 1.0, 400), SEEDS)
    found = worsening(Measure(lambda x: x, 1.0), each, np.zeros_like(each), 400, seed=1)
    means = each[::SEEDS]
    half = 1.96 * means.std(ddof=1) / 20
    assert found.value == pytest.approx(means.mean())
    assert (found.low, found.high) == pytest.approx((means.mean() - half, means.mean() + half), abs=0.015)
