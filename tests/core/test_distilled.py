"""File names as they lie on artists' disks: distilled few-step models and LoRAs, and names that only look like them."""

from __future__ import annotations

import pytest

from budgetfusion_nodes.core.distilled import few_steps, few_steps_in, looks_distilled

DISTILLED = {
    "z_image_turbo_bf16.safetensors": None,
    "sd_xl_turbo_1.0_fp16.safetensors": None,
    "flux1-schnell-fp8.safetensors": None,
    "Flux2TurboComfyv2.safetensors": None,
    "hidream_i1_fast_fp8.safetensors": None,
    "flux-2-klein-4b-fp8.safetensors": None,
    "ltx-2.3-22b-distilled-fp8.safetensors": None,
    "ltx-2-19b-distilled-lora-384.safetensors": None,
    "wan_animate_2_distill_int8_convrot.safetensors": None,
    "acestep_v1.5_xl_turbo_bf16.safetensors": None,
    "Qwen-Image-Lightning-4steps-V1.0.safetensors": 4,
    "FireRed-Image-Edit-1.0-Lightning-8steps-v1.0.safetensors": 8,
    "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors": 4,
    "lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank64_bf16.safetensors": None,
    "Wan21_CausVid_14B_T2V_lora_rank32.safetensors": None,
    "causal_forcing-framewise.safetensors": None,
    "fastvideo_fasth3_8step_v2_pruned_int8_convrot.safetensors": 8,
    "pid_flux1_1024_to_4096_4step_bf16.safetensors": 4,
    "Hyper-SDXL-8steps-lora.safetensors": 8,
    "Hyper-FLUX.1-dev-8steps-lora.safetensors": 8,
    "sdxl_lightning_4step_unet.safetensors": 4,
    "dreamshaperXL_v21TurboDPMSDE.safetensors": None,
    "juggernautXL_v9Rdphoto2Lightning.safetensors": None,
    "epicrealismXL_vxviiHyper.safetensors": None,
    "lcm-lora-sdxl.safetensors": None,
    "LCM_Dreamshaper_v7.safetensors": None,
    "dmd2_sdxl_4step_lora_fp16.safetensors": 4,
    "sdxl_tcd_lora.safetensors": None,
    "FLUX.1-Turbo-Alpha.safetensors": None,
    "Self-Forcing_DMD.pt": None,
    "flux1-schnell-Q4_K_S.gguf": None,
    "sub folder/Qwen-Rapid-AIO-v5.safetensors": None,
    "windows\\folder\\z_image_turbo.safetensors": None,
    "FLUX.1-dev-4-step.safetensors": 4,
    "chroma1-HD-flash.safetensors": None,
    "mode_turbo_xl.safetensors": None,
}

FULL = (
    "flux1-dev.safetensors",
    "flux1-krea-dev_fp8_scaled.safetensors",
    "flux2_dev_fp8mixed.safetensors",
    "flux-2-klein-base-4b.safetensors",
    "sd_xl_base_1.0.safetensors",
    "sd_xl_refiner_1.0.safetensors",
    "sd3.5_large_fp8_scaled.safetensors",
    "v1-5-pruned-emaonly-fp16.safetensors",
    "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors",
    "qwen_image_fp8_e4m3fn.safetensors",
    "z_image_bf16.safetensors",
    "hidream_i1_dev_fp8.safetensors",
    "ace_step_v1_3.5b.safetensors",
    "stable-audio-open-1.0.safetensors",
    "kandinsky5lite_t2v_sft_5s.safetensors",
    "hyperrealistic_v2.safetensors",
    "HyperRealism_XL.safetensors",
    "style_lora_2000steps.safetensors",
    "mylora-epoch10-step000050.safetensors",
    "portrait_15steps_a_day.safetensors",
    "flux1-dev-de-distill.safetensors",
    "flux_dedistilled_mix.safetensors",
    "undistilled-flux.safetensors",
    "z_image_de_turbo_v1_bf16.safetensors",
    "Z-Image-DeTurbo.safetensors",
    "flux1-schnell-dedistilled.safetensors",
    "flash_photography_flux.safetensors",
    "hunyuan_video_720_cfgdistill_fp8_e4m3fn.safetensors",
    "guidance-distilled-sdxl.safetensors",
    "NextStep-1-Large.safetensors",
    "breakfast_cafe.safetensors",
    "",
)


@pytest.mark.parametrize(("name", "steps"), DISTILLED.items())
def test_distilled_names_and_the_count_they_state(name: str, steps: int | None) -> None:
    found = few_steps_in(name)
    assert found is not None
    assert found.name == name
    assert found.word
    assert found.steps == steps


@pytest.mark.parametrize("name", FULL)
def test_other_names_are_left_alone(name: str) -> None:
    assert few_steps_in(name) is None


def test_files_come_before_metadata_and_the_first_evidence_counts() -> None:
    titled = {"modelspec.title": "My LCM merge", "modelspec.description": "not a turbo model"}
    assert few_steps(["model.safetensors"]) is None
    assert few_steps(["model.safetensors"], {"modelspec.description": "not a turbo model"}) is None
    found = few_steps(["model.safetensors"], titled)
    assert found is not None and (found.name, found.word) == ("My LCM merge", "lcm")
    found = few_steps(["base.safetensors", "x-Lightning-4steps.safetensors"], titled)
    assert found is not None and found.steps == 4


@pytest.mark.parametrize(
    ("cfg", "max_steps", "looks"), [(1.0, 4, True), (1.0, 12, True), (1.0, 20, False), (3.5, 8, False), (0.0, 1, True)]
)
def test_a_graph_set_as_for_a_distilled_model(cfg: float, max_steps: int, looks: bool) -> None:
    assert looks_distilled(cfg, max_steps) == looks
