"""Tiny Scenes Flow as a trainable PyTorch module, and its files in the host's key names.

The denoiser is the host's own class and the text encoder is transformers' CLIP text model, so what is trained is what
the host later builds; tests compare both. Needs the host on `sys.path` (`research.in_process_host.import_host`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from budgetfusion_nodes.tiny_scenes import architecture as arch
from budgetfusion_nodes.tiny_scenes import flow_architecture as flow
from budgetfusion_nodes.tiny_scenes.captions import vocabulary
from budgetfusion_nodes.tiny_scenes.flow_host_model import TEXT_MARKER

DENOISER_PREFIX = "model.diffusion_model."
TEXT_PREFIX = "text_encoders.clip_tiny.transformer."
VAE_KEY = "pixel_space_vae"
SPLIT_FOLDERS = {"diffusion_models": "", "text_encoders": "_text", "vae": "_vae"}
"""Folder below the host's models -> what is added to the checkpoint's name."""


def build_denoiser(width: int = flow.WIDTH, blocks: int = flow.BLOCKS) -> nn.Module:
    """The host's MMDiT with fresh weights; modulations and the last layer start at zero (Peebles and Xie 2023)."""
    from comfy.ldm.modules.diffusionmodules.mmdit import (  # pyright: ignore[reportMissingImports]
        OpenAISignatureMMDITWrapper,
    )

    config = flow.denoiser_config(width, blocks)
    denoiser = OpenAISignatureMMDITWrapper(**config, dtype=torch.float32, operations=torch.nn)
    for name, parameter in denoiser.named_parameters():
        if ".ln_" in name:
            nn.init.ones_(parameter)
        elif parameter.ndim == 1 or "adaLN_modulation" in name or name.startswith("final_layer.linear"):
            nn.init.zeros_(parameter)
        elif name.startswith(("t_embedder", "y_embedder")):
            nn.init.normal_(parameter, std=0.02)
        else:
            nn.init.xavier_uniform_(parameter.view(parameter.shape[0], -1))
    return denoiser


class FlowTrainingModel(nn.Module):
    """Text encoder and denoiser. `encode` gives (context [B, 48, 128], pooled [B, 128]); `forward` the velocity."""

    def __init__(self, width: int = flow.WIDTH, blocks: int = flow.BLOCKS) -> None:
        super().__init__()
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        config: Any = arch.text_config(len(vocabulary()))
        self.text = CLIPTextModelWithProjection(CLIPTextConfig(**config))
        self.denoiser = build_denoiser(width, blocks)

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        out = self.text(input_ids=tokens)
        return out.last_hidden_state, out.text_embeds

    def forward(self, x: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        """Velocity [B, 3, H, W] at `x` = (1 - sigma) x0 + sigma noise, `sigma` [B] in (0, 1]."""
        return self.denoiser(x, sigma * flow.TIME_SCALE, context=context, y=pooled)


def save_checkpoint(model: FlowTrainingModel, path: Path, provenance: Mapping[str, Any]) -> None:
    """One fp16 safetensors file for CheckpointLoaderSimple (with `register()` done), and its provenance beside it."""
    from safetensors.torch import save_file

    state = {f"{DENOISER_PREFIX}{key}": value for key, value in model.denoiser.state_dict().items()}
    state |= {
        f"{TEXT_PREFIX}{key}": value for key, value in model.text.state_dict().items() if "position_ids" not in key
    }
    state[f"vae.{VAE_KEY}"] = torch.tensor(1.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {key: value.detach().to("cpu", torch.float16).contiguous().clone() for key, value in state.items()}
    save_file(stored, path, {"model": "tiny_scenes_flow"})
    path.with_suffix(".json").write_text(json.dumps(provenance, indent=1) + "\n")


def load_checkpoint(path: Path) -> FlowTrainingModel:
    """The trainable model with the weights of a saved checkpoint; its size is read from the weights."""
    from safetensors.torch import load_file

    state = load_file(path)
    width = state[f"{DENOISER_PREFIX}x_embedder.proj.weight"].shape[0]
    blocks = 1 + max(int(key.split(".")[3]) for key in state if key.startswith(f"{DENOISER_PREFIX}joint_blocks."))
    model = FlowTrainingModel(width, blocks)
    model.denoiser.load_state_dict(_part(state, DENOISER_PREFIX))
    load_text(model.text, path)
    return model


def load_text(text: nn.Module, path: Path) -> None:
    """Gives `text` the text encoder of a Tiny Scenes checkpoint of either kind."""
    from safetensors.torch import load_file

    weights = _part(load_file(path), TEXT_PREFIX)
    missing, unexpected = text.load_state_dict(weights, strict=False)
    if unexpected or any("position_ids" not in key for key in missing):
        raise ValueError(f"{path} has no complete Tiny Scenes text encoder: missing {missing}, unknown {unexpected}.")


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value.float() for key, value in state.items() if key.startswith(prefix)}


def split_checkpoint(path: Path, models: Path) -> dict[str, Path]:
    """Writes the checkpoint's parts where UNETLoader, CLIPLoader and VAELoader look below `models`.

    Returns folder -> file. The weights stay as they are, bit by bit.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    parts: dict[str, dict[str, Tensor]] = {folder: {} for folder in SPLIT_FOLDERS}
    prefixes = dict(zip(SPLIT_FOLDERS, (DENOISER_PREFIX, TEXT_PREFIX, "vae."), strict=True))
    with safe_open(path, "pt") as opened:
        for key in opened.keys():  # noqa: SIM118 - safe_open is no mapping
            for folder, prefix in prefixes.items():
                if key.startswith(prefix):
                    parts[folder][key.removeprefix(prefix)] = opened.get_tensor(key)
    parts["text_encoders"][TEXT_MARKER] = torch.tensor(1.0)
    written = {}
    for folder, tensors in parts.items():
        written[folder] = models / folder / f"{path.stem}{SPLIT_FOLDERS[folder]}.safetensors"
        written[folder].parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, written[folder], {"model": "tiny_scenes_flow"})
    return written


def make_random_checkpoint(path: str | Path, seed: int = 0, *, width: int = flow.WIDTH, blocks: int = 2) -> Path:
    """Writes an untrained checkpoint of the right kind: for tests of everything that does not classify pictures."""
    torch.manual_seed(seed)
    model = FlowTrainingModel(width, blocks)
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            if parameter.abs().max() == 0:
                nn.init.normal_(parameter, std=0.02)
    save_checkpoint(model, Path(path), {"note": "untrained, for tests", "seed": seed})
    return Path(path)
