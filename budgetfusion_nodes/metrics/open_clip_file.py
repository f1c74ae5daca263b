"""The self-describing open_clip checkpoint: one safetensors file whose metadata holds all that is needed to build it.

Metadata (strings): `open_clip_config`, JSON with `embed_dim`, `vision_cfg`, `text_cfg` and optionally `quick_gelu`, as
in open_clip's model configurations; `image_mean` and `image_std`, JSON lists of three; `image_size`, pixels. The last
three may stand inside the JSON instead. Tensors: the state dict of open_clip's `CLIP`, or of `CustomTextCLIP` if its
names start with "text."; float16 is widened.

All sizes are checked, and compared to the file's tensor shapes on the meta device, before anything is allocated.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import BackendMissingError, InputError

MAX_BYTES = 2 << 30
"""Largest file that is opened; the shipped encoder has 8 MB."""

_REMEDY = "Get the file again, or choose another image encoder."

_VISION = {
    "layers": (1, 48),
    "width": (8, 4096),
    "head_width": (1, 256),
    "mlp_ratio": (0.25, 8.0),
    "patch_size": (1, 64),
    "image_size": (16, 1024),
}
_TEXT = {
    "context_length": (1, 4096),
    "vocab_size": (2, 1_000_000),
    "width": (8, 4096),
    "heads": (1, 256),
    "layers": (1, 48),
    "mlp_ratio": (0.25, 8.0),
}
# Options without a size. Names of timm and Hugging Face models are not among them: they would be downloaded.
_VISION_OPTIONS = {"pool_type", "no_ln_pre", "final_ln_after_pool", "pos_embed_type", "patch_dropout"}
_TEXT_OPTIONS = {
    "pool_type",
    "no_causal_mask",
    "pad_id",
    "eos_id",
    "embed_cls",
    "proj_bias",
    "proj_type",
    "final_ln_after_pool",
}


@dataclass(frozen=True)
class OpenClipCheckpoint:
    """A loaded model in evaluation mode, float32, on the CPU, with its preprocessing."""

    model: Any
    """open_clip's `CLIP` or `CustomTextCLIP`: `encode_image`, `encode_text`."""
    config: dict[str, Any]
    image_size: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    metadata: dict[str, str]


def load_open_clip_checkpoint(path: str | os.PathLike[str]) -> OpenClipCheckpoint:
    """Load and check a self-describing checkpoint. BackendMissingError if absent, InputError for what is wrong in "
    "it."""
    file = Path(path)
    if not file.is_file():
        raise BackendMissingError(f"image encoder: there is no file {file}. {_REMEDY}")
    if file.stat().st_size > MAX_BYTES:
        raise InputError(f"image encoder: {file.name} is larger than {MAX_BYTES >> 30} GiB. {_REMEDY}")
    try:
        import open_clip
    except ImportError as error:
        raise BackendMissingError(
            "image encoder: the Python package open_clip_torch is not installed. Install the pack's requirements.txt."
        ) from error
    metadata, shapes = _read_header(file)
    config, size, mean, std = _checked_config(file, metadata)
    model_class = open_clip.CustomTextCLIP if any(key.startswith("text.") for key in shapes) else open_clip.CLIP
    with torch.device("meta"):
        expected = {key: tuple(t.shape) for key, t in model_class(**config).state_dict().items()}
    _compare_shapes(file, expected, shapes)
    state = _read_tensors(file)
    model = model_class(**config)
    model.load_state_dict(state)
    return OpenClipCheckpoint(model.eval().requires_grad_(False), config, size, mean, std, metadata)


def _read_header(file: Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as handle:
            shapes = {key: tuple(handle.get_slice(key).get_shape()) for key in handle.keys()}  # noqa: SIM118
            return dict(handle.metadata() or {}), shapes
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"image encoder: {file.name} is no complete safetensors file ({error}). {_REMEDY}") from error


def _read_tensors(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    state = {key: tensor.float() for key, tensor in load_file(file).items()}
    for key, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"image encoder: {file.name} holds values that are not numbers in {key}. {_REMEDY}")
    return state


def _checked_config(
    file: Path, metadata: Mapping[str, str]
) -> tuple[dict[str, Any], int, tuple[float, ...], tuple[float, ...]]:
    if "open_clip_config" not in metadata:
        raise InputError(
            f"image encoder: {file.name} says nothing about its model (no open_clip_config in its metadata). Name the "
            "architecture too: open_clip:NAME/PATH."
        )
    try:
        raw = json.loads(metadata["open_clip_config"])
        outer = {key: json.loads(metadata[key]) for key in ("image_mean", "image_std", "image_size") if key in metadata}
    except ValueError as error:
        raise InputError(f"image encoder: the metadata of {file.name} is no JSON ({error}). {_REMEDY}") from error
    _check(isinstance(raw, dict), file, "open_clip_config", "an object", raw)
    values: dict[str, Any] = {**raw, **outer}
    vision = _checked_part(file, values.get("vision_cfg"), "vision_cfg", _VISION, _VISION_OPTIONS)
    text = _checked_part(file, values.get("text_cfg"), "text_cfg", _TEXT, _TEXT_OPTIONS)
    config: dict[str, Any] = {"embed_dim": values.get("embed_dim"), "vision_cfg": vision, "text_cfg": text}
    _check_number(file, "embed_dim", config["embed_dim"], 1, 4096, whole=True)
    if "quick_gelu" in values:
        _check(isinstance(values["quick_gelu"], bool), file, "quick_gelu", "true or false", values["quick_gelu"])
        config["quick_gelu"] = values["quick_gelu"]
    head_width = vision.get("head_width", 64)
    _check(vision["width"] % head_width == 0, file, "vision_cfg.width", f"a multiple of {head_width}", vision["width"])
    _check(text["width"] % text["heads"] == 0, file, "text_cfg.width", f"a multiple of {text['heads']}", text["width"])
    size = vision["image_size"]
    _check(size % vision["patch_size"] == 0, file, "image_size", "a multiple of patch_size", size)
    _check(
        values.get("image_size", size) == size, file, "image_size", f"{size} as in vision_cfg", values.get("image_size")
    )
    mean, std = (_checked_triple(file, key, values.get(key)) for key in ("image_mean", "image_std"))
    _check(min(std) > 0, file, "image_std", "three numbers above 0", std)
    return config, size, mean, std


def _checked_part(
    file: Path, part: Any, name: str, ranges: Mapping[str, tuple[float, float]], options: set[str]
) -> dict[str, Any]:
    _check(isinstance(part, dict), file, name, "an object", part)
    for key, value in part.items():
        if key in ranges:
            low, high = ranges[key]
            _check_number(file, f"{name}.{key}", value, low, high, whole=key != "mlp_ratio")
        else:
            _check(key in options, file, f"{name}.{key}", "no such entry", value)
            _check(isinstance(value, (str, bool, int, float)), file, f"{name}.{key}", "a plain value", value)
    required = set(ranges) - {"head_width", "mlp_ratio"}  # open_clip's defaults: 64 and 4
    for key in sorted(required - set(part)):
        _check(False, file, f"{name}.{key}", "a number", "nothing")
    return dict(part)


def _checked_triple(file: Path, name: str, value: Any) -> tuple[float, ...]:
    numbers = isinstance(value, list) and len(value) == 3 and all(isinstance(v, (int, float)) for v in value)
    _check(numbers and all(math.isfinite(v) for v in value), file, name, "three numbers", value)
    return tuple(float(v) for v in value)


def _check_number(file: Path, name: str, value: Any, low: float, high: float, *, whole: bool) -> None:
    kind = int if whole else (int, float)
    valid = isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high
    _check(valid, file, name, f"{'a whole number' if whole else 'a number'} from {low} to {high}", value)


def _check(valid: bool, file: Path, name: str, expected: str, value: Any) -> None:
    if not valid:
        came = str(value)[:60]
        raise InputError(f"image encoder: {file.name}: {name} should be {expected}, but is {came}. {_REMEDY}")


def _compare_shapes(file: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    for key in expected.keys() | found.keys():
        if expected.get(key) != found.get(key):
            raise InputError(
                f"image encoder: {file.name}: tensor {key} should be {expected.get(key, 'absent')}, but is "
                f"{found.get(key, 'absent')}. {_REMEDY}"
            )
