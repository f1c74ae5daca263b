"""Image encoders behind I-CLIP: open_clip checkpoints, the host's CLIP_VISION, and the one shipped for Tiny Scenes."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import BackendMissingError, InputError, UnsupportedError
from .images import resize
from .names import UNREAD
from .open_clip_file import load_open_clip_checkpoint
from .weights import file_digest, parameters_digest, require_package

SHIPPED_ENCODER = Path(__file__).resolve().parents[2] / "weights" / "image_encoder" / "tiny_scenes_clip.safetensors"
"""The image encoder for the embedded Tiny Scenes model."""


class OpenClipImageEncoder:
    """The image tower of an open_clip model. Images of another size are resized with antialias; see `images.resize`."""

    def __init__(
        self, model: nn.Module, image_size: int, mean: tuple[float, ...], std: tuple[float, ...], name: str
    ) -> None:
        """model: anything with open_clip's `encode_image([B, 3, S, S] normalised) -> [B, D]`."""
        self.model: Any = model.eval().requires_grad_(False)
        self.image_size = image_size
        self.mean, self.std = tuple(mean), tuple(std)
        self.name = name

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str]) -> OpenClipImageEncoder:
        """From a safetensors file whose metadata holds the model's sizes, or "open_clip:<model name>/<path to file>".

        The second form takes any checkpoint of open_clip's own collection from a local file, with the architecture by
        its open_clip name, for example "open_clip:ViT-B-32/models/clip/vit_b_32.safetensors".
        """
        text = os.fspath(path)
        if text.startswith("open_clip:"):
            architecture, _, file = text.removeprefix("open_clip:").partition("/")
            return cls._from_named(architecture, file)
        file_path = Path(text)
        loaded = load_open_clip_checkpoint(file_path)
        return cls(
            loaded.model,
            loaded.image_size,
            loaded.image_mean,
            loaded.image_std,
            f"open_clip:{file_path.stem}#{file_digest(file_path)}",
        )

    @classmethod
    def _from_named(cls, architecture: str, file: str) -> OpenClipImageEncoder:
        require_package("open_clip", "open_clip")
        import open_clip

        config = open_clip.get_model_config(architecture) if architecture else None
        if config is None:
            raise InputError(
                f"image encoder: {architecture!r} is no open_clip model name. Write open_clip:NAME/PATH, for example "
                "open_clip:ViT-B-32/models/clip/vit_b_32.safetensors."
            )
        if "timm_model_name" in config["vision_cfg"] or "hf_model_name" in config["text_cfg"]:
            raise UnsupportedError(
                f"image encoder: {architecture} is assembled from timm or Hugging Face parts, which would be "
                "downloaded. Choose a model of open_clip's own classes, such as ViT-B-32 or RN50."
            )
        file_path = Path(file)
        if not file_path.is_file() and Path("/" + file).is_file():
            file_path = Path("/" + file)  # "open_clip:NAME/" followed by an absolute path written with one slash
        if not file_path.is_file():
            raise BackendMissingError(
                f"image encoder: there is no file {file!r}. Nothing is downloaded: put the {architecture} checkpoint "
                "there."
            )
        try:
            model: Any = open_clip.create_model(architecture, pretrained=str(file_path.resolve()), weights_only=True)
        except Exception as error:  # open_clip passes on whatever reading and matching raise
            raise InputError(
                f"image encoder: {file_path.name} is no {architecture} checkpoint ({type(error).__name__}: "
                f"{str(error)[:200]}). Give the file that belongs to this model name."
            ) from error
        size = model.visual.image_size
        size = size[0] if isinstance(size, (tuple, list)) else size
        mean, std = model.visual.preprocess_cfg["mean"], model.visual.preprocess_cfg["std"]
        name = f"open_clip:{architecture}:{file_path.stem}#{file_digest(file_path)}"
        return cls(model, int(size), mean, std, name)

    def encode(self, x: Tensor) -> Tensor:
        """Embeddings `[B, D]`, float32, of `[B, 3, H, W]` in [0, 1]."""
        self.model.to(x.device)
        pixels = resize(x.float(), self.image_size)
        mean, std = (pixels.new_tensor(v)[None, :, None, None] for v in (self.mean, self.std))
        return self.model.encode_image((pixels - mean) / std).float()

    def to(self, device: torch.device) -> None:
        self.model.to(device)


class HostClipVisionEncoder:
    """The host's CLIP_VISION: any object whose `encode_image([B, H, W, 3])` returns one that has `image_embeds`.

    Needs no host import. The host resizes with antialias and rounds to 8 bits; its centre crop is switched off, so that
    the ends of a wide image count too.
    """

    def __init__(self, clip_vision: Any) -> None:
        if not callable(getattr(clip_vision, "encode_image", None)):
            raise InputError(
                f"clip_vision: expected a CLIP Vision model, got {type(clip_vision).__name__}. Connect a Load CLIP "
                "Vision node."
            )
        self.clip_vision = clip_vision
        size = getattr(clip_vision, "image_size", "?")
        self.name = f"clip_vision:{_vision_kind(clip_vision)}-{size}#{_vision_digest(clip_vision)}"
        parameters = inspect.signature(clip_vision.encode_image).parameters
        self._options = {"crop": False} if "crop" in parameters else {}

    def encode(self, x: Tensor) -> Tensor:
        """Embeddings `[B, D]`, float32, of `[B, 3, H, W]` in [0, 1]."""
        output = self.clip_vision.encode_image(x.float().permute(0, 2, 3, 1), **self._options)
        embeds = getattr(output, "image_embeds", None)
        if not isinstance(embeds, Tensor) or embeds.shape[0] != x.shape[0]:
            raise UnsupportedError(
                f"clip_vision: {self.name} gives no embedding of the whole image. Load a CLIP model, such as "
                "CLIP-ViT-H."
            )
        return embeds.flatten(1).float().to(x.device)

    def to(self, device: torch.device) -> None:
        """The host moves it by its own memory management."""


_VISION_LETTERS = {768: "B", 1024: "L", 1280: "H", 1408: "g", 1664: "bigG"}
"""Width -> size, as OpenAI and open_clip call their CLIP models."""


def _vision_kind(clip_vision: Any) -> str:
    """ "ViT-H-14" of a CLIP model, "siglip-1152-14" of another one, else the host's or the class's own word."""
    config = getattr(clip_vision, "config", None) or {}
    family = str(getattr(clip_vision, "model_type", None) or type(clip_vision).__name__)
    width, patch = config.get("hidden_size"), config.get("patch_size")
    if not isinstance(width, int) or not isinstance(patch, int):
        return family
    if family == "clip_vision_model" and width in _VISION_LETTERS:
        return f"ViT-{_VISION_LETTERS[width]}-{patch}"
    return f"{family.removesuffix('_vision_model')}-{width}-{patch}"


def _vision_digest(clip_vision: Any) -> str:
    """Of all its weights: tuned models have the sizes of the one that they started from."""
    read = getattr(clip_vision, "get_sd", None) or getattr(getattr(clip_vision, "model", None), "state_dict", None)
    state = read() if callable(read) else None
    return parameters_digest(state) if isinstance(state, Mapping) and state else UNREAD


def default_image_encoder() -> OpenClipImageEncoder:
    """The encoder shipped for the embedded Tiny Scenes model; BackendMissingError when the pack lacks it."""
    if not SHIPPED_ENCODER.is_file():
        raise BackendMissingError(
            f"image encoder: weights/image_encoder/{SHIPPED_ENCODER.name} is missing from the pack. Get the complete "
            "pack again, or connect a CLIP Vision model."
        )
    return _shipped_encoder(str(SHIPPED_ENCODER), SHIPPED_ENCODER.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _shipped_encoder(path: str, _modified: int) -> OpenClipImageEncoder:
    return OpenClipImageEncoder.from_checkpoint(path)
