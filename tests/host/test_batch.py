"""Batches of different prompts in the genuine host: every picture is the one that the stock KSampler gives alone."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from budgetfusion_nodes.core.errors import InputError, UnsupportedError
from budgetfusion_nodes.host.batch import empty_latent, encode_prompts, render_batch, stack_conditionings, token_count
from research.sweeps.noisy import render_noisy
from research.sweeps.rendering import LoadedModel, Renderer, Sampling

PROMPTS = ("a plain red background", "two large blue circles on green", "six small white crosses on fine red bricks")
SEEDS = (5, 123456789, 2**53 + 1)


@pytest.mark.parametrize(
    ("sampler_name", "scheduler"),
    [("dpmpp_2m", "karras"), ("euler", "normal"), ("dpmpp_2m_sde", "karras"), ("dpmpp_sde_gpu", "exponential")],
)
def test_batch_equals_single_pictures(loaded: Any, sampler_name: str, scheduler: str) -> None:
    positives, (negative,) = encode_prompts(loaded.clip, PROMPTS), encode_prompts(loaded.clip, [""])
    batch = render_batch(
        loaded.model, positives, negative, SEEDS, 4, sampler_name=sampler_name, scheduler=scheduler, cfg=3.0
    )
    assert batch.shape == (3, 3, 64, 64)
    assert not batch.is_inference()
    nodes = sys.modules["nodes"]
    for index, (positive, seed) in enumerate(zip(positives, SEEDS, strict=True)):
        with torch.inference_mode():
            (empty,) = nodes.EmptyLatentImage().generate(64, 64, 1)
            (alone,) = nodes.common_ksampler(
                loaded.model, seed, 4, 3.0, sampler_name, scheduler, positive, negative, empty
            )
        assert (batch[index] - alone["samples"][0]).abs().max() < 1e-4
    assert (batch[0] - batch[1]).abs().max() > 0.1  # the prompts and seeds are not mixed up


def test_latent_is_the_stock_one(loaded: Any) -> None:
    assert empty_latent(loaded.model, 2, 128, 64).shape == (2, 3, 64, 128)


def test_refusals(loaded: Any) -> None:
    short, long = encode_prompts(loaded.clip, ["a star", " ".join(["star"] * 60)])
    assert token_count(short) == 48
    assert token_count(long) == 96
    with pytest.raises(InputError, match="token_count"):
        stack_conditionings([short, long])
    with pytest.raises(InputError, match="one entry"):
        stack_conditionings([short + short])
    with pytest.raises(InputError, match="seeds"):
        render_batch(loaded.model, [short], short, [1, 2], 2)
    with pytest.raises(UnsupportedError, match="euler_ancestral"):
        render_batch(loaded.model, [short], short, [1], 2, sampler_name="euler_ancestral")
    given = [[short[0][0], {**short[0][1], "guidance": 3.5}]]
    other = [[short[0][0], {**short[0][1], "guidance": 2.0}]]
    assert stack_conditionings([given, given])[0][1]["guidance"] == 3.5
    with pytest.raises(InputError, match="guidance"):
        stack_conditionings([given, other])


@pytest.mark.parametrize("sampler_name", ["euler_ancestral", "er_sde", "dpmpp_3m_sde"])
def test_the_study_of_noisy_samplers_renders_each_picture_as_alone(loaded: Any, sampler_name: str) -> None:
    given = LoadedModel(loaded.model, loaded.clip, loaded.vae, "")
    renderer = Renderer(given, Sampling(sampler_name, "karras"))
    positives = renderer.encode(PROMPTS[:2])
    batch = render_noisy(renderer, positives, SEEDS[:2], 4)
    for index, (positive, seed) in enumerate(zip(positives, SEEDS, strict=False)):
        with torch.inference_mode():
            (empty,) = sys.modules["nodes"].EmptyLatentImage().generate(64, 64, 1)
            (alone,) = sys.modules["nodes"].common_ksampler(
                loaded.model, seed, 4, 3.0, sampler_name, "karras", positive, renderer.negative, empty
            )
        assert (batch[index] - alone["samples"][0]).abs().max() < 1e-3
