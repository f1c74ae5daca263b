"""The guarantee, by simulation: over random splits, and under stopping on what was seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from budgetfusion_nodes.calibration.stopping import GUIDE_STEP, LEAST_GUIDES, guide_counts, is_settled, roles
from budgetfusion_nodes.core.curves import FloatArray, all_counts, tail_min
from budgetfusion_nodes.core.risk import controlled_theta, critical_thetas
from budgetfusion_nodes.predictor.dataset import true_quality

ALPHA = 0.1
COUNTS = np.arange(2, 51)
FALLING = 1.0 / COUNTS  # one curve for all: only its order matters


def one_count(truth: FloatArray, q: float) -> int:
    """The mean-curve plan from calibration prompts. truth: [N, S, C]."""
    upper = np.broadcast_to(FALLING, (len(truth), len(COUNTS)))
    theta = controlled_theta(critical_thetas(upper, truth, q), ALPHA)
    return int(COUNTS[int((theta >= FALLING).argmax())]) if (theta >= FALLING).any() else int(COUNTS[-1])


def violations(truth: FloatArray, steps: int, q: float) -> float:
    """Share of prompts' seeds below q at `steps` or later."""
    lowest = tail_min(truth)[..., steps - COUNTS[0]]  # [N, S]
    return float(np.nanmean(np.nanmean(lowest < q, axis=1)))


@pytest.mark.parametrize("calibration", [9, 28])
def test_the_guarantee_holds_over_a_thousand_random_splits(make_dataset: Any, calibration: int) -> None:
    """500 for each size; the scale comes from the calibration prompts of each split, as in the job."""
    data = make_dataset(train=0, calibration=160, test=0, seed=3)
    crudest = data.shortfall[:, :, 0]
    rng = np.random.default_rng(calibration)
    found: dict[float, list[float]] = {0.8: [], 0.9: [], 0.95: []}
    for _ in range(500):
        order = rng.permutation(160)
        own, new = order[:calibration], order[calibration:]
        present = data.present[own]
        scale = tuple(np.median(crudest[own][present].astype(float), axis=0).tolist())
        truth = true_quality(data, scale)
        for q, rates in found.items():
            rates.append(violations(truth[new], one_count(truth[own], q), q))
    for q, rates in found.items():
        error = np.std(rates) / np.sqrt(len(rates))
        assert np.mean(rates) <= ALPHA + 3 * error, q
    assert np.mean(found[0.9]) > 0.02, "a guarantee that is kept by always rendering everything is none"


def curves(rng: np.random.Generator, count: int, spread: float, heavy: bool) -> FloatArray:
    """[N, 1, C] qualities that rise with the count; heavy: one prompt in eight needs far more than the others."""
    rate = np.exp(spread * rng.normal(size=count))
    if heavy:
        rate = np.where(rng.random(count) < 0.125, 0.3 * rate, rate)
    fall = (2.0 / COUNTS) ** rate[:, None] - (2.0 / COUNTS[-1]) ** rate[:, None]
    return (1.0 - fall).clip(0.0, 1.0)[:, None]


def run_until_settled(truth: FloatArray, alone: int, wanted: int) -> int:
    """Prompts after which the job stops: its own rule, every ten prompts."""
    splits = np.array(roles(wanted, alone))
    for done in range(10, wanted + 1, 10):
        guides = truth[:done][splits[:done] == "train"]
        if len(guides) >= LEAST_GUIDES:
            counts = [guide_counts(tuple(COUNTS.tolist()), part) for part in (guides[:-GUIDE_STEP], guides)]
            if is_settled(*counts):
                return done
    return wanted


@pytest.mark.parametrize(("spread", "heavy"), [(0.3, False), (0.6, True), (0.05, True)])
def test_stopping_when_it_is_settled_leaves_the_guarantee_whole(spread: float, heavy: bool) -> None:
    rng = np.random.default_rng(11)
    population = curves(rng, 4000, spread, heavy)
    splits = np.array(roles(90, 28))
    found: dict[float, list[float]] = {0.8: [], 0.9: [], 0.95: []}
    ends = []
    for _ in range(400):
        truth = population[rng.integers(0, len(population), 90)]
        done = run_until_settled(truth, 28, 90)
        ends.append(done)
        calibration = truth[:done][splits[:done] == "calibration"]
        for q, rates in found.items():
            rates.append(violations(population, one_count(calibration, q), q))
    for q, rates in found.items():
        error = np.std(rates) / np.sqrt(len(rates))
        assert np.mean(rates) <= ALPHA + 3 * error, (q, np.mean(rates))
    assert min(ends) < 90, "the rule must stop some runs early, or nothing was tried"


def test_the_simulation_would_notice_stopping_on_the_calibration_prompts() -> None:
    """Whoever looks at the calibration prompts and keeps their lowest count violates it more often."""
    rng = np.random.default_rng(12)
    population = curves(rng, 4000, 0.6, False)
    chosen, honest = [], []
    for _ in range(200):
        truth = population[rng.integers(0, len(population), 90)]
        seen = [one_count(truth[:done], 0.9) for done in range(15, 91, 3)]
        chosen.append(violations(population, min(seen), 0.9))
        honest.append(violations(population, seen[-1], 0.9))
    error = np.std(chosen) / np.sqrt(len(chosen))
    assert np.mean(honest) <= ALPHA
    assert np.mean(chosen) > np.mean(honest) + 5 * error


def test_guide_and_calibration_prompts_are_dealt_alike() -> None:
    splits = roles(90, 28)
    assert set(splits[:28]) == {"calibration"}
    assert splits[28:].count("train") == splits[28:].count("calibration") == 31
    assert roles(40, 28) == splits[:40], "more prompts change no role"


def test_guide_counts_are_the_quantile_of_what_each_needs() -> None:
    rng = np.random.default_rng(1)
    truth = curves(rng, 50, 0.5, False)
    need = np.sort([COUNTS[int((tail_min(t[0]) >= 0.9).argmax())] for t in truth])
    assert guide_counts(tuple(COUNTS.tolist()), truth)[1] == need[44]
    assert all_counts((2, 50)) == tuple(COUNTS.tolist())
