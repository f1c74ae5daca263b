from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from budgetfusion_nodes.core.curves import METRICS
from budgetfusion_nodes.core.errors import BackendMissingError, InputError
from budgetfusion_nodes.metrics import Backends, backend_names, from_values, measure
from budgetfusion_nodes.metrics import backends as backends_module
from budgetfusion_nodes.metrics import measure as measure_function
from budgetfusion_nodes.metrics.backends import HaarPsiBackend, HostClipVisionEncoder, OpenClipImageEncoder
from budgetfusion_nodes.metrics.d_sim import d_sim
from budgetfusion_nodes.metrics.i_clip import i_clip
from budgetfusion_nodes.metrics.l_snr import l_snr


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


def test_chunks_do_not_change_the_numbers(both: Backends, pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {n: (measure(pictures, pictures[:1], both), measure(pictures, pictures.flip(0), both)) for n in ["whole"]}
    monkeypatch.setitem(measure_function.__globals__, "CHUNK_PIXELS", 2 * 64 * 64)
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
    names = backend_names(both)
    assert names == both.names()
    assert names["l_snr"] == "l_snr:laplacian-v2"
    assert names["d_sim"] == "haarpsi"
    assert names["i_clip"].startswith("open_clip:tiny#")
    assert backend_names(Backends(HaarPsiBackend(), None)) == {"l_snr": "l_snr:laplacian-v2", "d_sim": "haarpsi"}


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
    backend: Any = SimpleNamespace(name="lpips:alex", min_side=31, similarity=None)
    with pytest.raises(InputError, match="too small for lpips:alex"):
        measure(torch.rand(1, 20, 20, 3), torch.rand(1, 20, 20, 3), Backends(backend, encoder))


def test_from_values_turns_metric_values_into_distances() -> None:
    db = torch.tensor([12.0, 20.5])
    out = from_values(
        l_snr=(db, torch.tensor([15.0])), d_sim=torch.tensor([0.25, 1.0000001]), i_clip=torch.tensor([1.0])
    )
    assert torch.allclose(out["l_snr"], torch.tensor([3.0, 5.5]))
    assert out["d_sim"].tolist() == [0.75, 0.0]
    assert out["i_clip"].tolist() == [0.0]
    assert tuple(from_values(d_sim=torch.ones(1))) == ("d_sim",)


def test_backends_from_a_nodes_settings(tiny_clip, write_tiny_clip, monkeypatch, tmp_path) -> None:
    path = write_tiny_clip(tiny_clip)
    host = SimpleNamespace(encode_image=lambda image: None)
    monkeypatch.setattr(backends_module, "SHIPPED_ENCODER", path)
    assert Backends.from_values("haarpsi", "none").i_clip is None
    assert isinstance(Backends.from_values("haarpsi").i_clip, OpenClipImageEncoder)
    assert isinstance(Backends.from_values("haarpsi", clip_vision=host).i_clip, HostClipVisionEncoder)
    assert isinstance(Backends.from_values("haarpsi", "shipped", clip_vision=host).i_clip, OpenClipImageEncoder)
    assert isinstance(Backends.from_values("haarpsi", str(path)).i_clip, OpenClipImageEncoder)
    with pytest.raises(BackendMissingError, match="no CLIP Vision model is connected"):
        Backends.from_values("haarpsi", "clip_vision")
    monkeypatch.setattr(backends_module, "SHIPPED_ENCODER", tmp_path / "gone.safetensors")
    with pytest.raises(BackendMissingError, match="missing from the pack"):
        Backends.from_values("haarpsi")
