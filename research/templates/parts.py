"""Nodes that the example graphs share, and what they are set to."""

from __future__ import annotations

from typing import Any

from research.shipped_models import EPS

from .page import Node, link

PROMPT = "three small red circles and two large outlined blue squares on a fine green and white checked background"
HELLO_PROMPT = (
    "a large striped purple heart on the left and three small yellow circles on the right on a plain black background"
)
PHOTOGRAPH = "a watchmaker at a cluttered bench under a warm desk lamp, close-up, shallow depth of field"
"""Like the built-in calibration prompts. A planner made with those warns of every caption of Tiny Scenes."""
PROMPTS = (
    "a plain red background",
    "two large blue circles on a green background",
    "six small white crosses on a wall of pink bricks",
)
"""From easy to hard."""
NEGATIVE = ""
SETTING = EPS.setting
SEED, HELLO_SEED, TWO_PASS_SEED = 7, 1, 2
"""Graphs with equal samplers have seeds of their own: what the host has in its cache it does not show again."""


def loader(name: str = "tiny_scenes.safetensors") -> Node:
    return Node(1, "CheckpointLoaderSimple", {"ckpt_name": name}, 0)


def encoded(number: int, text: str, title: str, clip: list[Any] | None = None) -> Node:
    return Node(number, "CLIPTextEncode", {"text": text, "clip": clip or link(1, 1)}, 1, title, 380)


def empty(size: int, pictures: int = 1) -> Node:
    return Node(4, "EmptyLatentImage", {"width": size, "height": size, "batch_size": pictures}, 0)


def model_and_prompts(prompt: str = PROMPT) -> tuple[Node, ...]:
    return (loader(), empty(64), encoded(2, prompt, "Prompt"), encoded(3, NEGATIVE, "Negative prompt"))


def planner(column: int, **more: Any) -> Node:
    inputs = {
        "model": link(1),
        "positive": link(2),
        **SETTING,
        "quality": 0.9,
        "min_steps": 2,
        "max_steps": 50,
        "risk": 0.1,
        "planner": "auto",
        "latent_image": link(4),
        "schedule": "auto",
        "memory": True,
        "split_at": 0,
        **more,
    }
    return Node(5, "BudgetFusion_BudgetPlanner", inputs, column, width=400)


def adaptive(column: int, number: int = 6, title: str = "", **more: Any) -> Node:
    inputs = {
        "model": link(1),
        "seed": SEED,
        "quality": 0.9,
        "max_steps": 50,
        **SETTING,
        "positive": link(2),
        "negative": link(3),
        "latent_image": link(4),
        "denoise": 1.0,
        "min_steps": 2,
        "risk": 0.1,
        "planner": "auto",
        "schedule": "auto",
        "memory": True,
        **more,
    }
    return Node(number, "BudgetFusion_AdaptiveKSampler", inputs, column, title, 400)


def ksampler(column: int, number: int, steps: Any, title: str = "", seed: Any = SEED, **more: Any) -> Node:
    inputs = {
        "model": link(1),
        "seed": seed,
        "steps": steps,
        **SETTING,
        "positive": link(2),
        "negative": link(3),
        "latent_image": link(4),
        "denoise": 1.0,
        **more,
    }
    return Node(number, "KSampler", inputs, column, title, 320)


def decode_and_save(
    sampler: int, column: int, ids: tuple[int, int] = (8, 9), title: str = "", vae: list[Any] | None = None
) -> tuple[Node, ...]:
    decode, save = ids
    return (
        Node(decode, "VAEDecode", {"samples": link(sampler), "vae": vae or link(1, 2)}, column, width=200),
        Node(save, "SaveImage", {"filename_prefix": "BudgetFusion", "images": link(decode)}, column, title, 320),
    )
