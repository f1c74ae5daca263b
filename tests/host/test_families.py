"""Conditioning and latents as today's families have them, each planned by a planner of its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from budgetfusion_nodes.core.curves import DEFAULT_GRID, METRICS
from budgetfusion_nodes.core.risk import ALPHAS, QUALITIES, RiskTable
from budgetfusion_nodes.core.setting import Setting
from budgetfusion_nodes.predictor.features import fit_novelty, fit_projection
from budgetfusion_nodes.predictor.network import CurvePredictor, PredictorSize
from budgetfusion_nodes.predictor.planner import Planner
from budgetfusion_nodes.predictor.planner_file import save_planner
from tests.fixtures.said import code, codes
from tests.fixtures.tiny_models import NAMES, VIDEO, Tiny, make_tiny

SAMPLING = {"sampler_name": "euler", "scheduler": "simple", "cfg": 1.0}


@pytest.fixture(scope="module", params=NAMES)
def tiny(request: pytest.FixtureRequest, session: Any) -> Tiny:
    return make_tiny(request.param)


def own_planner(tiny: Tiny, setting: Setting) -> Planner:
    """Knows this family's encoder and falls as 2 / n."""
    tokens = tiny.positive[0][0][0]
    pooled = tiny.positive[0][1].get("pooled_output")
    generator = torch.Generator().manual_seed(3)
    many = torch.randn(64, tokens.shape[1], generator=generator)
    rows = None if pooled is None else torch.randn(16, pooled.shape[1], generator=generator)
    projection = fit_projection(many, rows, width=4)
    torch.manual_seed(0)
    size = PredictorSize(projection.token_weight.shape[1], projection.pooled_weight.shape[1])
    network = CurvePredictor(size, DEFAULT_GRID, METRICS)
    falling = torch.tensor([2.0 / n for n in DEFAULT_GRID]) - 2.0 / DEFAULT_GRID[-1]
    network.baseline.copy_(falling[:, None, None] * torch.tensor([0.6, 1.0, 1.5]))
    summaries = torch.stack(
        [projection(many[i : i + 8], None if rows is None else rows[i]).summary() for i in range(16)]
    )
    theta = tuple(tuple((1.0 - q) * (1.0 + alpha) for q in QUALITIES) for alpha in ALPHAS)
    return Planner(
        name=f"for {tiny.family}",
        setting=setting,
        grid=DEFAULT_GRID,
        metrics=METRICS,
        scale=(6.0, 0.5, 0.3),
        backends=dict.fromkeys(METRICS, "untold"),
        projection=projection,
        networks=(network.eval(),),
        risk_table=RiskTable(ALPHAS, QUALITIES, theta, prompts=200),
        novelty=dataclasses.replace(fit_novelty(summaries, summaries), limit=1e6),
    )


@pytest.fixture
def planned(bench: Any, session: Any, pack: Any, tiny: Tiny, make_node: Any, to: Any) -> Any:
    """`planned(positive=, latent=)`: the plan by the planner that was calibrated on exactly what `tiny` holds."""
    service = pack("planning.service")
    identity = pack("host.identity").read_identity(tiny.model)
    request = service.Request(**SAMPLING)
    setting = service.render_setting(identity, tiny.model, tiny.positive, request, tiny.latent)
    path = session.base_dir / "models" / "budgetfusion" / f"{tiny.family}.safetensors"
    save_planner(path, own_planner(tiny, Setting.from_dict(setting.to_dict())))

    def plan(positive: Any = None, latent: Any = None) -> Any:
        graph = {
            "1": make_node("GivenMODEL", key=bench.value(tiny.model)),
            "2": make_node("GivenCONDITIONING", key=bench.value(tiny.positive if positive is None else positive)),
            "4": make_node("GivenLATENT", key=bench.value(tiny.latent if latent is None else latent)),
        }
        return bench.plan(graph, **SAMPLING)

    yield plan
    path.unlink()


def test_the_very_setting_is_planned_without_a_word(planned: Any, tiny: Tiny) -> None:
    plan = planned()
    assert (plan.fallback, plan.planner, plan.warnings) == (None, f"for {tiny.family}", ())
    assert 2 <= plan.steps <= 50
    assert plan.setting.frames == {"wan": 9, "ltxv": 9}.get(tiny.family, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tokens_of_any_precision(planned: Any, tiny: Tiny, dtype: torch.dtype) -> None:
    (tokens, extras), *_ = tiny.positive
    plan = planned([[tokens.to(dtype), extras]])
    assert (plan.fallback, plan.warnings) == (None, ())


def test_values_beyond_half_precision(planned: Any, tiny: Tiny) -> None:
    """Encoders of today give single numbers of 10^5 and more, in bf16."""
    (tokens, extras), *_ = tiny.positive
    large = tokens.clone()
    large[:, 0, 0] = 200_000.0
    assert planned([[large.to(torch.bfloat16), extras]]).fallback is None


def test_padding_does_not_count(planned: Any, tiny: Tiny) -> None:
    (tokens, extras), *_ = tiny.positive
    mask = torch.ones(1, tokens.shape[1], dtype=torch.long)
    mask[:, tokens.shape[1] // 2 :] = 0
    garbage = tokens.clone()
    garbage[:, tokens.shape[1] // 2 :] = 1000.0
    added = torch.where(mask.bool(), 0.0, -torch.finfo(torch.float32).max)
    plans = [
        planned([[words, {**extras, "attention_mask": given}]])
        for words, given in (
            (tokens, mask),
            (garbage, mask),
            (garbage, mask.bool()),
            (garbage, added),
            (garbage, mask[0]),
        )
    ]
    plans.append(planned([[tokens[:, : tokens.shape[1] // 2], {**extras, "attention_mask": None}]]))
    assert all(plan.fallback is None for plan in plans)
    assert len({plan.decision.upper for plan in plans}) == 1


@pytest.mark.parametrize("mask", [torch.zeros(1, 999), torch.zeros(0), torch.tensor(1), "text", None])
def test_a_mask_that_fits_nothing_is_left_alone(planned: Any, tiny: Tiny, mask: Any) -> None:
    (tokens, extras), *_ = tiny.positive
    plain = planned([[tokens, {**extras, "attention_mask": None}]])
    assert planned([[tokens, {**extras, "attention_mask": mask}]]).decision == plain.decision


def test_zeroed_concatenated_and_several_prompts(planned: Any, tiny: Tiny) -> None:
    (tokens, extras), *_ = tiny.positive
    pooled = extras.get("pooled_output")
    zeroed = [[tokens * 0, {**extras, "pooled_output": None if pooled is None else pooled * 0}]]
    assert planned(zeroed).fallback is None
    assert planned([[torch.cat([tokens, tokens], 1), {**extras, "attention_mask": None}]]).fallback is None
    both = planned([*tiny.positive, *tiny.negative])
    assert both.fallback is None
    assert codes(both.warnings) == ["prompts_each"]


def test_an_encoder_that_gives_a_row_for_each_layer(planned: Any, tiny: Tiny) -> None:
    (tokens, extras), *_ = tiny.positive
    assert planned([[tokens[:, None], {**extras, "attention_mask": None}]]).fallback is None


def test_no_pooled_output(planned: Any, tiny: Tiny) -> None:
    (tokens, extras), *_ = tiny.positive
    without = {key: value for key, value in extras.items() if key != "pooled_output"}
    plan = planned([[tokens, without]])
    assert plan.fallback is None
    assert codes(plan.warnings) == ([] if extras.get("pooled_output") is None else ["no_pooled"])


def test_another_number_of_frames_is_named(planned: Any, tiny: Tiny) -> None:
    shape = tiny.latent["samples"].shape
    plan = planned(latent={"samples": torch.zeros(*shape[:2], 5, *shape[-2:])})
    assert plan.fallback is None
    assert codes(plan.warnings) == ["differs frames"]
    assert plan.warnings[0].values["now"] > plan.warnings[0].values["was"]


def test_a_picture_as_a_video_of_one_frame(planned: Any, tiny: Tiny) -> None:
    """Qwen-Image's and Wan's own nodes make [B, C, 1, H, W] for a picture."""
    shape = tiny.latent["samples"].shape
    plan = planned(latent={"samples": torch.zeros(*shape[:2], 1, *shape[-2:])})
    assert codes(plan.warnings) == (["differs frames"] if tiny.family in VIDEO else [])


def test_a_latent_of_several_parts(planned: Any, session: Any, tiny: Tiny) -> None:
    """A video and its sound: the size is that of the first part."""
    nested = __import__("comfy.nested_tensor", fromlist=["NestedTensor"]).NestedTensor
    samples = tiny.latent["samples"]
    mask = torch.ones(1, 1, *samples.shape[-2:])
    parts = {"samples": nested([samples, torch.zeros(1, 8, 16)])}
    plan = planned(latent=parts)
    assert (plan.fallback, plan.warnings) == (None, ())
    masked = planned(latent={**parts, "noise_mask": nested([mask, torch.ones(1, 1, 16)])})
    assert codes(masked.warnings) == ["added noise_mask"]


def test_sound_alone_has_no_size(planned: Any, tiny: Tiny) -> None:
    plan = planned(latent={"samples": torch.zeros(1, tiny.latent["samples"].shape[1], 128)})
    assert (plan.fallback, plan.warnings) == (None, ())


def test_what_is_no_conditioning_is_said(planned: Any) -> None:
    assert code(planned([]).fallback) == "conditioning_empty"
    assert code(planned([[None, {}]]).fallback) == "conditioning_shape"
    assert code(planned([[torch.zeros(1, 3, 0), {}]]).fallback) == "conditioning_shape"
