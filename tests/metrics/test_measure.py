from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from budgetfusion_nodes.core.curves import METRICS
from budgetfusion_nodes.core.errors import BackendMissingError, InputError
from budgetfusion_nodes.metrics import encoders
from budgetfusion_nodes.metrics import measure as measure_module
from budgetfusion_nodes.metrics.backends import load_d_sim
from budgetfusion_nodes.metrics.d_sim import d_sim
from budgetfusion_nodes.metrics.d_sim_haarpsi import HaarPsiBackend
from budgetfusion_nodes.metrics.encoders import HostClipVisionEncoder, OpenClipImageEncoder
from budgetfusion_nodes.metrics.i_clip import i_clip
from budgetfusion_nodes.metrics.l_snr import l_snr
from budgetfusion_nodes.metrics.measure import WORKING_MEMORY, Backends, Series, chunk_of, measure, working_memory

CASES = Path(__file__).parents[1] / "cases"


@pytest.fixture
def both(encoder) -> Backends:
    return Backends(HaarPsiBackend(), encoder)


def test_distances_are_those_of_the_single_metrics(both: Backends, encoder, pictures) -> None:
    x, y = pictures, pictures.flip(0)
    distances = measure(x.permute(0, 2, 3, 1), y, both)
    assert tuple(distances) == METRICS
    assert torch.allclose(distances["l_snr"], (l_snr(x) - l_snr(y)).abs(), atol=1e-3)
    assert torch.allclose(distances["d_sim"], 1 - d_sim(x, y, both.d_sim), atol=1e-6)
    assert torch.allclose(distances["i_clip"], 1 - i_clip(x, y, encoder), atol=1e-6)


def test_the_reference_itself_is_at_zero_and_a_worse_render_is_further(both: Backends, pictures, blurred) -> None:
    reference = pictures[2:3]
    series = torch.cat([blurred(reference, 3.0), blurred(reference, 1.0), reference])
    distances = measure(series, reference, both)
    for name in METRICS:
        far, near, zero = distances[name].tolist()
        assert far > near > zero, name
        assert 0 <= zero < 1e-4, name


def test_a_distance_that_is_no_number_is_an_error_and_no_number(
    both: Backends, pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a network in half precision may give: kept in the store it would spoil every later fit."""
    monkeypatch.setattr(both.d_sim, "similarity", lambda x, y: x.new_tensor([0.5] * (len(x) - 1) + [torch.nan]))
    with pytest.raises(InputError, match="d_sim: haarpsi"):
        measure(pictures, pictures[:1], both)


def test_chunks_do_not_change_the_numbers(both: Backends, pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {n: (measure(pictures, pictures[:1], both), measure(pictures, pictures.flip(0), both)) for n in ["whole"]}
    monkeypatch.setattr(measure_module, "WORKING_MEMORY", 2 * 64 * 64 * both.bytes_per_pixel)
    assert chunk_of(both, 64, 64) == 2
    shared, paired = measure(pictures, pictures[:1], both), measure(pictures, pictures.flip(0), both)
    for name in METRICS:
        assert torch.allclose(shared[name], whole["whole"][0][name], atol=1e-3)
        assert torch.allclose(paired[name], whole["whole"][1][name], atol=1e-3)


def test_one_reference_is_encoded_once(pictures) -> None:
    sizes: list[int] = []

    def encode_image(image: torch.Tensor) -> SimpleNamespace:
        sizes.append(image.shape[0])
        return SimpleNamespace(image_embeds=image.mean(dim=(1, 2)))

    host = HostClipVisionEncoder(SimpleNamespace(encode_image=encode_image))
    measure(pictures, pictures[:1], Backends(HaarPsiBackend(), host))
    assert sizes == [1, 6]


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (150, 70)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sizes_and_dtypes(size, dtype, both: Backends) -> None:
    x = torch.rand(2, *size, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    for distance in measure(x, x[:1], both).values():
        assert distance.shape == (2,)
        assert distance.dtype == torch.float32
        assert bool((distance >= 0).all())
        assert bool(torch.isfinite(distance).all())


def test_device(both: Backends, device: str, pictures) -> None:
    there, here = measure(pictures.to(device), pictures[:1].to(device), both), measure(pictures, pictures[:1], both)
    for name in METRICS:
        assert there[name].device.type == device
        assert torch.allclose(there[name].cpu(), here[name], atol=0.01)


def test_names_of_everything_measured(both: Backends) -> None:
    names = both.names()
    assert names["l_snr"] == "l_snr:laplacian-v2"
    assert names["d_sim"] == "haarpsi"
    assert names["i_clip"].startswith("open_clip:tiny#")
    assert Backends(HaarPsiBackend(), None).names() == {"l_snr": "l_snr:laplacian-v2", "d_sim": "haarpsi"}


def test_without_an_encoder_i_clip_is_an_error_or_left_out_on_request(pictures) -> None:
    without = Backends(HaarPsiBackend(), None)
    with pytest.raises(BackendMissingError, match="Connect a CLIP Vision model"):
        measure(pictures, pictures[:1], without)
    assert tuple(measure(pictures, pictures[:1], without, metrics=("d_sim", "l_snr"))) == ("l_snr", "d_sim")


@pytest.mark.parametrize("metrics", [(), ("ssim",), ("l_snr", "lpips")])
def test_unknown_metrics(metrics: tuple[str, ...], both: Backends, pictures) -> None:
    with pytest.raises(InputError, match="expected some of l_snr, d_sim, i_clip"):
        measure(pictures, pictures[:1], both, metrics)


def test_sad_images(both: Backends) -> None:
    good = torch.rand(2, 64, 64, 3)
    for images, reference, says in (
        (good[:0], good[:1], "batch is empty"),
        (good, good[:0], "reference: the batch is empty"),
        (good * float("nan"), good[:1], "not numbers"),
        (good, torch.rand(1, 32, 64, 3), "Compare images of one size"),
        (good[:, :8], good[:1, :8], "too small"),
        (good, torch.rand(3, 64, 64, 3), "expected 1 image or as many"),
    ):
        with pytest.raises(InputError, match=says):
            measure(images, reference, both)


def test_too_small_for_the_backend_names_it(encoder) -> None:
    backend: Any = SimpleNamespace(name="lpips:alex", min_side=31, bytes_per_pixel=1)
    with pytest.raises(InputError, match="too small for lpips:alex"):
        measure(torch.rand(1, 20, 20, 3), torch.rand(1, 20, 20, 3), Backends(backend, encoder))


def test_backends_from_a_nodes_settings(tiny_clip, write_tiny_clip, monkeypatch, tmp_path) -> None:
    path = write_tiny_clip(tiny_clip)
    host = SimpleNamespace(encode_image=lambda image: None)
    monkeypatch.setattr(encoders, "SHIPPED_ENCODER", path)
    assert Backends.from_values("haarpsi", "none").i_clip is None
    assert isinstance(Backends.from_values("haarpsi").i_clip, OpenClipImageEncoder)
    assert isinstance(Backends.from_values("haarpsi", clip_vision=host).i_clip, HostClipVisionEncoder)
    assert isinstance(Backends.from_values("haarpsi", "shipped", clip_vision=host).i_clip, OpenClipImageEncoder)
    assert isinstance(Backends.from_values("haarpsi", str(path)).i_clip, OpenClipImageEncoder)
    with pytest.raises(BackendMissingError, match="no CLIP Vision model is connected"):
        Backends.from_values("haarpsi", "clip_vision")
    monkeypatch.setattr(encoders, "SHIPPED_ENCODER", tmp_path / "gone.safetensors")
    with pytest.raises(BackendMissingError, match="missing from the pack"):
        Backends.from_values("haarpsi")


def test_pictures_one_at_a_time_are_as_all_at_once(both: Backends, pictures) -> None:
    series, together = Series(pictures[:1], both), measure(pictures, pictures[:1], both)
    singly = [series.add(picture[None]) for picture in pictures]
    for name in METRICS:
        assert torch.allclose(torch.cat([one.distances[name] for one in singly]), together[name], atol=1e-6), name
    assert torch.allclose(torch.cat([one.decibel for one in singly]), l_snr(pictures), atol=1e-4)


def test_a_series_without_l_snr_has_no_decibel_and_one_reference_only(both: Backends, pictures) -> None:
    found = Series(pictures[:1], both, ("d_sim",)).add(pictures)
    assert tuple(found.distances) == ("d_sim",)
    assert bool(torch.isnan(found.decibel).all())
    with pytest.raises(InputError, match="expected 1 image"):
        Series(pictures[:2], both)


@pytest.mark.parametrize("d_sim", ["tiny_scenes", "haarpsi"])
def test_numbers_of_the_first_implementation(d_sim: str, scene, blurred, noisy) -> None:
    """What `measure_trajectories` of version 0.1, which looked at all trajectories at once, gave for these pictures:
    [n, K, M] distances and [n, K] dB. The shipped planner and the benchmark's sweeps were measured with it."""
    expected = json.loads((CASES / "measured_series.json").read_text())[d_sim]
    backends = Backends.from_values(d_sim, "shipped")
    for name, shortfall, decibel in zip(
        ("gradient_disc", "busy"), expected["shortfall"], expected["l_snr"], strict=True
    ):
        x = scene(name)
        found = Series(x, backends).add(torch.cat([blurred(x, 2.0), noisy(x, 0.05), x.roll(1, 3), x]))
        distances = torch.stack([found.distances[metric] for metric in METRICS], dim=-1)
        torch.testing.assert_close(distances[:-1], torch.tensor(shortfall)[:-1], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.decibel, torch.tensor(decibel), atol=1e-4, rtol=1e-4)
        assert distances[-1].tolist() == pytest.approx([0.0] * 3, abs=1e-5)


class Watching(HaarPsiBackend):
    """Notes the flags that it runs under."""

    seen: list[Any]

    def similarity(self, x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        self.seen = [torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32]
        self.seen.append(torch.is_autocast_enabled(x.device.type))
        return super().similarity(x, reference)


def test_measured_without_tf32_and_autocast_and_the_flags_come_back(pictures) -> None:
    watching = Watching()
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = True, True
    try:
        with torch.autocast("cpu", torch.bfloat16):
            measure(pictures, pictures[:1], Backends(watching, None), ("l_snr", "d_sim"))
            assert torch.is_autocast_enabled("cpu")
        assert watching.seen == [False, False, False]
        assert torch.backends.cuda.matmul.allow_tf32 is True
        assert torch.backends.cudnn.allow_tf32 is True
        with pytest.raises(InputError):
            measure(pictures * torch.nan, pictures[:1], Backends(watching, None), ("l_snr",))
        assert torch.backends.cudnn.allow_tf32 is True
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="flags of PyTorch 2.9")
def test_flags_of_the_newer_kind_come_back_too() -> None:
    """In a process of its own: PyTorch raises where both kinds are used."""
    code = (
        "import torch; from budgetfusion_nodes.metrics.precision import full_precision\n"
        "parts = torch.backends.cuda.matmul, torch.backends.cudnn.conv\n"
        "for part in parts: part.fp32_precision = 'tf32'\n"
        "with full_precision(torch.device('cpu')): print(*(part.fp32_precision for part in parts))\n"
        "print(*(part.fp32_precision for part in parts))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CASES.parents[1], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["ieee", "ieee", "tf32", "tf32"]


def test_large_pictures_are_measured_in_chunks_that_fit(encoder) -> None:
    backends = Backends(load_d_sim("haarpsi"), encoder)
    assert chunk_of(backends, 64, 64) == 64
    for side in (512, 1024, 2048):
        needed = working_memory(backends, side, side)
        assert needed <= WORKING_MEMORY or chunk_of(backends, side, side) == 1


def test_a_chosen_device_gives_numbers_where_the_pictures_are(both: Backends, device: str, pictures) -> None:
    found = measure(pictures, pictures[:1], both, device=torch.device(device))
    both.to(torch.device("cpu"))
    here = measure(pictures, pictures[:1], both)
    for name in METRICS:
        assert found[name].device.type == "cpu"
        assert torch.allclose(found[name], here[name], atol=1e-3)
