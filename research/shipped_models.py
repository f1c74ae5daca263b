"""The two shipped models, and the setting that each is shown, planned and calibrated with. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class ShippedModel:
    """A model that comes with the pack, as an artist loads and samples it."""

    title: str
    checkpoint: str
    """File name in weights/checkpoints, which the host lists for Load Checkpoint and Load Diffusion Model."""
    planner: str
    """File name in weights/planners: of the stock schedule."""
    sampler_name: str
    scheduler: str
    cfg: float
    loaders: Mapping[str, Inputs]
    """The host's loader nodes -> their inputs: one for a checkpoint, or diffusion model, text encoder and VAE."""

    @property
    def setting(self) -> dict[str, Any]:
        """cfg, sampler_name and scheduler, as the inputs of a node."""
        return {"cfg": self.cfg, "sampler_name": self.sampler_name, "scheduler": self.scheduler}

    def describe(self, prefix_steps: int = 0) -> str:
        """What every figure names: "Tiny Scenes, dpmpp_2m / karras (stock schedule), cfg 3". prefix_steps: of a nested
        schedule."""
        schedule = f"nested schedule, {prefix_steps} steps for all" if prefix_steps else "stock schedule"
        return f"{self.title}, {self.sampler_name} / {self.scheduler} ({schedule}), cfg {self.cfg:g}"


EPS = ShippedModel(
    title="Tiny Scenes",
    checkpoint="tiny_scenes.safetensors",
    planner="tiny_scenes_dpmpp_2m.safetensors",
    sampler_name="dpmpp_2m",
    scheduler="karras",
    cfg=3.0,
    loaders={"CheckpointLoaderSimple": {"ckpt_name": "tiny_scenes.safetensors"}},
)
FLOW = ShippedModel(
    title="Tiny Scenes Flow",
    checkpoint="tiny_scenes_flow.safetensors",
    planner="tiny_scenes_flow_euler.safetensors",
    sampler_name="euler",
    scheduler="simple",
    cfg=3.0,
    loaders={
        "UNETLoader": {"unet_name": "tiny_scenes_flow.safetensors", "weight_dtype": "default"},
        "CLIPLoader": {
            "clip_name": "tiny_scenes_flow_text.safetensors",
            "type": "stable_diffusion",
            "device": "default",
        },
        "VAELoader": {"vae_name": "pixel_space"},
    },
)
MODELS: Mapping[str, ShippedModel] = MappingProxyType({"eps": EPS, "flow": FLOW})
