"""Seconds and joules of a UNet of Stable Diffusion 2.1's real size on a GPU, at all steps and at the planned mean.

The weights are random: time and energy do not depend on their values. The host must be importable.
"""

from __future__ import annotations

import importlib
import time
from typing import Any

import torch
from torch import Tensor

from budgetfusion_nodes.host.energy import watt_hours

SD21_PARAMETERS = 865_910_724
"""Of the UNet in the published checkpoint (stabilityai/stable-diffusion-2-1)."""
LATENT_SIDE = 96  # 768 pixels
TOKENS, CONTEXT = 77, 1024
CFG = 7.5
SIGMAS = (0.0292, 14.6146)
REPEATS = 3


def sd21_unet(device: str, dtype: torch.dtype) -> torch.nn.Module:
    """The host's own UNetModel with the shape of Stable Diffusion 2.1."""
    model = importlib.import_module("comfy.ldm.modules.diffusionmodules.openaimodel").UNetModel
    operations = importlib.import_module("comfy.ops").disable_weight_init
    return model(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=320,
        num_res_blocks=[2, 2, 2, 2],
        channel_mult=(1, 2, 4, 4),
        transformer_depth=[1, 1, 1, 1, 1, 1, 0, 0],
        transformer_depth_output=[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        transformer_depth_middle=1,
        num_head_channels=64,
        use_spatial_transformer=True,
        use_linear_in_transformer=True,
        context_dim=CONTEXT,
        dtype=dtype,
        device=device,
        operations=operations,
    )


def sd21_profile(target: int, planned: int) -> dict[str, Any]:
    """JSON-safe. Without a CUDA device it says so and measures nothing."""
    if not torch.cuda.is_available():
        return {"measured": False, "reason": "no CUDA device in this run"}
    network = sd21_unet("cuda", torch.float16).eval().requires_grad_(False)
    _fill(network)
    context = torch.randn(2, TOKENS, CONTEXT, device="cuda", dtype=torch.float16)
    runs = {name: _measured(network, context, steps) for name, steps in (("all", target), ("planned", planned))}
    return {
        "measured": True,
        "device": torch.cuda.get_device_name(),
        "parameters": sum(p.numel() for p in network.parameters()),
        "pixels": LATENT_SIDE * 8,
        "steps": {"all": target, "planned": planned},
        **runs,
    }


def _fill(network: torch.nn.Module) -> None:
    """Small random weights: disable_weight_init leaves memory as it was found, which may hold NaN."""
    generator = torch.Generator("cuda").manual_seed(0)
    for parameter in network.parameters():
        parameter.data.normal_(0.0, 0.02, generator=generator)


@torch.inference_mode()
def _measured(network: torch.nn.Module, context: Tensor, steps: int) -> dict[str, float | None]:
    """Median seconds and mean joules of one image's sampling, cond and uncond in one batch as the host runs them."""
    sampling = importlib.import_module("comfy.k_diffusion.sampling")
    sigmas = sampling.get_sigmas_karras(steps, *SIGMAS, device="cuda")
    noise = torch.randn(1, 4, LATENT_SIDE, LATENT_SIDE, device="cuda") * SIGMAS[1]

    def denoise(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        scaled = (x / (sigma**2 + 1.0).sqrt()).half().repeat(2, 1, 1, 1)
        times = torch.full((2,), 500.0, device="cuda")
        uncond, cond = network(scaled, timesteps=times, context=context).float().chunk(2)
        return x - sigma * (uncond + CFG * (cond - uncond)).nan_to_num().clamp(-10, 10)

    sampling.sample_dpmpp_2m(denoise, noise, sigmas[:4], disable=True)
    laps = []
    before = joules()
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        sampling.sample_dpmpp_2m(denoise, noise, sigmas, disable=True)
        torch.cuda.synchronize()
        laps.append(time.perf_counter() - started)
    after = joules()
    used = None if before is None or after is None else (after - before) / REPEATS
    return {"seconds": sorted(laps)[REPEATS // 2], "joules": used}


def joules() -> float | None:
    """The GPU's own counter; None where it has none."""
    found = watt_hours(torch.device("cuda"))
    return None if found is None else found * 3600.0
