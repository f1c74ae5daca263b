"""Whether the denoised prediction at the commit point tells how many tail steps a render needs, beyond its prompt.

The planner decides before sampling. At evaluation p + 1, which every count of a nested schedule shares, the prediction
of the final picture is known; a tail of one step ends on exactly that prediction, so its picture is what a planner
could look at for the price of one decoding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from budgetfusion_nodes.core.curves import FloatArray
from budgetfusion_nodes.core.schedule import NestedSchedule, Sigmas
from budgetfusion_nodes.host.conditioning import extract
from budgetfusion_nodes.metrics.l_snr import l_snr
from research.statistics.allocation import needed
from research.sweeps.nested_study import Study

from .own_target import Truth

FOLDS = 10
COMPONENTS = 24
"""Of the prompt's conditioning and of the encoder's features, at most."""
ALPHAS = np.logspace(-1, 4, 16)
WIDTHS = (0.002, 0.005, 0.01, 0.02)
LEARNERS = ("ridge", "kernel ridge")
PRICES = np.geomspace(0.5, 2000.0, 80)
"""Of a render that falls short, in steps."""
TIMES = 300
LEVELS = (0.025, 0.975)
LAPLACIAN = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])[None, None]


@dataclass(frozen=True)
class Saving:
    """Mean steps at as many violations; `saved` is less than with the prompt alone, with its 95 % interval."""

    learner: str
    explained_prompt: float
    """Share of the variance of log t* that cross-validated predictions explain."""
    explained_commit: float
    steps_one: float
    steps_prompt: float
    steps_commit: float
    saved: tuple[float, float, float]


def before_commit(schedule: NestedSchedule, study: Study) -> Sigmas:
    """A run that ends on the prediction of evaluation p, one before the commit point's."""
    return np.append(schedule.sigmas(schedule.prefix_steps + 1, study.quantile)[: schedule.prefix_steps], 0.0).astype(
        np.float32
    )


def picture_features(study: Study, commit: Tensor, before: Tensor) -> FloatArray:
    """[N, F] of the pictures [N, 3, H, W] of the predictions at the commit point and one evaluation before it."""
    gray = commit.mean(dim=1, keepdim=True)
    plain = torch.stack(
        [
            (commit - before).square().mean(dim=(1, 2, 3)).sqrt(),
            F.conv2d(gray, LAPLACIAN).abs().mean(dim=(1, 2, 3)),
            F.conv2d(gray, LAPLACIAN).square().mean(dim=(1, 2, 3)).sqrt(),
            commit.std(dim=(1, 2, 3)),
            l_snr(commit),
            l_snr(commit) - l_snr(before),
        ],
        dim=1,
    )
    change = study.shortfall(before, commit)  # [N, M]
    return np.concatenate([plain.double().numpy(), change, _reduced(study.features(commit))], axis=1)


def prompt_features(conditioning: list[tuple[Tensor, Tensor | None]]) -> FloatArray:
    """[P, F]: mean and spread of the tokens, and the pooled output."""
    rows = [
        torch.cat([t.mean(0), t.std(0, correction=0), *([] if v is None else [v])]).float() for t, v in conditioning
    ]
    return _reduced(torch.stack(rows).double().numpy())


def _reduced(values: FloatArray) -> FloatArray:
    """Principal components; they are made without looking at what is predicted."""
    kept = min(COMPONENTS, *values.shape)
    return PCA(kept, random_state=0).fit_transform(StandardScaler().fit_transform(values))


def _learner(name: str) -> Pipeline:
    if name == "ridge":
        return make_pipeline(StandardScaler(), RidgeCV(ALPHAS))
    grid = {"alpha": [0.3, 1.0, 3.0, 10.0], "gamma": WIDTHS}
    return make_pipeline(StandardScaler(), GridSearchCV(KernelRidge(kernel="rbf"), grid, cv=4))


def cross_validated(x: FloatArray, y: FloatArray, groups: NDArray[np.int64], learner: str) -> FloatArray:
    """[N] predictions of y [N] from x [N, F] by models that saw no render of the same prompt."""
    found = np.empty(len(y))
    for train, test in GroupKFold(FOLDS).split(x, y, groups):
        center = y[train].mean()
        found[test] = center + _learner(learner).fit(x[train], y[train] - center).predict(x[test])
    return found


def explained(predicted: FloatArray, y: FloatArray) -> float:
    return float(1.0 - (y - predicted).var() / y.var())


def chances(predicted: FloatArray, need: FloatArray, counts: FloatArray) -> FloatArray:
    """[N, C] chance that a count falls short, by a logistic regression of each count on the prediction; without a
    prediction that tells anything it is the share of all renders."""
    x = StandardScaler().fit_transform(predicted[:, None])
    found = np.zeros((len(need), len(counts)))
    for place, count in enumerate(counts):
        short = need > count
        if short.all() or not short.any():
            found[:, place] = float(short[0])
        else:
            found[:, place] = LogisticRegression(C=10.0).fit(x, short).predict_proba(x)[:, 1]
    return found


def steps_at(short: FloatArray, need: FloatArray, counts: FloatArray, allowed: float) -> FloatArray:
    """[N] planned counts: each least in count + price x chance of falling short, with the least price at which at most
    `allowed` of the renders do. (A margin added to every prediction and rounded up would cost up to a step more than
    one count for all.) short: [N, C] chances; need: [N] t*; counts: [C] rising.
    """
    steps = np.full(len(need), counts[-1])
    for price in PRICES:
        steps = counts[(counts + price * short).argmin(axis=1)]
        if (need > steps).mean() <= allowed:
            break
    return steps


def saving(
    learner: str, prompt: FloatArray, commit: FloatArray, need: FloatArray, counts: FloatArray, risk: float, seed: int
) -> Saving:
    """prompt: [P, S] predictions from the prompt, the same for its seeds; commit: [P, S] with the picture; need: [P, S]
    t*; every bootstrap draw of prompts finds its own prices."""
    shorts = [
        chances(values.ravel(), need.ravel(), counts).reshape(*need.shape, -1)
        for values in (np.zeros_like(need), prompt, commit)
    ]

    def means(rows: NDArray[np.int64]) -> list[float]:
        t = need[rows].ravel()
        return [float(steps_at(s[rows].reshape(len(t), -1), t, counts, risk).mean()) for s in shorts]

    one, by_prompt, by_commit = means(np.arange(len(need)))
    rng = np.random.default_rng(seed)
    drawn = [means(rng.integers(0, len(need), len(need))) for _ in range(TIMES)]
    low, high = np.quantile([1.0 - c / p for _, p, c in drawn], LEVELS).tolist()
    y = np.log(need).ravel()
    shares = explained(prompt.ravel(), y), explained(commit.ravel(), y)
    return Saving(learner, *shares, one, by_prompt, by_commit, (1.0 - by_commit / by_prompt, low, high))


def commit_level(
    study: Study, schedule: NestedSchedule, truth: Truth, q: float, risk: float, seed: int
) -> list[Saving]:
    """One row a learner. truth: of the study's prompts along `schedule`."""
    held = truth.held
    need = needed(held.counts, held.quality, q).astype(np.float64)  # [P, S]
    prompts, seeds = need.shape
    y, groups = np.log(need).ravel(), np.repeat(np.arange(prompts), seeds)
    commit = study.render(schedule.sigmas(schedule.prefix_steps + 1, study.quantile))
    pictures = picture_features(study, commit, study.render(before_commit(schedule, study)))
    encoded: list[Any] = [extract(c)[:2] for c in study.renderer.encode([p.text for p in study.prompts.prompts])]
    words = np.repeat(prompt_features(encoded), seeds, axis=0)
    counts = np.arange(schedule.prefix_steps + 1, held.counts[-1] + 1, dtype=np.float64)
    found = []
    for learner in LEARNERS:
        by_prompt = cross_validated(words, y, groups, learner)
        by_commit = cross_validated(np.concatenate([words, pictures], axis=1), y, groups, learner)
        found.append(
            saving(learner, by_prompt.reshape(need.shape), by_commit.reshape(need.shape), need, counts, risk, seed)
        )
    return found
