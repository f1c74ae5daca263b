"""Sweeps in the genuine host: batched trajectories equal single renders, and worker processes equal this process."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from budgetfusion_nodes.core.curves import METRICS
from budgetfusion_nodes.host.batch import encode_prompts, render_batch
from budgetfusion_nodes.metrics.measure import Backends, measure
from budgetfusion_nodes.predictor.dataset import SweepDataset
from research.sweeps.convergence import COLUMNS, compare_schedulers
from research.sweeps.prompts import PromptList, tiny_scenes_prompts
from research.sweeps.rendering import LoadedModel, Renderer, Sampling, with_first_evaluation_reused
from research.sweeps.sweep import SweepJob, make_spec, merge, prepare, run_here, run_sweep, run_workers
from research.tiny_scenes_training.image_encoder import build_model, save_encoder

GRID = (2, 3, 8)
SAMPLING = Sampling()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained image encoder of the shipped one's shape."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("encoder") / "random_clip.safetensors"
    save_encoder(build_model(), path, {"note": "untrained"})
    return path


@pytest.fixture(scope="module")
def prompts() -> PromptList:
    return tiny_scenes_prompts(5, {"train": 1, "calibration": 1, "test": 1}, {"train": 1, "calibration": 2, "test": 2})


@pytest.fixture(scope="module")
def job(session: Any, loaded: Any, encoder: Path, prompts: PromptList, tmp_path_factory: Any) -> SweepJob:
    checkpoint = session.base_dir / "models" / "checkpoints" / "random.safetensors"
    spec = make_spec(checkpoint, prompts, SAMPLING, str(encoder), grid=GRID, batch=3)
    out = tmp_path_factory.mktemp("sweep")
    return SweepJob(out, session.host_dir, checkpoint, spec, prompts, image_encoder=str(encoder), keep_images=2)


@pytest.fixture(scope="module")
def swept(job: SweepJob, session: Any) -> SweepDataset:
    run_here(job, prepare(job), session.base_dir)
    return merge(job).dataset


def test_batched_trajectories_measure_like_single_renders_of_the_stock_sampler(
    swept: SweepDataset, job: SweepJob, loaded: Any, encoder: Path
) -> None:
    nodes, backends = sys.modules["nodes"], Backends.from_values(job.spec.d_sim, str(encoder))
    (negative,) = encode_prompts(loaded.clip, [""])
    for row, prompt in enumerate(job.prompts.prompts):
        (positive,) = encode_prompts(loaded.clip, [prompt.text])
        seed = prompt.seeds[-1]
        images = []
        for steps in GRID:
            with torch.inference_mode():
                (empty,) = nodes.EmptyLatentImage().generate(64, 64, 1)
                (latent,) = nodes.common_ksampler(
                    loaded.model, seed, steps, 3.0, "dpmpp_2m", "karras", positive, negative, empty
                )
                images.append(nodes.VAEDecode().decode(loaded.vae, latent)[0])
        series = torch.cat(images).clone()
        expected = measure(series, series[-1:], backends)
        found = swept.shortfall[row, len(prompt.seeds) - 1]
        for column, metric in enumerate(METRICS):
            np.testing.assert_allclose(found[:, column], expected[metric].numpy(), atol=2e-3, rtol=2e-2)
        assert (found[0] > 1e-3).all()  # two steps differ from eight in every metric


def test_the_data_carry_conditioning_setting_and_backends(
    swept: SweepDataset, job: SweepJob, loaded: Any, setting: Any, encoder: Path
) -> None:
    assert swept.setting == setting
    assert set(swept.backends) == set(METRICS) and encoder.stem in swept.backends["i_clip"]
    (conditioning,) = encode_prompts(loaded.clip, [job.prompts.prompts[1].text])
    np.testing.assert_allclose(swept.tokens[1], conditioning[0][0][0].half().numpy(), atol=1e-3)
    np.testing.assert_allclose(swept.pooled[1], conditioning[0][1]["pooled_output"][0].half().numpy(), atol=1e-3)
    assert np.isnan(swept.shortfall[swept.seeds < 0]).all()
    assert (swept.seeds >= 0).sum() == 5
    assert len(list((job.out / "images").glob("*.png"))) == 2


class WeighingVae:
    """Decodes with a weight that asks for gradients, as a KL-VAE's do; the pixel VAE of Tiny Scenes has none."""

    def __init__(self) -> None:
        with torch.inference_mode():  # as the host loads a checkpoint
            self.weight = torch.nn.Parameter(torch.full((1,), 0.5))

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        return (samples * self.weight).movedim(1, -1)


def test_a_vae_with_weights_decodes_to_plain_pictures(loaded: Any) -> None:
    renderer = Renderer(LoadedModel(loaded.model, loaded.clip, WeighingVae(), "0"), SAMPLING, None)
    latents = torch.rand(2, 3, 3, 16, 16)
    images = renderer.images(latents)
    assert not images.requires_grad and not images.is_inference()
    torch.testing.assert_close(images, latents * 0.5)


def test_measuring_in_parts_changes_nothing(loaded: Any, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = Renderer(
        LoadedModel(loaded.model, loaded.clip, loaded.vae, "0"), SAMPLING, Backends.from_values("haarpsi", str(encoder))
    )
    images = torch.rand(3, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    whole = renderer.measure(images * 2 - 1, images)
    monkeypatch.setattr("research.sweeps.rendering.CHUNK_PIXELS", 64 * 64 * 2)
    parts = renderer.measure(images * 2 - 1, images)
    for name in ("shortfall", "l_snr", "judges"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), atol=1e-5, rtol=1e-5)


def test_a_killed_run_goes_on_where_it_stopped(
    swept: SweepDataset, job: SweepJob, session: Any, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    def kill_in_the_second_shard(_evaluations: int) -> None:
        if again.shard_path(0).is_file():
            raise Killed

    again = replace(job, out=tmp_path / "again", keep_images=0)
    with pytest.raises(Killed):
        run_here(again, prepare(again), session.base_dir, kill_in_the_second_shard)
    assert prepare(again) == [1]
    first = again.shard_path(0).stat().st_mtime_ns
    run_sweep(again, workers=1)
    assert again.shard_path(0).stat().st_mtime_ns == first
    np.testing.assert_array_equal(merge(again).dataset.shortfall, swept.shortfall)


def test_worker_processes_give_the_same_shards(swept: SweepDataset, job: SweepJob, tmp_path: Path) -> None:
    again = replace(job, out=tmp_path / "workers", keep_images=0)
    told: list[int] = []
    run_workers(again, prepare(again), 2, told.append)
    found = merge(again).dataset
    # Another number of threads sums in another order; on random weights that is up to a thousandth of a decibel.
    np.testing.assert_allclose(found.shortfall, swept.shortfall, atol=2e-3, rtol=2e-2)
    assert found.setting == swept.setting and found.prompts == swept.prompts
    assert sum(told) == again.evaluations(range(2)) == 5 * sum(GRID)


def test_reusing_the_first_evaluation_changes_no_bit_and_saves_one_a_run(loaded: Any) -> None:
    from comfy.patcher_extension import WrappersMP  # pyright: ignore[reportMissingImports]

    calls: list[float] = []

    def count(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(float(args[1][0]))
        return executor(*args, **kwargs)

    positives, (negative,) = (
        encode_prompts(loaded.clip, ["a red star", "a blue ring"]),
        encode_prompts(loaded.clip, [""]),
    )
    counted = loaded.model.clone()
    counted.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "count", count)
    plain = [render_batch(counted, positives, negative, [1, 2], steps) for steps in GRID]
    evaluations = len(calls)
    calls.clear()
    reusing = with_first_evaluation_reused(counted)
    reused = [render_batch(reusing, positives, negative, [1, 2], steps) for steps in GRID]
    assert all(torch.equal(a, b) for a, b in zip(plain, reused, strict=True))
    assert (evaluations, len(calls)) == (sum(GRID), sum(GRID) - len(GRID) + 1)
    other_noise = render_batch(reusing, positives, negative, [3, 4], 3)
    assert torch.equal(other_noise, render_batch(counted, positives, negative, [3, 4], 3))


def test_prompts_of_different_length_are_rendered_in_one_call(loaded: Any, session: Any) -> None:
    renderer = Renderer(LoadedModel(loaded.model, loaded.clip, loaded.vae, session.version), SAMPLING, None)
    short, long = renderer.encode(["a red star", " ".join(["a red star and"] * 15)])
    both = renderer.latents([short, long, short], [1, 2, 3], (2, 3))
    alone = renderer.latents([short], [3], (2, 3))
    assert both.shape == (3, 2, 3, 64, 64)
    assert (both[2] - alone[0]).abs().max() < 1e-4
    assert (both[0] - both[1]).abs().max() > 0.1


def test_convergence_compares_each_scheduler_with_its_own_limit(loaded: Any, session: Any, encoder: Path) -> None:
    model = LoadedModel(loaded.model, loaded.clip, loaded.vae, session.version)
    backends = Backends.from_values("haarpsi", str(encoder))
    prompts = tiny_scenes_prompts(6, {"train": 0, "calibration": 2, "test": 0})
    found = compare_schedulers(model, SAMPLING, backends, prompts, ("karras", "normal"), (2, 4), target=8)
    assert set(found.distance) == {"karras", "normal"} and found.grid == (2, 4)
    for value in found.distance.values():
        assert value.shape == (2, len(COLUMNS)) and (value[0, 3] > value[1, 3] > 0)  # four steps are nearer than two
    scores = found.scores()
    assert scores[found.best()] <= 1.0 <= max(scores.values())
    assert found.limits_apart["karras"] == 0.0 < found.limits_apart["normal"]
    assert found.best() in found.table().splitlines()[-1]
