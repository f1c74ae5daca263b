"""DreamSim (Fu et al. 2023, arXiv 2306.09344), by the package `dreamsim` over weights that are on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import BackendMissingError, BudgetFusionError, InputError
from .images import MIN_SIDE, resize
from .weights import parameters_digest, require_package

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
    bytes_per_pixel = 100  # it looks at 224 x 224 pixels of any picture

    def __init__(self, model: nn.Module, kind: str) -> None:
        self.name = f"dreamsim:{kind}#{parameters_digest(model.state_dict())}"
        self.model: Any = model.eval().requires_grad_(False)
        self._device: torch.device | None = None

    @classmethod
    def from_folder(cls, folder: Path, kind: str) -> DreamSimBackend:
        """The package's own model from a complete weight folder; BackendMissingError if a file is missing."""
        require_package("dreamsim", "dreamsim")
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

    def prepare(self, reference: Tensor) -> Tensor:
        return self._embed(reference)

    def similarity(self, x: Tensor, reference: Tensor) -> Tensor:
        return nn.functional.cosine_similarity(self._embed(x), reference, dim=-1).to(x.dtype)

    def _embed(self, x: Tensor) -> Tensor:
        """[B, D]. The package's distance is 1 - the cosine of two of these."""
        self.to(x.device)
        # The package resizes PIL images by the same bicubic antialias filter, rounding to 8 bits on the way.
        return self.model.embed(resize(x.float(), DREAMSIM_SIZE))

    def to(self, device: torch.device) -> None:
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


def load_dreamsim(kind: str | None) -> DreamSimBackend:
    require_package("dreamsim", "dreamsim")
    found = find_dreamsim(kind)
    if found is None:
        folders = ", ".join(str(f) for f in dreamsim_folders())
        raise BackendMissingError(
            f"dreamsim: no complete weights of {kind or 'any model'} in {folders}. Nothing is downloaded while you "
            "work: unpack the DreamSim weights into one of these folders, or choose another d_sim backend."
        )
    return DreamSimBackend.from_folder(*found)
