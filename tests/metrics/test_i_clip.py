"""I-CLIP: open_clip's own answer with weights made here, the host's interface, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from budgetfusion_nodes.core.errors import BackendMissingError, InputError, UnsupportedError
from budgetfusion_nodes.metrics import encoders
from budgetfusion_nodes.metrics.encoders import HostClipVisionEncoder, OpenClipImageEncoder
from budgetfusion_nodes.metrics.i_clip import cosine, i_clip
from budgetfusion_nodes.metrics.interfaces import ImageEncoder


class HostClip:
    """What the host's comfy.clip_vision.ClipVisionModel shows to a caller."""

    model_type = "clip_vision_model"
    image_size = 32

    def __init__(self) -> None:
        self.calls: list[tuple[torch.Size, bool]] = []

    def encode_image(self, image: torch.Tensor, crop: bool = True) -> SimpleNamespace:
        self.calls.append((image.shape, crop))
        features = torch.nn.functional.adaptive_avg_pool2d(image.movedim(-1, 1), 4).flatten(1)
        return SimpleNamespace(image_embeds=features - 0.4)


@pytest.fixture(params=["open_clip", "clip_vision"])
def any_encoder(request, encoder) -> ImageEncoder:
    return encoder if request.param == "open_clip" else HostClipVisionEncoder(HostClip())


def test_identity_is_exactly_one(any_encoder, pictures) -> None:
    assert i_clip(pictures, pictures, any_encoder).tolist() == [1.0] * 6


def test_bounds_and_symmetry(any_encoder, pictures) -> None:
    forth, back = i_clip(pictures, pictures.flip(0), any_encoder), i_clip(pictures.flip(0), pictures, any_encoder)
    assert torch.allclose(forth, back, atol=1e-6)
    assert bool(((forth >= -1) & (forth < 0.99999)).all())


def test_blur_noise_and_shift_lower_it(any_encoder, pictures, blurred, noisy) -> None:
    for changed in ([blurred(pictures, s) for s in (0.7, 4.0)], [noisy(pictures, s) for s in (0.02, 0.3)]):
        little, much = (float(i_clip(c, pictures, any_encoder).mean()) for c in changed)
        assert 1.0 > little > much
    assert float(i_clip(pictures.roll(16, dims=3), pictures, any_encoder).mean()) < 0.99999


def test_batch_equals_one_by_one_and_one_reference_serves_all(any_encoder, pictures) -> None:
    together = i_clip(pictures, pictures[1:2], any_encoder)
    singly = torch.cat([i_clip(p[None], pictures[1:2], any_encoder) for p in pictures])
    assert together.shape == (6,)
    assert torch.allclose(together, singly, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (16, 16), (64, 97), (300, 128)])
def test_any_size(any_encoder, size: tuple[int, int]) -> None:
    x, y = torch.rand(2, 2, 3, *size, generator=torch.Generator().manual_seed(0)).unbind(0)
    values = i_clip(x, y, any_encoder)
    assert bool(((values > -1) & (values < 1)).all())
    assert torch.allclose(values, i_clip(x.permute(0, 2, 3, 1), y.permute(0, 2, 3, 1), any_encoder), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(any_encoder, dtype: torch.dtype, pictures) -> None:
    x, y = pictures.to(dtype), pictures.flip(0).to(dtype)
    out = i_clip(x, y, any_encoder)
    assert out.dtype == torch.float32
    assert torch.allclose(out, i_clip(x.float(), y.float(), any_encoder), atol=1e-5)


def test_device(any_encoder, device: str, pictures) -> None:
    out = i_clip(pictures.to(device), pictures.flip(0).to(device), any_encoder)
    assert out.device.type == device
    assert torch.allclose(out.cpu(), i_clip(pictures, pictures.flip(0), any_encoder), atol=1e-3)


def test_cosine_is_torchs_and_keeps_small_differences() -> None:
    u, v = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(3)).unbind(0)
    assert torch.allclose(cosine(u, v), torch.nn.functional.cosine_similarity(u, v), atol=1e-6)
    unit = torch.eye(2)[:1]
    nearly = torch.tensor([[1.0, 1e-3]])
    assert float(1 - cosine(unit, nearly)) == pytest.approx(5e-7, rel=0.2)


@pytest.mark.parametrize("bad", [torch.zeros(1, 4), torch.full((1, 4), torch.nan)])
def test_an_empty_or_nan_embedding_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(InputError, match="empty or infinite embedding"):
        cosine(torch.ones(1, 4), bad)


# --------------------------------------------------------------------------------------------------------- open_clip


@pytest.mark.parametrize("kind", ["CLIP", "CustomTextCLIP"])
def test_embeddings_are_open_clips_own(kind: str, tiny_clip_config, write_tiny_clip, pictures) -> None:
    import open_clip

    torch.manual_seed(9)
    model = getattr(open_clip, kind)(**tiny_clip_config).eval()
    loaded = OpenClipImageEncoder.from_checkpoint(write_tiny_clip(model))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.25, 0.5, 0.2]))
    with torch.no_grad():
        expected = model.encode_image((pictures - mean) / std)
    assert torch.allclose(loaded.encode(pictures), expected, atol=1e-5)
    assert loaded.name.startswith("open_clip:tiny#")
    assert len(loaded.name.split("#")[1]) == 8


def test_half_precision_weights_are_widened(tiny_clip, write_tiny_clip, pictures) -> None:
    half = {k: v.half() for k, v in tiny_clip.state_dict().items()}
    loaded = OpenClipImageEncoder.from_checkpoint(write_tiny_clip(tiny_clip, tensors=half))
    assert next(loaded.model.parameters()).dtype == torch.float32
    whole = OpenClipImageEncoder.from_checkpoint(write_tiny_clip(tiny_clip))
    assert torch.allclose(loaded.encode(pictures), whole.encode(pictures), atol=0.02)
    assert loaded.name != whole.name


@pytest.fixture
def named_architecture(tmp_path: Path, tiny_clip_config) -> Any:
    """A tiny architecture in open_clip's own registry, so that its loader can be used on weights made here."""
    import open_clip

    config = tmp_path / "bf-tiny.json"
    config.write_text(json.dumps(tiny_clip_config))
    open_clip.add_model_config(config)
    yield "bf-tiny"
    open_clip.factory._MODEL_CONFIG_PATHS[:] = [p for p in open_clip.factory._MODEL_CONFIG_PATHS if p != config]
    open_clip.factory._rescan_model_configs()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_real_checkpoint_by_name_is_what_open_clip_loads(
    suffix: str, named_architecture, tiny_clip, tmp_path: Path, monkeypatch, photo
) -> None:
    import open_clip
    from PIL import Image
    from safetensors.torch import save_file

    file = tmp_path / f"weights{suffix}"
    state = {k: v.contiguous() for k, v in tiny_clip.state_dict().items()}
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    monkeypatch.chdir(tmp_path)
    loaded = OpenClipImageEncoder.from_checkpoint(f"open_clip:{named_architecture}/weights{suffix}")
    absolute = OpenClipImageEncoder.from_checkpoint(f"open_clip:{named_architecture}/{file}")
    assert loaded.name == absolute.name
    assert loaded.name.startswith("open_clip:bf-tiny:weights#")
    made: tuple[Any, Any, Any] = open_clip.create_model_and_transforms(named_architecture, pretrained=str(file))
    library, _, preprocess = made
    image = photo("astronaut", 64)
    pil = Image.fromarray((image[0].permute(1, 2, 0) * 255).round().byte().numpy())
    with torch.no_grad():
        expected = library.eval().encode_image(preprocess(pil)[None])
    assert torch.allclose(loaded.encode(image), expected, atol=0.02)  # the library rounds the picture to 8 bits


def test_named_checkpoints_that_cannot_be_had(named_architecture, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no open_clip model name"):
        OpenClipImageEncoder.from_checkpoint("open_clip:no-such-model/file.pt")
    with pytest.raises(InputError, match="no open_clip model name"):
        OpenClipImageEncoder.from_checkpoint("open_clip:")
    with pytest.raises(BackendMissingError, match="Nothing is downloaded"):
        OpenClipImageEncoder.from_checkpoint(f"open_clip:{named_architecture}/openai")
    with pytest.raises(UnsupportedError, match="would be downloaded"):
        OpenClipImageEncoder.from_checkpoint("open_clip:ViT-B-16-SigLIP/file.pt")
    bad = tmp_path / "bad.pt"
    torch.save({"some.weight": torch.zeros(2)}, bad)
    with pytest.raises(InputError, match="no bf-tiny checkpoint"):
        OpenClipImageEncoder.from_checkpoint(f"open_clip:{named_architecture}/{bad}")


# -------------------------------------------------------------------------------------------- the host's CLIP_VISION


def test_host_gets_bhwc_float_and_no_crop() -> None:
    host = HostClip()
    wrapped = HostClipVisionEncoder(host)
    assert wrapped.name == "clip_vision:clip_vision_model-32#unread"
    i_clip(torch.rand(2, 3, 40, 64).half(), torch.rand(1, 3, 40, 64), wrapped)
    assert host.calls == [(torch.Size([2, 40, 64, 3]), False), (torch.Size([1, 40, 64, 3]), False)]


def test_host_without_the_crop_option() -> None:
    plain = SimpleNamespace(encode_image=lambda image: SimpleNamespace(image_embeds=image.mean(dim=(1, 2))))
    assert HostClipVisionEncoder(plain).encode(torch.rand(2, 3, 16, 16)).shape == (2, 3)


def test_wrong_host_objects_are_refused() -> None:
    with pytest.raises(InputError, match="Load CLIP Vision"):
        HostClipVisionEncoder("a string")
    for embeds in (None, torch.rand(1, 4)):
        bare = SimpleNamespace(encode_image=lambda image, e=embeds: SimpleNamespace(image_embeds=e))
        with pytest.raises(UnsupportedError, match="no embedding"):
            HostClipVisionEncoder(bare).encode(torch.rand(2, 3, 16, 16))


# ----------------------------------------------------------------------------------------------- the shipped encoder


def test_default_encoder_is_found_beside_the_package_or_missed_by_name(
    tiny_clip, write_tiny_clip, monkeypatch, tmp_path
) -> None:
    pack = Path(encoders.__file__).resolve().parents[2]
    assert pack / "weights" / "image_encoder" / "tiny_scenes_clip.safetensors" == encoders.SHIPPED_ENCODER
    monkeypatch.setattr(encoders, "SHIPPED_ENCODER", tmp_path / "tiny_scenes_clip.safetensors")
    with pytest.raises(BackendMissingError, match="connect a CLIP Vision"):
        encoders.default_image_encoder()
    monkeypatch.setattr(encoders, "SHIPPED_ENCODER", write_tiny_clip(tiny_clip))
    assert encoders.default_image_encoder() is encoders.default_image_encoder()
