"""Peers and profile of the benchmark in the genuine host, with a small random checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from budgetfusion_nodes.metrics.measure import Backends
from research.bench.gpu_profile import SD21_PARAMETERS, sd21_profile, sd21_unet
from research.bench.peers import Bench, Variant, counting, run_prompts, summarise
from research.bench.profiling import STAGES, end_to_end, metric_times
from research.options import WEIGHTS
from research.sweeps.prompts import tiny_scenes_prompts
from research.sweeps.rendering import LoadedModel, Sampling
from research.tiny_scenes_training.classifier import load_classifier

CHOSEN = (
    Variant("stock KSampler", "6", "steps", 6),
    Variant("EasyCache", "3 at 20", "steps", 20, cache="EasyCache", threshold=3.0),
    Variant("LazyCache", "3 at 20", "steps", 20, cache="LazyCache", threshold=3.0),
    Variant("dpm_adaptive", "rtol 1", "adaptive", threshold=1.0),
    Variant("schedule beta", "6", "steps", 6, "beta"),
    Variant("ours", "q 0.9", "plan", threshold=0.9),
)


@pytest.fixture(scope="module")
def bench(session: Any, loaded: Any, planner: Any) -> Bench:
    model = LoadedModel(loaded.model, loaded.clip, loaded.vae, session.version)
    classifier = load_classifier(WEIGHTS / "classifier" / "tiny_scenes_classifier.safetensors")
    return Bench(model, Sampling(), planner, Backends.from_values("haarpsi", "shipped"), classifier, limit_steps=25)


@pytest.fixture(scope="module")
def prompts() -> Any:
    return tiny_scenes_prompts(9, {"train": 0, "calibration": 0, "test": 2}).prompts


def test_our_variants_are_the_stock_samplers_bits(bench: Bench, prompts: Any) -> None:
    (positive,) = bench.renderer.encode([prompts[0].text])
    found, cost = bench.render(CHOSEN[0], positive, 3)
    nodes = sys.modules["nodes"]
    with torch.inference_mode():
        (empty,) = nodes.EmptyLatentImage().generate(64, 64, 1)
        (expected,) = nodes.common_ksampler(
            bench.loaded.model, 3, 6, 3.0, "dpmpp_2m", "karras", positive, bench.renderer.negative, empty
        )
    assert torch.equal(found, expected["samples"].float())
    assert cost["nfe"] == 6 and cost["steps"] == 6 and cost["seconds"] > 0


def test_a_plan_renders_the_planners_count(bench: Bench, prompts: Any) -> None:
    from budgetfusion_nodes.host.conditioning import extract

    (positive,) = bench.renderer.encode([prompts[0].text])
    tokens, pooled, _ = extract(positive)
    wanted = bench.planner.plan(tokens, pooled, quality=0.9, risk=0.1, max_steps=50).steps
    _, cost = bench.render(CHOSEN[-1], positive, 3)
    assert cost["nfe"] == cost["steps"] == wanted


def test_caches_save_evaluations_where_they_run(bench: Bench, prompts: Any) -> None:
    kept, reasons = bench.usable(CHOSEN)
    assert not reasons
    (positive,) = bench.renderer.encode([prompts[0].text])
    for variant in kept:
        if variant.cache is not None:
            _, cost = bench.render(variant, positive, 3)
            assert 2 <= cost["nfe"] < 20 == cost["steps"]


def test_counting_leaves_the_picture_alone(bench: Bench, prompts: Any) -> None:
    (positive,) = bench.renderer.encode([prompts[0].text])
    counted, calls = counting(bench.loaded.model)
    with_count = bench.stock(counted, positive, 1, 4, "karras")
    assert torch.equal(with_count, bench.stock(bench.loaded.model, positive, 1, 4, "karras"))
    assert calls[0] == 4 * bench.per_evaluation


def test_prompts_are_judged_once_and_summarised(bench: Bench, prompts: Any, tmp_path: Path) -> None:
    chosen = tuple(v for v in bench.usable(CHOSEN)[0] if v.family != "dpm_adaptive")
    results = run_prompts(bench, chosen, prompts, tmp_path, 0)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert run_prompts(bench, chosen, prompts, tmp_path, 0) == results
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    row = results[0]["variants"]["stock KSampler 6"]
    assert row["latent_rmse to limit"] > 0 and 0 <= row["quality"] <= 1 and 0 <= row["scene_wrong"] <= 1
    found = summarise(results, chosen, 0, 0.9)
    assert found["prompts"] == 2 and set(found["variants"]) == {variant.name for variant in chosen}


def test_dpm_adaptive_chooses_its_own_cost(bench: Bench, prompts: Any) -> None:
    (positive,) = bench.renderer.encode([prompts[0].text])
    latent, cost = bench.render(CHOSEN[3], positive, 3)
    assert cost["nfe"] >= 6 and torch.isfinite(latent).all()


def test_the_profile_adds_up(bench: Bench, prompts: Any) -> None:
    found = end_to_end(bench, prompts[:1], 0.9, 0.1)
    assert sum(found["share"].values()) == pytest.approx(1.0) and set(found["share"]) == set(STAGES[:-1])
    assert found["seconds_of_an_image"] == pytest.approx(sum(found["seconds"][stage] for stage in STAGES[:-1]))


def test_metric_times_stop_where_they_get_slow() -> None:
    backends = Backends.from_values("haarpsi", "shipped")
    rows = metric_times(backends, (32, 64, 128), (1,), limit=1e-9)
    assert [row["seconds"] is not None for row in rows] == [True, False, False] * 3
    assert all(row["seconds"] is None or row["seconds"] > 0 for row in rows)


def test_the_gpu_profile_has_the_real_size(session: Any) -> None:
    network = sd21_unet("meta", torch.float16)
    assert sum(p.numel() for p in network.parameters()) == SD21_PARAMETERS
    if not torch.cuda.is_available():
        assert sd21_profile(50, 18) == {"measured": False, "reason": "no CUDA device in this run"}
