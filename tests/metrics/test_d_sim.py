"""D-SIM: each backend against its library's own answer; weights are made here, nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from budgetfusion_nodes.core.errors import BackendMissingError, InputError
from budgetfusion_nodes.metrics import backends, d_sim_dreamsim, d_sim_st_lpips, weights
from budgetfusion_nodes.metrics.backends import load_d_sim
from budgetfusion_nodes.metrics.d_sim import d_sim
from budgetfusion_nodes.metrics.d_sim_dreamsim import DreamSimBackend
from budgetfusion_nodes.metrics.d_sim_haarpsi import HaarPsiBackend
from budgetfusion_nodes.metrics.d_sim_lpips import LPIPS_MIN_SIDE, LpipsBackend
from budgetfusion_nodes.metrics.interfaces import DSimBackend

pytestmark = [
    pytest.mark.filterwarnings("ignore:The parameter 'pretrained':UserWarning"),  # how lpips calls torchvision
    pytest.mark.filterwarnings("ignore:Arguments other than a weight enum:UserWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),  # how dreamsim calls peft
]


@pytest.fixture(autouse=True)
def no_network_and_fresh_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Weight folders point at an empty place, and any attempt to fetch fails the test."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("tried to use the network")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path / "hub"))
    monkeypatch.setattr(d_sim_dreamsim, "dreamsim_folders", lambda: (tmp_path / "dreamsim",))
    backends._load_named.cache_clear()
    yield
    backends._load_named.cache_clear()


def hide_packages(monkeypatch: pytest.MonkeyPatch, hidden: Callable[[str], bool]) -> None:
    """As if these packages were not installed."""
    for module in (weights, backends):
        monkeypatch.setattr(module, "has_package", lambda package: not hidden(package))


@pytest.fixture
def no_st_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an installation without the optional package."""
    monkeypatch.setattr(backends, "find_st_lpips", lambda net: None)
    hide_packages(monkeypatch, lambda package: package == d_sim_st_lpips.PACKAGE)


@pytest.fixture(scope="module")
def lpips_model() -> nn.Module:
    """AlexNet trunk with random weights, the package's own trained linear layers."""
    import lpips

    torch.manual_seed(1)
    return lpips.LPIPS(net="alex", pretrained=True, pnet_rand=True, verbose=False)


def write_dreamsim(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A complete DreamSim weight folder of type clip_vitb32 with random weights of a narrow ViT.

    The package's API fixes the ViT-B size, so its `vit_base` is replaced by a narrow one of the package's own class;
    everything else, from the weight files over the LoRA to the cosine, is the package's.
    """
    from dreamsim.feature_extraction import load_clip_as_dino
    from dreamsim.feature_extraction.vision_transformer import VisionTransformer
    from peft import LoraConfig, get_peft_model

    narrow = partial(VisionTransformer, embed_dim=32, depth=3, num_heads=2, qkv_bias=True)
    monkeypatch.setattr(load_clip_as_dino, "vit_base", narrow)
    folder.mkdir(parents=True)
    torch.manual_seed(4)
    vit: Any = narrow(patch_size=32)
    vit.pos_drop = nn.LayerNorm(32)  # where CLIP has its first norm
    state = {**vit.state_dict(), "proj": torch.randn(32, 16)}
    torch.save({"state_dict": state}, folder / "clip_vitb32_pretrain.pth.tar")

    from dreamsim import PerceptualModel

    model = PerceptualModel("clip_vitb32", "embedding", "32", lora=True, load_dir=str(folder), device="cpu")
    adapter = LoraConfig(r=2, lora_alpha=4, lora_dropout=0.0, bias="none", target_modules=["qkv"])
    tuned = get_peft_model(model, adapter)
    for key, parameter in tuned.named_parameters():
        if "lora_B" in key:  # starts as zero, which would leave the adapter without effect
            nn.init.normal_(parameter, std=0.5)
    tuned.save_pretrained(str(folder / "clip_vitb32_single_lora"))


@pytest.fixture(params=["haarpsi", "st_lpips:alex", "st_lpips:vgg", "lpips", "dreamsim", "tiny_scenes"])
def backend(request, lpips_model, tmp_path, monkeypatch) -> DSimBackend:
    if request.param == "haarpsi":
        return HaarPsiBackend()
    if request.param == "lpips":
        return LpipsBackend(lpips_model, "alex")
    if request.param == "tiny_scenes" or request.param.startswith("st_lpips"):
        return load_d_sim(request.param)
    write_dreamsim(tmp_path / "weights", monkeypatch)
    return DreamSimBackend.from_folder(tmp_path / "weights", "clip_vitb32")


# ---------------------------------------------------------------------------------------- every backend, all demands


def test_identity_is_one(backend, pictures) -> None:
    assert torch.allclose(d_sim(pictures, pictures, backend), torch.ones(6), atol=1e-5)


def test_bounds_and_symmetry(backend, pictures) -> None:
    forth, back = d_sim(pictures, pictures.flip(0), backend), d_sim(pictures.flip(0), pictures, backend)
    assert torch.allclose(forth, back, atol=1e-4)
    assert bool((forth < 0.999).all())
    if backend.name == "haarpsi":
        assert bool(((forth >= 0) & (forth <= 1)).all())


def test_blur_noise_and_shift_lower_it_by_their_size(backend, pictures, blurred, noisy) -> None:
    for changed in (
        [blurred(pictures, s) for s in (0.5, 2.0)],
        [noisy(pictures, s) for s in (0.02, 0.15)],
    ):
        little, much = (float(d_sim(c, pictures, backend).mean()) for c in changed)
        assert 1.0 > little > much
    assert float(d_sim(pictures.roll(4, dims=3), pictures, backend).mean()) < 0.9999


def test_batch_equals_one_by_one_and_one_reference_serves_all(backend, pictures, blurred) -> None:
    soft = blurred(pictures, 1.0)
    together = d_sim(soft, pictures, backend)
    assert together.shape == (6,)
    singly = torch.cat([d_sim(s[None], p[None], backend) for s, p in zip(soft, pictures, strict=True)])
    assert torch.allclose(together, singly, atol=1e-5)
    assert torch.allclose(
        d_sim(pictures, pictures[2:3], backend),
        d_sim(pictures, pictures[2:3].expand(6, -1, -1, -1), backend),
        atol=1e-5,
    )


@pytest.mark.parametrize("size", [(64, 64), (64, 97), (130, 72)])
def test_any_size(backend, size: tuple[int, int]) -> None:
    x, y = torch.rand(2, 2, 3, *size, generator=torch.Generator().manual_seed(0)).unbind(0)
    values = d_sim(x, y, backend)
    assert bool(torch.isfinite(values).all())
    assert torch.allclose(values, d_sim(x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1), backend), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(backend, dtype: torch.dtype, pictures) -> None:
    x, y = pictures.to(dtype), pictures.flip(0).to(dtype)
    out = d_sim(x, y, backend)
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(out.float(), d_sim(x.float(), y.float(), backend), atol=1e-4)


def test_device(backend, device: str, pictures) -> None:
    out = d_sim(pictures.to(device), pictures.flip(0).to(device), backend)
    assert out.device.type == device
    assert torch.allclose(out.cpu(), d_sim(pictures, pictures.flip(0), backend), atol=1e-3)


def test_name_and_no_gradient(backend, pictures) -> None:
    assert backend.name.partition("#")[0] in (
        "haarpsi",
        "st_lpips:alex",
        "st_lpips:vgg",
        "lpips:alex",
        "dreamsim:clip_vitb32",
        "tiny_scenes:tiny_scenes_clip",
    )
    assert not d_sim(pictures.requires_grad_(False), pictures, backend).requires_grad


# ---------------------------------------------------------------------------------------- the libraries' own answers


def test_haarpsi_is_piqs(pictures, blurred) -> None:
    import piq

    x, y = pictures, blurred(pictures, 1.5)
    assert torch.allclose(d_sim(x, y, "haarpsi"), piq.haarpsi(x, y, reduction="none"), atol=1e-6)


def test_haarpsi_of_two_black_images_is_one() -> None:
    import piq

    black = torch.zeros(1, 3, 64, 64)
    assert torch.isinf(piq.haarpsi(black, black))  # what is corrected here
    assert d_sim(black, black, "haarpsi").tolist() == [1.0]
    assert float(d_sim(black, black + 0.5, "haarpsi")) < 0.7


def test_lpips_is_the_librarys(lpips_model, pictures, blurred) -> None:
    x, y = pictures, blurred(pictures, 1.5)
    with torch.no_grad():
        expected = 1 - lpips_model(x, y, normalize=True).flatten()
    assert torch.equal(d_sim(x, y, LpipsBackend(lpips_model, "alex")), expected)


def save_squeezenet(folder: Path) -> Path:
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

    torch.manual_seed(2)
    path = folder / "checkpoints" / Path(SqueezeNet1_1_Weights.IMAGENET1K_V1.url).name
    path.parent.mkdir(parents=True)
    torch.save(squeezenet1_1().state_dict(), path)
    return path


def test_lpips_from_trunk_on_disk_is_the_librarys_own_loading(tmp_path: Path, pictures, no_st_lpips) -> None:
    import lpips

    save_squeezenet(tmp_path / "hub")
    assert backends.available_d_sim_backends() == ("lpips", "haarpsi")
    loaded = load_d_sim("auto")
    assert loaded.name.startswith("lpips:squeeze#")
    assert load_d_sim(loaded.name).name == loaded.name
    library = lpips.LPIPS(net="squeeze", verbose=False)  # finds the same file in the hub folder
    with torch.no_grad():
        expected = 1 - library(pictures, pictures.flip(0), normalize=True).flatten()
    assert torch.equal(d_sim(pictures, pictures.flip(0)), expected)


def test_dreamsim_is_the_librarys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dreamsim import dreamsim

    write_dreamsim(tmp_path / "dreamsim", monkeypatch)
    loaded = load_d_sim("auto")
    assert loaded.name.startswith("dreamsim:clip_vitb32#")
    library, _ = dreamsim(
        pretrained=True, device="cpu", cache_dir=str(tmp_path / "dreamsim"), dreamsim_type="clip_vitb32"
    )
    x, y = torch.rand(2, 3, 3, 224, 224, generator=torch.Generator().manual_seed(1)).unbind(0)
    expected = 1 - library(x, y)
    assert float(expected.std()) > 0
    assert torch.allclose(d_sim(x, y, loaded), expected, atol=1e-6)


def test_dreamsim_resizes_as_its_own_preprocessing_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo) -> None:
    from PIL import Image

    write_dreamsim(tmp_path / "dreamsim", monkeypatch)
    from dreamsim import dreamsim

    library, preprocess = cast(
        "tuple[Any, Any]",
        dreamsim(pretrained=True, device="cpu", cache_dir=str(tmp_path / "dreamsim"), dreamsim_type="clip_vitb32"),
    )
    pair = [photo(name)[:, :, :300, :400] for name in ("astronaut", "coffee")]
    as_pil = [Image.fromarray((p[0].permute(1, 2, 0) * 255).round().byte().numpy()) for p in pair]
    first, second = (preprocess(p) for p in as_pil)
    expected = 1 - library(first, second)
    assert torch.allclose(d_sim(pair[0], pair[1], load_d_sim("dreamsim")), expected, atol=2e-3)


# -------------------------------------------------------------------------------------------- choosing and sad paths


def test_without_weights_auto_is_haarpsi_and_says_so(caplog: pytest.LogCaptureFixture, pictures, no_st_lpips) -> None:
    assert backends.available_d_sim_backends() == ("haarpsi",)
    with caplog.at_level("INFO"):
        assert torch.equal(d_sim(pictures, pictures.flip(0)), d_sim(pictures, pictures.flip(0), "haarpsi"))
    assert "auto chose haarpsi" in caplog.text


@pytest.mark.parametrize("name", ["dreamsim", "dreamsim:ensemble", "lpips", "lpips:vgg"])
def test_a_named_backend_without_weights_is_refused_not_replaced(name: str) -> None:
    with pytest.raises(BackendMissingError, match="choose"):
        load_d_sim(name)


@pytest.mark.parametrize("name", ["ssim", "lpips:resnet", "dreamsim:huge", "haarpsi:2", ""])
def test_unknown_names_list_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match=r"haarpsi|squeeze|ensemble"):
        load_d_sim(name)


@pytest.mark.parametrize(
    ("name", "package"),
    [("haarpsi", "piq"), ("lpips", "lpips"), ("dreamsim", "dreamsim"), ("st_lpips", "stlpips-pytorch")],
)
def test_a_missing_package_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = {"stlpips-pytorch": "stlpips_pytorch"}.get(package, package)
    hide_packages(monkeypatch, lambda p: p == module)
    assert name not in backends.available_d_sim_backends()
    with pytest.raises(BackendMissingError, match=f"pip install {package}"):
        load_d_sim(name)


def test_auto_without_any_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_packages(monkeypatch, lambda _: True)
    with pytest.raises(BackendMissingError, match=r"requirements\.txt"):
        load_d_sim()


@pytest.mark.parametrize("content", ["garbage", "foreign"])
def test_a_damaged_or_foreign_trunk_is_refused_and_auto_says_why(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, no_st_lpips
) -> None:
    path = save_squeezenet(tmp_path / "hub")
    if content == "garbage":
        path.write_bytes(b"not a checkpoint")
    else:
        torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match="Replace the file"):
        load_d_sim("lpips:squeeze")
    assert load_d_sim("auto").name == "haarpsi"
    assert "trying the next backend" in caplog.text


def test_incomplete_and_damaged_dreamsim_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "dreamsim"
    write_dreamsim(folder, monkeypatch)
    assert d_sim_dreamsim.missing_dreamsim_files(folder, "clip_vitb32") == []
    hub_before = torch.hub.get_dir()
    (folder / "clip_vitb32_pretrain.pth.tar").write_bytes(b"cut")
    with pytest.raises(BackendMissingError, match="could not be loaded"):
        load_d_sim("dreamsim:clip_vitb32")
    assert torch.hub.get_dir() == hub_before
    adapter = folder / "clip_vitb32_single_lora" / "adapter_model.safetensors"
    adapter.unlink()
    assert d_sim_dreamsim.missing_dreamsim_files(folder, "clip_vitb32") == [
        "clip_vitb32_single_lora/adapter_model.safetensors"
    ]
    with pytest.raises(BackendMissingError, match="adapter_model"):
        DreamSimBackend.from_folder(folder, "clip_vitb32")
    assert json.loads((folder / "clip_vitb32_single_lora" / "adapter_config.json").read_text())["r"] == 2


def test_the_dreamsim_folder_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("BUDGETFUSION_DREAMSIM_DIR", str(tmp_path))
    assert d_sim_dreamsim.dreamsim_folders()[0] == tmp_path


def test_smallest_sides_are_those_of_the_networks(lpips_model) -> None:
    side = LPIPS_MIN_SIDE["alex"]
    with torch.no_grad():
        lpips_model(torch.rand(1, 3, side, side), torch.rand(1, 3, side, side))
        with pytest.raises(RuntimeError):
            lpips_model(torch.rand(1, 3, side - 1, side - 1), torch.rand(1, 3, side - 1, side - 1))
    small = torch.rand(1, 3, side - 1, 64)
    with pytest.raises(InputError, match=r"64 x 30 pixels is too small for lpips:alex#[0-9a-f]{8}, which needs 31"):
        d_sim(small, small, LpipsBackend(lpips_model, "alex"))
    assert torch.isfinite(d_sim(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16), "haarpsi")).all()


@pytest.mark.parametrize("net", ["vgg", "squeeze"])
def test_smallest_sides_of_the_other_lpips_networks(net: str) -> None:
    import lpips

    model = lpips.LPIPS(net=net, pretrained=True, pnet_rand=True, verbose=False)
    side = LPIPS_MIN_SIDE[net]
    x = torch.rand(1, 3, side, side)
    assert torch.isfinite(d_sim(x, x.flip(3), LpipsBackend(model, net))).all()


def test_different_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="Compare images of one size"):
        d_sim(torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 80), "haarpsi")
