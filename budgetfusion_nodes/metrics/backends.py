"""The perceptual backends behind D-SIM and I-CLIP. Each carries the name that is stored with its numbers.

Nothing here downloads. The libraries (piq, lpips, dreamsim, open_clip) are imported when a backend is loaded, and a
backend whose package or weight files are missing raises BackendMissingError, which says what to install and where.

Names: "haarpsi"; "tiny_scenes:<file>#<digest>"; "lpips:alex", "lpips:vgg", "lpips:squeeze"; "dreamsim:ensemble" and
the other `DREAMSIM_TYPES`; "open_clip:<file>#<first 8 hex digits of its SHA-256>"; "clip_vision:<model type>-<input
size>". `load_d_sim(name)` of a D-SIM backend's own name loads the same one again.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import logging
import math
import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..core.errors import BackendMissingError, BudgetFusionError, InputError, UnsupportedError
from .images import MIN_SIDE, resize
from .open_clip_file import load_open_clip_checkpoint

_log = logging.getLogger(__name__)

D_SIM_ORDER = ("dreamsim", "lpips", "haarpsi")
"""What "auto" tries, the one closest to human judgement first. "tiny_scenes" is not among them: it knows no other
pictures."""
D_SIM_CHOICES = ("auto", *D_SIM_ORDER, "tiny_scenes")
"""What can be set on a node or in a command."""

SHIPPED_ENCODER = Path(__file__).resolve().parents[2] / "weights" / "image_encoder" / "tiny_scenes_clip.safetensors"
"""The image encoder for the embedded Tiny Scenes model."""


@runtime_checkable
class DSimBackend(Protocol):
    """A full-reference similarity. Inputs are checked `[B, 3, H, W]` in [0, 1], of one size, float32 or float64."""

    name: str
    min_side: int
    """Smallest image side in pixels that its network or kernel can take."""

    def similarity(self, x: Tensor, y: Tensor) -> Tensor:
        """`[B]`; 1 for equal images, smaller for different ones."""
        ...


@runtime_checkable
class ImageEncoder(Protocol):
    """Turns checked images `[B, 3, H, W]` in [0, 1] of any size into embeddings `[B, D]`."""

    name: str

    def encode(self, x: Tensor) -> Tensor: ...


def check_side(x: Tensor, backend: DSimBackend) -> None:
    """InputError if `[B, 3, H, W]` is smaller than the backend's smallest side."""
    height, width = x.shape[2:]
    if min(height, width) < backend.min_side:
        raise InputError(
            f"images: {width} x {height} pixels is too small for {backend.name}, which needs {backend.min_side} on "
            "each side. Upscale the images, or choose the haarpsi backend."
        )


# ------------------------------------------------------------------------------------------------------------ HaarPSI


class HaarPsiBackend:
    """HaarPSI of piq, in [0, 1]; no weights. Its three Haar scales span 16 pixels."""

    name = "haarpsi"
    min_side = 16

    def __init__(self) -> None:
        _require_package("piq", "haarpsi")
        from piq import haarpsi

        self._haarpsi = haarpsi

    def similarity(self, x: Tensor, y: Tensor) -> Tensor:
        score = self._haarpsi(x, y, reduction="none", data_range=1.0)
        # Two black images have no wavelet response at all, and piq's logit of eps / eps is infinite. They are equal.
        score = torch.where(torch.isfinite(score), score, torch.ones_like(score))
        return score.clamp(0.0, 1.0)


# -------------------------------------------------------------------------------------------------------------- LPIPS

LPIPS_TRUNKS = {"alex": "alexnet-owt-*", "vgg": "vgg16-*", "squeeze": "squeezenet1_1-*"}
"""File name patterns of torchvision's ImageNet weights in the torch hub cache, in the order of preference."""

_LPIPS_MIN_SIDE = {"alex": 31, "vgg": MIN_SIDE, "squeeze": 17}  # below, a pooling layer has no output


class LpipsBackend:
    """1 - LPIPS. Takes any `lpips.LPIPS` model; `from_trunk` builds one from weight files on disk."""

    def __init__(self, model: nn.Module, net: str) -> None:
        if net not in LPIPS_TRUNKS:
            raise InputError(f"lpips: unknown network {net!r}. Choose one of {', '.join(LPIPS_TRUNKS)}.")
        self.name = f"lpips:{net}"
        self.min_side = _LPIPS_MIN_SIDE[net]
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def from_trunk(cls, trunk: Path, net: str = "alex") -> LpipsBackend:
        """The package's LPIPS: its bundled linear layers (v0.1) over a torchvision trunk file (.pth, .safetensors)."""
        _require_package("lpips", "lpips")
        import lpips

        # pnet_rand keeps the package from fetching the trunk; every random weight is overwritten below.
        model = lpips.LPIPS(net=net, pretrained=True, pnet_rand=True, verbose=False)
        weights = _load_state_dict(trunk)
        state = {}
        for key, random in model.net.state_dict().items():  # "slice3.6.weight" holds torchvision's "features.6.weight"
            source = "features." + key.split(".", 1)[1]
            if source not in weights or weights[source].shape != random.shape:
                raise InputError(
                    f"lpips: {trunk.name} does not hold the weights of torchvision's {net} network ({source} is "
                    "missing or has another shape). Replace the file by the one torchvision offers."
                )
            state[key] = weights[source]
        model.net.load_state_dict(state)
        return cls(model, net)

    def similarity(self, x: Tensor, y: Tensor) -> Tensor:
        self.model.to(x.device)
        distance = self.model(x.float(), y.float(), normalize=True)  # [B, 1, 1, 1]
        return 1.0 - distance.flatten().to(x.dtype)


def find_lpips_trunk(net: str) -> Path | None:
    """The torchvision weights of this network in the torch hub cache ($TORCH_HOME/hub/checkpoints), or None."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    found = [p for p in sorted(folder.glob(LPIPS_TRUNKS[net])) if p.suffix in (".pth", ".safetensors")]
    return found[0] if found else None


def _load_lpips(net: str | None) -> LpipsBackend:
    _require_package("lpips", "lpips")
    nets = (net,) if net else tuple(LPIPS_TRUNKS)
    for candidate in nets:
        if candidate not in LPIPS_TRUNKS:
            raise InputError(f"lpips: unknown network {candidate!r}. Choose one of {', '.join(LPIPS_TRUNKS)}.")
        trunk = find_lpips_trunk(candidate)
        if trunk is not None:
            return LpipsBackend.from_trunk(trunk, candidate)
    raise BackendMissingError(
        f"lpips: no network weights ({' or '.join(LPIPS_TRUNKS[n] + '.pth' for n in nets)}) in "
        f"{Path(torch.hub.get_dir()) / 'checkpoints'}. Put torchvision's ImageNet weights there, or choose haarpsi, "
        "which needs none."
    )


# ----------------------------------------------------------------------------------------------------------- DreamSim

_DINO = ("facebookresearch_dino_main/hubconf.py", "checkpoints/dino_vitbase16_pretrain.pth", "dino_vitb16_pretrain.pth")
DREAMSIM_TYPES: dict[str, tuple[str, ...]] = {
    "ensemble": (*_DINO, "open_clip_vitb16_pretrain.pth.tar", "clip_vitb16_pretrain.pth.tar", "ensemble_lora"),
    "dino_vitb16": (*_DINO, "dino_vitb16_single_lora"),
    "open_clip_vitb32": ("open_clip_vitb32_pretrain.pth.tar", "open_clip_vitb32_single_lora"),
    "clip_vitb32": ("clip_vitb32_pretrain.pth.tar", "clip_vitb32_single_lora"),
    "synclr_vitb16": ("synclr_vit_b_16.pth", "synclr_vitb16_single_lora"),
}
"""Every file that the package would otherwise fetch, per model, the best model first. The dinov2 models are left out:
their loader asks the network for the default branch of a repository even when all files are there."""

DREAMSIM_SIZE = 224


class DreamSimBackend:
    """1 - DreamSim distance. Takes any model with DreamSim's call; `from_folder` loads one from files on disk."""

    min_side = MIN_SIDE

    def __init__(self, model: nn.Module, kind: str) -> None:
        self.name = f"dreamsim:{kind}"
        self.model = model.eval().requires_grad_(False)
        self._device: torch.device | None = None

    @classmethod
    def from_folder(cls, folder: Path, kind: str) -> DreamSimBackend:
        """The package's own model from a complete weight folder; BackendMissingError if a file is missing."""
        _require_package("dreamsim", "dreamsim")
        missing = missing_dreamsim_files(folder, kind)
        if missing:
            raise BackendMissingError(
                f"dreamsim: {folder} lacks {', '.join(missing)}. Unpack the DreamSim {kind} weights there, or choose "
                "another d_sim backend."
            )
        hub_folder = torch.hub.get_dir()
        try:
            from dreamsim import dreamsim

            # normalize_embeds and the rest as the package's own defaults; the package moves the hub folder.
            model, _ = dreamsim(pretrained=True, device="cpu", cache_dir=str(folder), dreamsim_type=kind)
        except BudgetFusionError:
            raise
        except Exception as error:  # the package raises whatever its loaders raise
            raise BackendMissingError(
                f"dreamsim: the {kind} model in {folder} could not be loaded ({type(error).__name__}: {error}). "
                "Unpack its weights again, or choose another d_sim backend."
            ) from error
        finally:
            torch.hub.set_dir(hub_folder)
        return cls(model, kind)

    def similarity(self, x: Tensor, y: Tensor) -> Tensor:
        self._move_to(x.device)
        # The package resizes PIL images by the same bicubic antialias filter, rounding to 8 bits on the way.
        distance = self.model(resize(x.float(), DREAMSIM_SIZE), resize(y.float(), DREAMSIM_SIZE))
        return 1.0 - distance.flatten().to(x.dtype)

    def _move_to(self, device: torch.device) -> None:
        if device == self._device:
            return
        self.model.to(device)
        for module in self.model.modules():
            if "device" in module.__dict__:  # DreamSim keeps the device for tensors that are no parameters
                module.__dict__["device"] = device
        self._device = device


def missing_dreamsim_files(folder: Path, kind: str) -> list[str]:
    """What the DreamSim model `kind` lacks in this folder, relative names; empty when it can be loaded offline."""
    if kind not in DREAMSIM_TYPES:
        raise InputError(f"dreamsim: unknown model {kind!r}. Choose one of {', '.join(DREAMSIM_TYPES)}.")
    missing = []
    for name in DREAMSIM_TYPES[kind]:
        if not name.endswith("_lora"):
            missing += [] if (folder / name).is_file() else [name]
            continue
        if not (folder / name / "adapter_config.json").is_file():
            missing.append(f"{name}/adapter_config.json")
        # Without this file peft would take the folder's name for a repository on the network.
        if not any((folder / name / f"adapter_model.{end}").is_file() for end in ("safetensors", "bin")):
            missing.append(f"{name}/adapter_model.safetensors")
    return missing


def dreamsim_folders() -> tuple[Path, ...]:
    """Where DreamSim weights are looked for: $BUDGETFUSION_DREAMSIM_DIR, the user cache, the package's own default."""
    named = os.environ.get("BUDGETFUSION_DREAMSIM_DIR")
    first = (Path(named).expanduser(),) if named else ()
    return (*first, Path.home() / ".cache" / "dreamsim", Path("models"))


def find_dreamsim(kind: str | None = None) -> tuple[Path, str] | None:
    """Folder and model of the first complete set of DreamSim weights on disk, or None."""
    kinds = (kind,) if kind else tuple(DREAMSIM_TYPES)
    for candidate in kinds:
        for folder in dreamsim_folders():
            if not missing_dreamsim_files(folder, candidate):
                return folder, candidate
    return None


def _load_dreamsim(kind: str | None) -> DreamSimBackend:
    _require_package("dreamsim", "dreamsim")
    found = find_dreamsim(kind)
    if found is None:
        folders = ", ".join(str(f) for f in dreamsim_folders())
        raise BackendMissingError(
            f"dreamsim: no complete weights of {kind or 'any model'} in {folders}. Nothing is downloaded while you "
            "work: unpack the DreamSim weights into one of these folders, or choose another d_sim backend."
        )
    return DreamSimBackend.from_folder(*found)


# -------------------------------------------------------------------------------------------------------- Tiny Scenes


class TinyScenesBackend:
    """What DreamSim is to photographs, for pictures of the embedded model: cosine similarity of learned features.

    The features are those of the middle block of the shipped image encoder, averaged over a grid of GRID x GRID cells.
    So colour, pattern and the rough place count, and a few pixels of movement do not. On a red disc of 28 pixels, as
    distances over the shipped planner's scale: moved by one pixel .03, by three .09, by sixteen .66; a ring in its
    place .14; blue 3.7. HaarPSI, which compares pixel by pixel, finds .37, .94, 1.4, .73 and .05. Known limit: shape
    counts little, a square of the same area .04 (L-SNR sees its edges: .7).
    """

    GRID = 4
    min_side = MIN_SIDE

    def __init__(self, encoder: OpenClipImageEncoder, name: str) -> None:
        """encoder: with open_clip's VisionTransformer, whose patches fill a square."""
        self.encoder, self.name = encoder, name

    def similarity(self, x: Tensor, y: Tensor) -> Tensor:
        cells = self._cells(torch.cat([x, y]))
        return nn.functional.cosine_similarity(*cells.chunk(2), dim=-1).to(x.dtype)

    def _cells(self, images: Tensor) -> Tensor:
        """[B, GRID * GRID * width] of [B, 3, H, W]."""
        blocks = self.encoder.model.visual.transformer.resblocks
        seen: list[Tensor] = []
        handle = blocks[len(blocks) // 2].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            self.encoder.encode(images)
        finally:
            handle.remove()
        tokens = seen[0] if seen[0].shape[0] == images.shape[0] else seen[0].transpose(0, 1)  # older: [L, B, C]
        side = math.isqrt(tokens.shape[1])
        patches = tokens[:, -side * side :].float().transpose(1, 2)  # without the class token
        grid = patches.reshape(*patches.shape[:2], side, side)
        return nn.functional.adaptive_avg_pool2d(grid, self.GRID).flatten(1)


def _load_tiny_scenes(name: str | None) -> TinyScenesBackend:
    """name: with a digest, which the shipped encoder must have."""
    backend = TinyScenesBackend(default_image_encoder(), _file_name("tiny_scenes", SHIPPED_ENCODER))
    if name is not None and name != backend.name:
        raise BackendMissingError(
            f"d_sim: {name} is not the image encoder of this pack, which is {backend.name}. Use the pack's version "
            "that these numbers were made with, or measure again."
        )
    return backend


# ----------------------------------------------------------------------------------------------------- D-SIM choosing


def available_d_sim_backends() -> tuple[str, ...]:
    """Those of `D_SIM_ORDER` whose package is installed and whose weights are on disk. Imports none of them."""
    available = {
        "dreamsim": lambda: _has_package("dreamsim") and find_dreamsim() is not None,
        "lpips": lambda: _has_package("lpips") and any(find_lpips_trunk(net) for net in LPIPS_TRUNKS),
        "haarpsi": lambda: _has_package("piq"),
    }
    return tuple(name for name in D_SIM_ORDER if available[name]())


def load_d_sim(name: str = "auto") -> DSimBackend:
    """The backend of this name, kept for the next call; "auto" is the first of `D_SIM_ORDER` that can be loaded.

    The result's `.name` says which one it is. Raises BackendMissingError or InputError, never substitutes for a name.
    """
    if name != "auto":
        return _load_named(name)
    for candidate in available_d_sim_backends():
        try:
            return _load_named(candidate)
        except BudgetFusionError as error:
            _log.warning("d_sim: %s is on disk but cannot be used; trying the next backend. %s", candidate, error)
    raise BackendMissingError(
        "d_sim: none of dreamsim, lpips and haarpsi can be loaded. Install the pack's requirements.txt; it contains "
        "piq, which brings haarpsi and needs no weights."
    )


@functools.lru_cache(maxsize=4)
def _load_named(name: str) -> DSimBackend:
    family, _, variant = name.partition(":")
    if family == "haarpsi" and not variant:
        return HaarPsiBackend()
    if family == "lpips":
        return _load_lpips(variant or None)
    if family == "dreamsim":
        return _load_dreamsim(variant or None)
    if family == "tiny_scenes":
        return _load_tiny_scenes(name if variant else None)
    raise InputError(f"d_sim: unknown backend {name!r}. Choose {', '.join(D_SIM_CHOICES)}.")


# ----------------------------------------------------------------------------------------------------- image encoders


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
            loaded.model, loaded.image_size, loaded.image_mean, loaded.image_std, _file_name("open_clip", file_path)
        )

    @classmethod
    def _from_named(cls, architecture: str, file: str) -> OpenClipImageEncoder:
        _require_package("open_clip", "open_clip")
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
        return cls(model, int(size), mean, std, _file_name(f"open_clip:{architecture}", file_path))

    def encode(self, x: Tensor) -> Tensor:
        """Embeddings `[B, D]`, float32, of `[B, 3, H, W]` in [0, 1]."""
        self.model.to(x.device)
        pixels = resize(x.float(), self.image_size)
        mean, std = (pixels.new_tensor(v)[None, :, None, None] for v in (self.mean, self.std))
        return self.model.encode_image((pixels - mean) / std).float()


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
        kind = getattr(clip_vision, "model_type", None) or type(clip_vision).__name__
        self.name = f"clip_vision:{kind}-{getattr(clip_vision, 'image_size', '?')}"
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


# ------------------------------------------------------------------------------------------------------------ helpers


def _has_package(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _require_package(package: str, backend: str) -> None:
    if not _has_package(package):
        distribution = {"open_clip": "open_clip_torch"}.get(package, package)
        raise BackendMissingError(
            f"{backend}: the Python package {distribution} is not installed. Install it with pip install "
            f"{distribution}, or choose another backend."
        )


def _load_state_dict(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)  # weights_only: no code is run from the file
    except Exception as error:  # both readers raise many types on a damaged file
        raise InputError(f"{path.name} cannot be read ({type(error).__name__}). Replace the file.") from error


def _file_name(prefix: str, path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"{prefix}:{path.stem}#{digest.hexdigest()[:8]}"
