"""The Tiny Scenes model as a trainable PyTorch module, and its checkpoint in the host's key names.

The UNet is the host's own class and the text encoder is transformers' CLIP text model, so what is trained is what the
host later builds; tests compare both. Needs the host on `sys.path` (`research.in_process_host.import_host`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from budgetfusion_nodes.tiny_scenes import architecture as arch
from budgetfusion_nodes.tiny_scenes.captions import vocabulary


def _initialise(module: nn.Module) -> None:
    """PyTorch's default initialisation: the host's layers skip theirs, because they expect loaded weights."""
    for layer_type in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm):
        if isinstance(module, layer_type):
            layer_type.reset_parameters(module)  # pyright: ignore[reportArgumentType]


def build_unet() -> nn.Module:
    """The PatchUNet with fresh weights; the last layer of every residual branch starts at zero."""
    import comfy.ops  # pyright: ignore[reportMissingImports]

    from budgetfusion_nodes.tiny_scenes.host_model import patch_unet_class

    depth = list(arch.TRANSFORMER_DEPTH)
    unet = patch_unet_class()(
        **arch.UNET_CONFIG,
        transformer_depth=depth,
        transformer_depth_output=[d for d in depth for _ in range(2)],
        transformer_depth_middle=depth[-1],
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    )
    unet.apply(_initialise)
    for name, parameter in unet.named_parameters():
        if name.startswith(("out.2.", "pixel_head.2.")) or ".out_layers.3." in name or ".proj_out." in name:
            nn.init.zeros_(parameter)
    return unet


class TinyScenesTrainingModel(nn.Module):
    """Text encoder and UNet. `encode` gives (context [B, 48, 128], pooled [B, 128]); `forward` predicts v."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        config: Any = arch.text_config(len(vocabulary()))
        self.text = CLIPTextModelWithProjection(CLIPTextConfig(**config))
        self.unet = build_unet()

    def encode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        out = self.text(input_ids=tokens)
        return out.last_hidden_state, out.text_embeds

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
        return self.unet(x, timestep, context=context, y=pooled)


def save_checkpoint(model: TinyScenesTrainingModel, path: Path, provenance: dict[str, Any]) -> None:
    """One fp16 safetensors file for CheckpointLoaderSimple (with `register()` done), and its provenance beside it."""
    from safetensors.torch import save_file

    state = {f"model.diffusion_model.{key}": value for key, value in model.unet.state_dict().items()}
    state |= {
        f"text_encoders.clip_tiny.transformer.{key}": value
        for key, value in model.text.state_dict().items()
        if "position_ids" not in key
    }
    state["vae.pixel_space_vae"] = torch.tensor(1.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {key: value.detach().to(torch.float16).contiguous().clone() for key, value in state.items()},
        path,
        {"model": "tiny_scenes"},
    )
    path.with_suffix(".json").write_text(json.dumps(provenance, indent=1) + "\n")


def load_checkpoint(path: Path) -> TinyScenesTrainingModel:
    """The trainable model with the weights of a saved checkpoint, to go on training from it."""
    from safetensors.torch import load_file

    model, state = TinyScenesTrainingModel(), load_file(path)
    for prefix, part in (("model.diffusion_model.", model.unet), ("text_encoders.clip_tiny.transformer.", model.text)):
        part.load_state_dict(
            {key.removeprefix(prefix): value.float() for key, value in state.items() if key.startswith(prefix)},
            strict=False,
        )
    return model


def make_random_checkpoint(path: str | Path, seed: int = 0) -> Path:
    """Writes an untrained checkpoint of the right shape: for tests of everything that does not classify pictures."""
    torch.manual_seed(seed)
    model = TinyScenesTrainingModel()
    with torch.no_grad():
        for parameter in model.unet.parameters():
            if parameter.ndim > 1 and parameter.abs().max() == 0:
                nn.init.normal_(parameter, std=0.02)
    save_checkpoint(model, Path(path), {"note": "untrained, for tests", "seed": seed})
    return Path(path)
