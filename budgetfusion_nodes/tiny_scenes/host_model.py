"""Teaches ComfyUI to load the Tiny Scenes models with its own loaders.

The host looks for a model family by the shapes of the weights; `register()` puts ours first in its list, with a marker
key so that no other file can match. Everything else is the host's: UNetModel, CLIP text model, pixel VAE, samplers.
This module needs the host on `sys.path`; nothing here runs at import.
"""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

from . import architecture as arch
from .captions import vocabulary
from .tokenizer import WordTokenizer

_FAMILY_NAME = "BudgetFusionTinyScenes"


def patch_unet_class() -> type:
    """The host's UNetModel between a pixel unshuffle and shuffle: [B, 3, H, W] in and out, H and W multiples of 16."""
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # pyright: ignore[reportMissingImports]

    class PatchUNet(UNetModel):
        """Predicts the clean picture inside and answers with v outside, as the host's V_PREDICTION expects.

        A narrow network cannot carry the noise of a whole patch (48 numbers) to its output, but it can draw a clean
        patch; what it fails to remove then never reaches the picture (Li and He 2025, arXiv 2511.13720).
        """

        sigmas: torch.Tensor

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            # One group keeps the channels' ratios, and with them the colour of a picture that is flat all over.
            self.out[0].num_groups = 1
            operations, made = kwargs["operations"], {"dtype": kwargs.get("dtype"), "device": kwargs.get("device")}
            widths = (3 + arch.HINTS + 3 + 1, arch.HEAD_CHANNELS, arch.HEAD_CHANNELS, 3)
            self.pixel_head = torch.nn.ModuleList(
                operations.Conv2d(before, after, 3, padding=1, **made) for before, after in itertools.pairwise(widths)
            )
            self.register_buffer("sigmas", arch.discrete_sigmas(), persistent=False)
            # Only its presence matters: it is the key by which the host knows the file.
            self.tiny_scenes_version = torch.nn.Parameter(torch.tensor(float(arch.VERSION)), requires_grad=False)

        # Not `forward`: around that one the host puts its wrappers, such as EasyCache's, which expect whole pictures.
        def _forward(self, x: torch.Tensor, timesteps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            height, width = x.shape[-2:]
            multiple = arch.PATCH * 2 ** (len(arch.CHANNEL_MULT) - 1)
            if height % multiple or width % multiple:
                raise ValueError(
                    f"Tiny Scenes draws pictures with sides that are multiples of {multiple}; got {width} x {height}. "
                    "Set 64 x 64 in Empty Latent Image."
                )
            folded = torch.nn.functional.pixel_unshuffle(x, arch.PATCH)
            wide = torch.nn.functional.pixel_shuffle(super()._forward(folded, timesteps, *args, **kwargs), arch.PATCH)
            sigma = self.sigmas.to(x.device)[timesteps.round().long().clamp(0, len(self.sigmas) - 1)].view(-1, 1, 1, 1)
            alpha = (1 + sigma**2).rsqrt()
            drawn = wide[:, :3] + self.correction(wide, x, alpha)
            # x = alpha x0 + sigma alpha eps and v = alpha eps - sigma alpha x0 give v = (alpha x - x0) / (sigma alpha).
            return ((alpha * x.float() - drawn.float()) / (sigma * alpha)).to(x.dtype)

        def correction(self, wide: torch.Tensor, x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
            """[B, 3, H, W] that the pixel head adds to the drawing: 64 channels a patch blur the edges inside it."""
            level = alpha.to(x.dtype).expand(-1, 1, *x.shape[-2:])
            hidden = torch.cat([wide, x, level], 1).contiguous(memory_format=torch.channels_last)  # twice as fast
            for convolution in self.pixel_head[:-1]:
                hidden = torch.nn.functional.silu(convolution(hidden))
            return self.pixel_head[-1](hidden)

    return PatchUNet


def _latent_format_class() -> type:
    import comfy.latent_formats  # pyright: ignore[reportMissingImports]

    class PixelRGB(comfy.latent_formats.LatentFormat):
        """Latents are the picture itself in [-1, 1], so the live preview is exact and free."""

        scale_factor = arch.PIXEL_SCALE
        latent_channels = 3
        spacial_downscale_ratio = 1
        latent_rgb_factors: ClassVar[Any] = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

    return PixelRGB


def _text_classes() -> tuple[type, type]:
    import torch
    from comfy import sd1_clip  # pyright: ignore[reportMissingImports]

    class TinyTokenizerPart(sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            super().__init__(
                "tiny_scenes",
                max_length=arch.MAX_TOKENS,
                embedding_directory=embedding_directory,
                embedding_size=arch.TEXT_WIDTH,
                embedding_key="clip_tiny",
                tokenizer_class=WordTokenizer,
                tokenizer_data=tokenizer_data or {},
            )

    class TinyTokenizer(sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            super().__init__(embedding_directory, tokenizer_data or {}, clip_name="tiny", tokenizer=TinyTokenizerPart)

    class TinyClipPart(sd1_clip.SDClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
            config = arch.text_config(len(vocabulary()))
            super().__init__(
                device=device,
                max_length=arch.MAX_TOKENS,
                freeze=False,
                textmodel_json_config=config,
                dtype=dtype,
                special_tokens={"start": 0, "end": 1, "pad": 1},
                return_projected_pooled=True,
                model_options=model_options or {},
            )
            # The host always makes a 49,408-word table; ours is small.
            old = self.transformer.get_input_embeddings()
            table = type(old)(len(vocabulary()), arch.TEXT_WIDTH, dtype=old.weight.dtype, device=old.weight.device)
            torch.nn.init.zeros_(table.weight)
            self.transformer.set_input_embeddings(table)
            self.freeze()

    class TinyClip(sd1_clip.SD1ClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
            super().__init__(device, dtype, model_options or {}, clip_name="tiny", clip_model=TinyClipPart)

    return TinyTokenizer, TinyClip


def family_class() -> type:
    """The `supported_models_base.BASE` subclass: how the host recognises and builds the model."""
    import comfy.model_base  # pyright: ignore[reportMissingImports]
    import comfy.supported_models_base  # pyright: ignore[reportMissingImports]
    import torch

    unet, latent_format = patch_unet_class(), _latent_format_class()

    class TinyScenesModel(comfy.model_base.BaseModel):
        def encode_adm(self, **kwargs: Any) -> torch.Tensor:
            """The pooled caption joins the time embedding; a conditioning without one counts as an empty one."""
            pooled = kwargs.get("pooled_output")
            if pooled is None:
                return torch.zeros((1, arch.TEXT_WIDTH), device=kwargs.get("device"))
            return pooled

    class Family(comfy.supported_models_base.BASE):
        unet_config: ClassVar[Any] = {
            "context_dim": arch.TEXT_WIDTH,
            "model_channels": arch.MODEL_CHANNELS,
            "adm_in_channels": arch.TEXT_WIDTH,
        }
        unet_extra_config: ClassVar[Any] = {"num_heads": arch.NUM_HEADS, "num_head_channels": -1}
        required_keys: ClassVar[Any] = {arch.MARKER_KEY}
        # The file holds fp16 to stay small; half precision would put rounding noise into the perceptual measures.
        supported_inference_dtypes: ClassVar[Any] = [torch.float32]
        vae_key_prefix: ClassVar[Any] = ["vae."]
        text_encoder_key_prefix: ClassVar[Any] = ["text_encoders."]
        memory_usage_factor = 0.5

        def inpaint_model(self) -> bool:
            return False

        def model_type(self, state_dict: Any, prefix: str = "") -> Any:
            return comfy.model_base.ModelType.V_PREDICTION

        def get_model(self, state_dict: Any, prefix: str = "", device: Any = None) -> Any:
            version = int(state_dict[f"{prefix}tiny_scenes_version"])
            if version != arch.VERSION:
                raise ValueError(
                    f"This Tiny Scenes checkpoint is of version {version}; this BudgetFusion reads version "
                    f"{arch.VERSION}. Use the file in its weights/checkpoints folder."
                )
            return TinyScenesModel(self, self.model_type(state_dict, prefix), device=device, unet_model=unet)

        def clip_target(self, state_dict: Any = None) -> Any:
            return comfy.supported_models_base.ClipTarget(*_text_classes())

    Family.latent_format = latent_format
    Family.__name__ = Family.__qualname__ = _FAMILY_NAME
    return Family


def register() -> None:
    """Adds the Tiny Scenes families and their text encoder to the host. Safe to call twice."""
    import comfy.supported_models  # pyright: ignore[reportMissingImports]

    from . import flow_host_model

    known = {model.__name__ for model in comfy.supported_models.models}
    if _FAMILY_NAME not in known:
        comfy.supported_models.models.insert(0, family_class())
    if flow_host_model.FAMILY_NAME not in known:
        flow_family = flow_host_model.family_class(_latent_format_class(), _text_classes())
        comfy.supported_models.models.insert(0, flow_family)
    flow_host_model.hook_text_encoder(_text_classes())
