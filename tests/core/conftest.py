"""A small planner with random weights and a plausible baseline: all there but the quality of its answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from budgetfusion_nodes.core.curves import DEFAULT_GRID, METRICS
from budgetfusion_nodes.core.features import fit_novelty, fit_projection
from budgetfusion_nodes.core.planner import Planner
from budgetfusion_nodes.core.predictor import CurvePredictor, PredictorSize
from budgetfusion_nodes.core.risk import ALPHAS, QUALITIES, RiskTable
from budgetfusion_nodes.core.setting import Setting

SETTING = Setting("abc123", "dpmpp_2m", "karras", 3.0, 64, 64, model_name="Tiny Scenes")


def make_planner(token_in: int = 24, pooled_in: int = 16, networks: int = 2, prompts: int = 200) -> Planner:
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randn(prompts, 10, token_in, generator=generator)
    pooled = torch.randn(prompts, pooled_in, generator=generator)
    projection = fit_projection(tokens.flatten(0, 1), pooled)
    features = [projection(t, p if pooled_in else None) for t, p in zip(tokens, pooled, strict=True)]
    summaries = torch.stack([f.summary() for f in features])
    size = PredictorSize(projection.token_weight.shape[1], projection.pooled_weight.shape[1], context=16, hidden=12)
    theta = tuple(tuple((1.0 - q) * (0.4 + 2.0 * alpha) for q in QUALITIES) for alpha in ALPHAS)
    return Planner(
        name="test planner",
        setting=SETTING,
        grid=DEFAULT_GRID,
        metrics=METRICS,
        scale=(6.0, 0.4, 0.2),
        backends={"l_snr": "l_snr", "d_sim": "haarpsi", "i_clip": "open_clip"},
        projection=projection,
        networks=tuple(make_network(size, seed) for seed in range(networks)),
        risk_table=RiskTable(ALPHAS, QUALITIES, theta, prompts),
        novelty=fit_novelty(summaries, summaries),
        provenance={"data": "random"},
    )


def make_network(size: PredictorSize, seed: int) -> CurvePredictor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CurvePredictor(size, DEFAULT_GRID, METRICS)
    grid = np.array(DEFAULT_GRID, dtype=np.float32)
    fall = torch.from_numpy(2.0 / grid - 2.0 / grid[-1])[:, None, None]
    network.set_baseline(fall * torch.tensor([0.7, 1.0, 1.4]) * torch.ones(len(METRICS), 1))
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def planner() -> Planner:
    return make_planner()


@pytest.fixture(name="make_planner", scope="session")
def _make_planner():
    return make_planner


@pytest.fixture
def conditioning() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [10, 24] and pooled [16] as the planner was made for."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(10, 24, generator=generator), torch.randn(16, generator=generator)
