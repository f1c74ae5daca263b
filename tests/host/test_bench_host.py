"""The benchmark's command in the genuine host: a few prompts, a few counts, one of each kind of peer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from research import cli
from research.bench import settings
from research.bench.catalogue import Catalogue, open_prompts
from research.bench.gpu_profile import SD21_PARAMETERS, sd21_profile, sd21_unet
from research.bench.renders import counting, run_cached
from research.bench.settings import Cached
from research.options import WEIGHTS
from research.sweeps.picture_sets import PictureSets
from research.sweeps.rendering import LoadedModel, Renderer, Sampling
from research.sweeps.studio import Studio

pytestmark = pytest.mark.one_host

PROMPTS = 4
SMALL: dict[str, Any] = {
    "STOCK_COUNTS": (2, 4, 6),
    "TAILS": (1,),
    "TARGET": 6,
    "LARGEST_COUNT": 6,
    "PEER_COUNTS": (4,),
    "SCHEDULERS": ("karras", "beta"),
    "TIMED_COUNTS": (2, 4),
    "TIMED_PROMPTS": 1,
    "CACHED": (Cached("LazyCache", "LazyCache", 3.0, 6), Cached("dpm_adaptive", None, 1.0)),
}


@pytest.fixture(scope="module")
def studio(session: Any, loaded: Any, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    model = LoadedModel(loaded.model, loaded.clip, loaded.vae, session.version)
    folder = tmp_path_factory.mktemp("sets")
    return Studio(Renderer(model, Sampling()), PictureSets(folder, open_prompts(folder, PROMPTS)))


def test_the_command_renders_measures_and_reports(
    session: Any, host_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(settings, name, value)
    arguments = ["--quiet", "bench", "--host", str(host_dir), "--pictures", str(tmp_path / "pictures"), "--out"]
    arguments += [str(tmp_path), "--settings", "eps_karras", "--prompts", str(PROMPTS), "--peer-prompts", str(PROMPTS)]
    arguments += ["--nested", "eps_karras=4@1.0", "--planners", str(WEIGHTS / "planners")]
    assert cli.main(arguments) == 0, capsys.readouterr().err
    folder = tmp_path / "pictures" / "eps_karras"
    catalogue = Catalogue.load(folder)
    assert set(catalogue.family("stock")) == {2, 4, 6} and set(catalogue.family("nested")) == {5, 6}
    assert catalogue.nested == "nested 4@1.0" and not catalogue.unusable
    found = json.loads((tmp_path / "bench.json").read_text())["settings"]["eps_karras"]
    rows = {f"{row['family']} {row['label']}": row for row in found["methods"]}
    assert {"AYS (SD1) 4", "GITS 1.2 4", "beta 4", "LazyCache 3 at 6", "dpm_adaptive rtol 1"} <= set(rows)
    assert 2 <= rows["LazyCache 3 at 6"]["evaluations"] < 6 and rows["stock 4"]["seconds"] > 0
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*.pt")}
    assert cli.main([*arguments, "--stages", "render,peers"]) == 0
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*.pt")} == before


def test_a_set_holds_the_stock_samplers_pictures(studio: Studio, loaded: Any) -> None:
    sigmas = studio.stock(4)
    studio.prepare([sigmas])
    text, seed = studio.sets.rows[3]
    nodes = sys.modules["nodes"]
    with torch.inference_mode():
        (empty,) = nodes.EmptyLatentImage().generate(64, 64, 1)
        (latent,) = nodes.common_ksampler(
            loaded.model, seed, 4, 3.0, "dpmpp_2m", "karras", loaded.encode(text), studio.renderer.negative, empty
        )
        (image,) = nodes.VAEDecode().decode(loaded.vae, latent)
    from research.sweeps.picture_sets import sigma_key

    found = studio.sets.picture(sigma_key(sigmas), 1, 1)
    torch.testing.assert_close(found, image[0].permute(2, 0, 1).clone(), atol=1e-3, rtol=0.0)  # kept in half precision


@pytest.mark.parametrize("node", ["EasyCache", "LazyCache"])
def test_caches_save_evaluations_that_are_counted(studio: Studio, node: str) -> None:
    from budgetfusion_nodes.core.schedule import NestedSchedule

    conditionings = studio.renderer.encode(["a red star", "a blue ring"])
    schedule = NestedSchedule(5, 1.0, studio.tail_end)
    _, evaluations = run_cached(studio, Cached(node, node, 3.0, 20), schedule, conditionings, [1, 2])
    assert 2 <= evaluations < 20


@pytest.mark.parametrize("wrapped", [True, False])
def test_counting_leaves_the_picture_alone(studio: Studio, wrapped: bool) -> None:
    """Also in a network that runs no wrappers of its own, as the host's MMDiT."""
    from comfy.patcher_extension import WrappersMP

    model, counted = counting(studio.model)
    if not wrapped:
        model.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, "budgetfusion_count")
    given = studio.renderer.encode(["a red star"]), [1], studio.stock(4)
    assert torch.equal(studio.latents(model, *given), studio.latents(studio.model, *given))
    assert counted.pictures == 2 * 4, "with and without the prompt"


class WeighingVae:
    """Decodes with a weight that asks for gradients, as a KL-VAE's do; the pixel VAE of Tiny Scenes has none."""

    def __init__(self) -> None:
        with torch.inference_mode():  # as the host loads a checkpoint
            self.weight = torch.nn.Parameter(torch.full((1,), 0.5))

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        return (samples * self.weight).movedim(1, -1)


def test_a_vae_with_weights_decodes_to_plain_pictures(loaded: Any) -> None:
    renderer = Renderer(LoadedModel(loaded.model, loaded.clip, WeighingVae(), "0"), Sampling())
    latents = torch.rand(6, 3, 16, 16)
    images = renderer.images(latents)
    assert not images.requires_grad and not images.is_inference()
    torch.testing.assert_close(images, latents * 0.5)


def test_the_gpu_profile_has_the_real_size(session: Any) -> None:
    network = sd21_unet("meta", torch.float16)
    assert sum(p.numel() for p in network.parameters()) == SD21_PARAMETERS
    if not torch.cuda.is_available():
        assert sd21_profile(50, 18) == {"measured": False, "reason": "no CUDA device in this run"}
