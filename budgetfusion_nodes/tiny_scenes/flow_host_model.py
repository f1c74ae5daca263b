"""Teaches ComfyUI to load Tiny Scenes Flow: as one checkpoint, or as split files through its own loaders.

Denoiser, sampling, VAE and text model are the host's own classes; `register()` of `host_model` adds the family to its
list. The text encoder's split file needs a hook, because the host has no list of text encoders to add to: a file with
the key `TEXT_MARKER` becomes ours, every other one goes on as before. Nothing here runs at import.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

from . import flow_architecture as flow
from .architecture import TEXT_WIDTH

FAMILY_NAME = "BudgetFusionTinyScenesFlow"
TEXT_MARKER = "tiny_scenes_text"
"""Key of a scalar in the text encoder's split file."""
_HOOKED = "_budgetfusion_tiny_scenes"


def _base_model_class() -> type:
    import comfy.conds  # pyright: ignore[reportMissingImports]
    import comfy.model_base  # pyright: ignore[reportMissingImports]
    import torch
    from comfy.ldm.modules.diffusionmodules.mmdit import (  # pyright: ignore[reportMissingImports]
        OpenAISignatureMMDITWrapper,
    )

    class PatchDenoiser(OpenAISignatureMMDITWrapper):
        """The host's MMDiT, with a clear word for a size that its patches cannot cover."""

        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            height, width = x.shape[-2:]
            if height % flow.PATCH or width % flow.PATCH:
                raise ValueError(
                    f"Tiny Scenes Flow draws pictures with sides that are multiples of {flow.PATCH}; got "
                    f"{width} x {height}. Set 64 x 64 in Empty Latent Image."
                )
            return super().forward(x, *args, **kwargs)

    class TinyScenesFlowModel(comfy.model_base.BaseModel):
        def __init__(self, model_config: Any, device: Any = None) -> None:
            super().__init__(model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=PatchDenoiser)

        def encode_adm(self, **kwargs: Any) -> torch.Tensor:
            """The pooled caption joins the time embedding; a conditioning without one counts as an empty one."""
            pooled = kwargs.get("pooled_output")
            if pooled is None:
                return torch.zeros((1, TEXT_WIDTH), device=kwargs.get("device"))
            return pooled

        def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
            """Text of another length is never repeated to fit: in joint attention a repeated token counts twice."""
            conds = super().extra_conds(**kwargs)
            if kwargs.get("cross_attn") is not None:
                conds["c_crossattn"] = comfy.conds.CONDRegular(kwargs["cross_attn"])
            return conds

    return TinyScenesFlowModel


def family_class(latent_format: type, text_classes: tuple[type, type]) -> type:
    """The `supported_models_base.BASE` subclass: how the host recognises and builds the model."""
    import comfy.model_detection  # pyright: ignore[reportMissingImports]
    import comfy.supported_models_base  # pyright: ignore[reportMissingImports]
    import torch

    model = _base_model_class()

    class Family(comfy.supported_models_base.BASE):
        unet_config: ClassVar[Any] = dict(flow.FIXED_CONFIG)
        unet_extra_config: ClassVar[Any] = {}
        sampling_settings: ClassVar[Any] = {"shift": flow.SHIFT, "multiplier": flow.TIME_SCALE}
        # As Tiny Scenes: small enough for fp32 anywhere, so the shipped planner holds on every device.
        supported_inference_dtypes: ClassVar[Any] = [torch.float32]
        vae_key_prefix: ClassVar[Any] = ["vae."]
        text_encoder_key_prefix: ClassVar[Any] = ["text_encoders."]
        memory_usage_factor = 0.5

        def inpaint_model(self) -> bool:
            return False

        def get_model(self, state_dict: Any, prefix: str = "", device: Any = None) -> Any:
            # the host takes the number of blocks for the number of heads, unless told
            self.unet_config["num_blocks"] = comfy.model_detection.count_blocks(
                list(state_dict), f"{prefix}joint_blocks.{{}}."
            )
            return model(self, device=device)

        def clip_target(self, state_dict: Any = None) -> Any:
            return comfy.supported_models_base.ClipTarget(*text_classes)

    Family.latent_format = latent_format
    Family.__name__ = Family.__qualname__ = FAMILY_NAME
    return Family


def hook_text_encoder(text_classes: tuple[type, type]) -> None:
    """CLIPLoader understands the text encoder's split file. Safe to call twice."""
    import comfy.sd  # pyright: ignore[reportMissingImports]
    import comfy.supported_models_base  # pyright: ignore[reportMissingImports]
    import comfy.utils  # pyright: ignore[reportMissingImports]

    load = comfy.sd.load_text_encoder_state_dicts
    if getattr(load, _HOOKED, False):
        return

    @functools.wraps(load)
    def load_text_encoder_state_dicts(state_dicts: Any = (), *args: Any, **kwargs: Any) -> Any:
        if len(state_dicts) != 1 or TEXT_MARKER not in state_dicts[0]:
            return load(state_dicts, *args, **kwargs)
        named = dict(zip(("embedding_directory", "clip_type", "model_options"), args, strict=False)) | kwargs
        named.pop("clip_type", None)  # whatever was chosen in the loader: the file says what it is
        weights = {key: value for key, value in state_dicts[0].items() if key != TEXT_MARKER}
        target = comfy.supported_models_base.ClipTarget(*text_classes)
        parameters = comfy.utils.calculate_parameters(weights)
        return comfy.sd.CLIP(target, parameters=parameters, state_dict=[weights], **named)

    setattr(load_text_encoder_state_dicts, _HOOKED, True)
    comfy.sd.load_text_encoder_state_dicts = load_text_encoder_state_dicts
