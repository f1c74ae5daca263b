"""Pictures with known content, and the three things a sampler that stops early does to one: blur, noise, shift."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [B, 3, H, W], edges replicated."""
    radius = max(1, int(4 * sigma + 0.5))
    t = torch.arange(-radius, radius + 1, dtype=x.dtype)
    kernel = torch.exp(-t.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    wide = pad(x, (radius,) * 4, mode="replicate")
    return conv2d(conv2d(wide, kernel, groups=3), kernel.transpose(2, 3), groups=3).clamp(0, 1)


def noise(x: Tensor, sigma: float, seed: int = 0) -> Tensor:
    """White Gaussian noise, clipped to [0, 1] as a decoder would."""
    return (x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)


def draw_scene(name: str, size: int = 64) -> Tensor:
    """A scene [1, 3, size, size], supersampled 4 x: objects on plain, graded and patterned backgrounds."""
    n = 4 * size
    y, x = np.mgrid[0:n, 0:n] / n
    disc = lambda cx, cy, r: (x - cx) ** 2 + (y - cy) ** 2 < r * r  # noqa: E731
    pattern = {
        "stripes": np.floor(16 * y) % 2 > 0,
        "diagonal": np.floor(16 * (x + y)) % 2 > 0,
        "checks": (np.floor(16 * x) + np.floor(16 * y)) % 2 > 0,
        "dots": (12 * x % 1 - 0.5) ** 2 + (12 * y % 1 - 0.5) ** 2 < 0.09,
    }
    image = np.full((n, n, 3), 0.5)
    if name in ("gradient", "gradient_disc"):
        image = x[..., None] * [0.8, 0.3, 0.2] + y[..., None] * [0.1, 0.4, 0.3]
    if name in pattern or name == "busy":
        image = np.where(pattern.get(name, pattern["checks"])[..., None], [0.8, 0.7, 0.3], [0.2, 0.3, 0.6])
    discs = {
        "disc": [(0.5, 0.5, 0.25, (0.85, 0.1, 0.1))],
        "small_disc": [(0.4, 0.6, 0.08, (0.2, 0.3, 0.9))],
        "gradient_disc": [(0.3, 0.4, 0.15, (0.9, 0.9, 0.2)), (0.7, 0.6, 0.1, (0.1, 0.1, 0.1))],
        "busy": [(0.1 + 0.2 * i, 0.15 + 0.17 * ((3 * i) % 5), 0.05 + 0.01 * i, (0.2 * i, 0.5, 0.1)) for i in range(5)],
    }
    for cx, cy, r, colour in discs.get(name, []):
        image[disc(cx, cy, r)] = colour
    small = image.reshape(size, 4, size, 4, 3).mean(axis=(1, 3))
    return torch.from_numpy(small.astype(np.float32)).permute(2, 0, 1)[None]


def read_photo(name: str, size: int | None = None) -> Tensor:
    """A photograph that ships inside scikit-image, its top left square, [1, 3, S, S]; scaled to `size` if given."""
    import skimage
    from skimage import io

    file = next((Path(skimage.__file__).parent / "data").glob(name + ".*"))
    pixels = io.imread(file).astype(np.float32) / 255
    pixels = pixels[..., None].repeat(3, axis=-1) if pixels.ndim == 2 else pixels[..., :3]
    x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    side = min(x.shape[2:])
    x = x[:, :, :side, :side]
    return (interpolate(x, size=(size, size), mode="bilinear", antialias=True) if size else x).clamp(0, 1)


@pytest.fixture(scope="session")
def scene() -> Callable[..., Tensor]:
    return draw_scene


@pytest.fixture(scope="session")
def photo() -> Callable[..., Tensor]:
    return read_photo


@pytest.fixture(scope="session")
def blurred() -> Callable[[Tensor, float], Tensor]:
    return blur


@pytest.fixture(scope="session")
def noisy() -> Callable[..., Tensor]:
    return noise


@pytest.fixture(scope="session")
def pictures() -> Tensor:
    """Six different pictures [6, 3, 64, 64]."""
    scenes = [draw_scene(name) for name in ("disc", "gradient_disc", "busy", "dots")]
    return torch.cat([*scenes, read_photo("astronaut", 64), read_photo("coffee", 64)])


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


TINY_CLIP: dict[str, Any] = {
    "embed_dim": 48,
    "vision_cfg": {"layers": 2, "width": 64, "head_width": 32, "patch_size": 8, "image_size": 64},
    "text_cfg": {"context_length": 12, "vocab_size": 40, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def tiny_clip_config() -> dict[str, Any]:
    return json.loads(json.dumps(TINY_CLIP))


@pytest.fixture(scope="session")
def write_tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes an open_clip checkpoint with random weights; `metadata` and `tensors` replace single entries."""

    def write(
        model: Any, config: dict[str, Any] | None = None, metadata: dict | None = None, tensors: dict | None = None
    ):
        from safetensors.torch import save_file

        entries: dict[str, Any] = {
            "open_clip_config": json.dumps(config or TINY_CLIP),
            "image_mean": "[0.5, 0.4, 0.3]",
            "image_std": "[0.25, 0.5, 0.2]",
            "image_size": "64",
            **(metadata or {}),
        }
        state = {**{k: v.contiguous() for k, v in model.state_dict().items()}, **(tensors or {})}
        path = tmp_path_factory.mktemp("clip") / "tiny.safetensors"
        save_file(
            {k: v for k, v in state.items() if v is not None},
            path,
            metadata={k: v for k, v in entries.items() if v is not None},
        )
        return path

    return write


@pytest.fixture(scope="session")
def tiny_clip() -> Any:
    """open_clip's own CLIP class with random weights."""
    import open_clip

    torch.manual_seed(7)
    return open_clip.CLIP(**json.loads(json.dumps(TINY_CLIP))).eval()


@pytest.fixture(scope="session")
def encoder(tiny_clip: Any, write_tiny_clip: Callable[..., Path]) -> Any:
    from budgetfusion_nodes.metrics.encoders import OpenClipImageEncoder

    return OpenClipImageEncoder.from_checkpoint(write_tiny_clip(tiny_clip))
