"""What is trained is what the host runs: tokens, text features and denoised pictures agree; the benchmark renders."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from budgetfusion_nodes.tiny_scenes.captions import describe
from budgetfusion_nodes.tiny_scenes.scenes import sample_scenes
from budgetfusion_nodes.tiny_scenes.tokenizer import WordTokenizer
from research.in_process_host import HostRunError
from research.tiny_scenes_training.classifier import SceneClassifier, save_classifier
from research.tiny_scenes_training.evaluate import Generator, run
from research.tiny_scenes_training.training_model import TinyScenesTrainingModel, load_checkpoint


@pytest.fixture(scope="module")
def checkpoint(session: Any, loaded: Any) -> Path:
    """The file that `loaded` came from."""
    return session.base_dir / "models" / "checkpoints" / "random.safetensors"


@pytest.fixture(scope="module")
def trained(checkpoint: Path) -> TinyScenesTrainingModel:
    """The same file in the module that is trained."""
    return load_checkpoint(checkpoint).eval()


def texts() -> list[str]:
    rng = np.random.default_rng(0)
    return ["", "xyzzy, a RED star!", *(describe(s, rng) for s in sample_scenes(25, 0, held_out=True))]


def test_tokens_are_the_hosts(loaded: Any) -> None:
    tokenizer = WordTokenizer()
    for text in texts():
        (chunk,) = loaded.clip.tokenize(text)["tiny"]
        assert [token for token, _ in chunk] == tokenizer.padded(text)
        assert {weight for _, weight in chunk} == {1.0}


def test_text_features_are_the_hosts(loaded: Any, trained: TinyScenesTrainingModel) -> None:
    for text in texts()[:12]:
        ((tokens, extra),) = loaded.encode(text)
        with torch.no_grad():
            context, pooled = trained.encode(torch.tensor([WordTokenizer().padded(text)]))
        assert tokens.shape == context.shape
        assert (tokens.float() - context).abs().max() < 1e-3 * context.abs().max()
        assert (extra["pooled_output"].float() - pooled).abs().max() < 1e-3 * pooled.abs().max().clamp(min=1)


def test_denoised_is_the_hosts(loaded: Any, trained: TinyScenesTrainingModel) -> None:
    """x0 = alpha^2 x - sigma alpha v with x = x0 + sigma eps, at low, middle and the highest noise."""
    sys.modules["comfy.model_management"].load_models_gpu([loaded.model])
    ((tokens, extra),) = loaded.encode("two large blue circles on a green background")
    context, pooled = tokens.float(), extra["pooled_output"].float()
    sampling = loaded.model.get_model_object("model_sampling")
    generator = torch.Generator().manual_seed(1)
    for timestep in (20, 400, 999):
        sigma = sampling.sigmas[timestep].reshape(1)
        x = torch.randn(1, 3, 64, 64, generator=generator) * (0.25 + sigma**2).sqrt()
        alpha = (1 + sigma**2).rsqrt()
        with torch.no_grad():
            host = loaded.model.model.apply_model(x, sigma, c_crossattn=context, y=pooled)
            velocity = trained(alpha * x, torch.tensor([float(timestep)]), context, pooled)
        expected = alpha**2 * x - sigma * alpha * velocity
        assert (host - expected).abs().max() < 1e-4 * expected.abs().max().clamp(min=1)


def test_refused_size_says_what_to_do(bench: Any, make_node: Any) -> None:
    graph = {**bench.base(width=72), "5": bench.adaptive(max_steps=2, min_steps=2)}
    with pytest.raises(HostRunError, match="multiples of 16; got 72 x 64"):
        bench.run(graph, show="5")


@pytest.mark.one_host
def test_pictures_do_not_depend_on_the_batch(host_dir: Path, session: Any, checkpoint: Path) -> None:
    generator = Generator(host_dir, checkpoint)
    assert generator.host is session
    prompts, seeds = ["a red star", "blue bricks with white joints", "plain green"], [1, 2, 3]
    together = generator.pictures(prompts, seeds, steps=3, cfg=3.0, batch=3)
    alone = generator.pictures(prompts, seeds, steps=3, cfg=3.0, batch=1)
    assert together.shape == (3, 3, 64, 64)
    assert 0 <= together.min() <= together.max() <= 1
    assert torch.equal(together * 255, (together * 255).round())
    assert (together - alone).abs().max() <= 1.01 / 255


@pytest.mark.one_host
def test_benchmark_writes_figures_and_grid(host_dir: Path, session: Any, checkpoint: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = tmp_path / "classifier.safetensors"
    save_classifier(SceneClassifier().eval(), classifier, {})
    report, grid = tmp_path / "out.json", tmp_path / "grid.png"
    found = run(
        host_dir,
        checkpoint,
        classifier,
        count=4,
        lone_objects=2,
        seed=1,
        steps=2,
        cfgs=[1.0, 2.0],
        sampler_name="dpmpp_2m",
        scheduler="karras",
        json_path=report,
        grid_path=grid,
    )
    written = json.loads(report.read_text())
    assert [entry["cfg"] for entry in written["evaluations"]] == [1.0, 2.0] == [entry.cfg for entry in found]
    assert written["host"] == session.version
    assert written["checkpoint"]["note"] == "untrained, for tests"
    assert found[0].scores[0].n == 4
    assert grid.stat().st_size > 5000
