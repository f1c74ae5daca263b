"""The example graphs, one function each."""

from __future__ import annotations

from research.shipped_models import FLOW

from .page import Graph, Node, link
from .parts import (
    HELLO_PROMPT,
    HELLO_SEED,
    NEGATIVE,
    PHOTOGRAPH,
    PROMPT,
    PROMPTS,
    SEED,
    SETTING,
    TWO_PASS_SEED,
    adaptive,
    decode_and_save,
    empty,
    encoded,
    ksampler,
    loader,
    model_and_prompts,
    planner,
)


def graphs() -> tuple[Graph, ...]:
    """Every example graph."""
    return (
        _hello(),
        _hello_flow(),
        _planner_into_adaptive(),
        _adaptive_alone(),
        _sweep_into_probe(),
        _sigmas_into_custom(),
        _steps_into_ksampler(),
        _two_passes(),
        _prompt_list(),
        _swap_in_checkpoint(),
        _flux_through_sigmas(),
        _calibrate_your_model(),
        _blind_test(),
    )


def _hello() -> Graph:
    return Graph(
        "hello_tiny_scenes",
        "Press **Run**. Everything this graph needs comes with BudgetFusion: Tiny Scenes is a small model that paints "
        "64 x 64 pictures.\n\n**Adaptive KSampler** reads the prompt and decides how many steps this picture needs. "
        "The KSampler beside it takes all 50, from the same seed. Compare the two pictures and the receipt, then drag "
        "**quality** and write other prompts.",
        (
            *model_and_prompts(HELLO_PROMPT),
            adaptive(2, seed=HELLO_SEED),
            ksampler(3, 7, 50, "KSampler, all 50 steps", HELLO_SEED),
            *decode_and_save(6, 4, title="As planned"),
            *decode_and_save(7, 5, (10, 11), "All 50 steps"),
        ),
    )


def _hello_flow() -> Graph:
    loaders = [
        Node(i, kind, dict(given), 0) for i, (kind, given) in zip((1, 15, 16), FLOW.loaders.items(), strict=True)
    ]
    return Graph(
        "hello_tiny_scenes_flow",
        "Press **Run**. Tiny Scenes Flow is a small model of the kind of Stable Diffusion 3 and Flux (a flow-matching "
        "transformer) and comes with BudgetFusion. As there, diffusion model, text encoder and VAE have a loader each, "
        f"and the sampler is {FLOW.sampler_name} with the scheduler {FLOW.scheduler}.\n\n**Adaptive KSampler** decides "
        "how many steps this picture needs. The KSampler beside it takes all 50, from the same seed.",
        (
            *loaders,
            empty(64),
            encoded(2, HELLO_PROMPT, "Prompt", link(15)),
            encoded(3, NEGATIVE, "Negative prompt", link(15)),
            adaptive(2, seed=HELLO_SEED, **FLOW.setting),
            ksampler(3, 7, 50, "KSampler, all 50 steps", HELLO_SEED, **FLOW.setting),
            *decode_and_save(6, 4, title="As planned", vae=link(16)),
            *decode_and_save(7, 5, (10, 11), "All 50 steps", link(16)),
        ),
    )


def _planner_into_adaptive() -> Graph:
    return Graph(
        "planner_into_adaptive_ksampler",
        "**Budget Planner** decides the number of steps from the prompt and shows why. **Adaptive KSampler** obeys the "
        "plan and says what it saved. Move the quality slider of the planner and queue again.",
        (*model_and_prompts(), planner(2), adaptive(3, plan=link(5)), *decode_and_save(6, 4)),
    )


def _adaptive_alone() -> Graph:
    return Graph(
        "adaptive_ksampler",
        "**Adaptive KSampler** is a KSampler whose steps became quality and max_steps. Put it in the place of a "
        "KSampler: it plans by itself.",
        (*model_and_prompts(), adaptive(2), *decode_and_save(6, 3)),
    )


def _sweep_into_probe() -> Graph:
    sweep = {
        "model": link(1),
        "positive": link(2),
        "negative": link(3),
        "latent_image": link(4),
        "vae": link(1, 2),
        "seed": SEED,
        **SETTING,
        "step_counts": "6 7 8 9 10 11 12 13 16 20 30 50",
        "plan": link(5),
    }
    probe = {
        "images": link(7, 0),
        "step_counts": link(7, 1),
        "d_sim_backend": "auto",
        "plan": link(5),
    }
    return Graph(
        "step_sweep_and_probe",
        "**Step Sweep** renders one prompt and seed with each step count, along the plan's schedule: with a nested one "
        "all counts begin with the same steps, which are rendered once. **Perceptual Metric Probe** measures how far "
        "each image is from the last one, and compares the measured quality with the plan's prediction.",
        (
            *model_and_prompts(),
            planner(2),
            Node(7, "BudgetFusion_StepSweep", sweep, 3, width=400),
            Node(10, "BudgetFusion_PerceptualMetricProbe", probe, 4, width=520),
            Node(11, "PreviewImage", {"images": link(7, 0)}, 3, width=400),
        ),
    )


def _custom_sampler() -> Node:
    """SamplerCustomAdvanced under the planner's sigmas."""
    inputs = {
        "noise": link(12),
        "guider": link(14),
        "sampler": link(13),
        "sigmas": link(5, 2),
        "latent_image": link(4),
    }
    return Node(6, "SamplerCustomAdvanced", inputs, 4)


def _sigmas_into_custom() -> Graph:
    guider = {"cfg": SETTING["cfg"], "model": link(1), "positive": link(2), "negative": link(3)}
    return Graph(
        "planner_sigmas_sampler_custom_advanced",
        "The planner's **sigmas** drive any custom sampler. Keep the sampler of KSamplerSelect and the cfg of "
        "CFGGuider equal to those of the planner.",
        (
            *model_and_prompts(),
            planner(2),
            Node(12, "RandomNoise", {"noise_seed": SEED}, 3),
            Node(13, "KSamplerSelect", {"sampler_name": SETTING["sampler_name"]}, 3),
            Node(14, "CFGGuider", guider, 3),
            _custom_sampler(),
            *decode_and_save(6, 5),
        ),
    )


def _steps_into_ksampler() -> Graph:
    return Graph(
        "planner_steps_into_ksampler",
        "The planner's **steps** drive the stock KSampler. Keep its sampler, scheduler and cfg equal to those "
        "of the planner.",
        (*model_and_prompts(), planner(2), ksampler(3, 6, link(5, 1)), *decode_and_save(6, 4)),
    )


def _two_passes() -> Graph:
    larger = {"samples": link(6), "upscale_method": "bilinear", "scale_by": 1.5}
    return Graph(
        "two_passes_with_denoise",
        "The first pass plans and renders at 64 x 64. The second enlarges the result and makes it half anew "
        "(**denoise** 0.5), with a plan of its own.\n\nAs in KSampler, all planned steps are executed below denoise 1 "
        "too. The plan was calibrated at denoise 1 and 64 x 64, so in the second pass it is only a guide, and the node "
        "says so.",
        (
            *model_and_prompts(),
            adaptive(2, title="First pass", seed=TWO_PASS_SEED),
            Node(20, "LatentUpscaleBy", larger, 3),
            adaptive(4, 21, "Second pass", latent_image=link(20), denoise=0.5, quality=0.8),
            *decode_and_save(6, 3, title="First pass"),
            *decode_and_save(21, 5, (22, 23), "Second pass"),
        ),
    )


def _prompt_list() -> Graph:
    texts = [encoded(30 + i, text, f"Prompt {i + 1}") for i, text in enumerate(PROMPTS)]
    listed = {f"inputs.input{i}": link(node.id) for i, node in enumerate(texts)}
    return Graph(
        "prompt_list",
        "Three prompts from easy to hard, in one list: each gets a step count of its own.\n\n**Budget Planner** shows "
        "the forecast for the whole list and a chart for each prompt; page through them with the arrows. **Adaptive "
        "KSampler** renders each with its own plan. Add prompts by linking more of them to the list.",
        (
            loader(),
            empty(64),
            *texts,
            encoded(3, NEGATIVE, "Negative prompt"),
            Node(2, "CreateList", listed, 2, "List of prompts", 220),
            planner(3),
            adaptive(4, plan=link(5)),
            *decode_and_save(6, 5),
        ),
    )


def _swap_in_checkpoint() -> Graph:
    own = {"cfg": 7.0, "max_steps": 20}
    return Graph(
        "swap_in_sd15_or_sdxl",
        "Your own checkpoint: choose it in **Load Checkpoint**. For SD 1.5 leave 512 x 512, for SDXL set 1024 x 1024."
        "\n\nAs long as no planner was calibrated for it, the nodes say **No plan** and render all of max_steps, as "
        "KSampler would. Add **Calibrate** to this graph, connect model, clip, vae and negative, and queue it once: "
        "the same graph then plans.",
        (
            loader("v1-5-pruned-emaonly-fp16.safetensors"),
            empty(512),
            encoded(2, "a lighthouse on a cliff at dusk, oil painting", "Prompt"),
            encoded(3, "blurry, low quality", "Negative prompt"),
            planner(2, **own),
            adaptive(3, plan=link(5), **own),
            *decode_and_save(6, 4),
        ),
    )


def _flux_through_sigmas() -> Graph:
    clip = {"clip_name1": "clip_l.safetensors", "clip_name2": "t5xxl_fp8_e4m3fn.safetensors", "type": "flux"}
    clip["device"] = "default"
    own = {"cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "max_steps": 28}
    return Graph(
        "flux_through_sigmas",
        "Flux without a KSampler: the planner's **sigmas** go into SamplerCustomAdvanced. Choose your files in the "
        "three loaders. For SD3 use its checkpoint loader and CFGGuider in place of BasicGuider.\n\nKeep "
        "KSamplerSelect equal to the planner's sampler_name. As long as no planner was calibrated for your model, the "
        "planner says **No plan** and gives the sigmas of max_steps.",
        (
            Node(1, "UNETLoader", {"unet_name": "flux1-dev.safetensors", "weight_dtype": "default"}, 0),
            Node(15, "DualCLIPLoader", clip, 0),
            Node(16, "VAELoader", {"vae_name": "ae.safetensors"}, 0),
            Node(4, "EmptySD3LatentImage", {"width": 1024, "height": 1024, "batch_size": 1}, 0),
            encoded(3, "a lighthouse on a cliff at dusk, oil painting", "Prompt", link(15)),
            Node(2, "FluxGuidance", {"conditioning": link(3), "guidance": 3.5}, 1, width=380),
            planner(2, **own),
            Node(12, "RandomNoise", {"noise_seed": SEED}, 3),
            Node(13, "KSamplerSelect", {"sampler_name": own["sampler_name"]}, 3),
            Node(14, "BasicGuider", {"model": link(1), "conditioning": link(2)}, 3),
            _custom_sampler(),
            *decode_and_save(6, 5, vae=link(16)),
        ),
    )


def _calibrate_your_model() -> Graph:
    most = 20
    inputs = {
        "model": link(1),
        "clip": link(1, 1),
        "vae": link(1, 2),
        "negative": link(3),
        "latent_image": link(4),
        **SETTING,
        "max_steps": most,
        "thoroughness": "quick",
        "schedule": "nested",
        "prompts": "built-in",
        "prompt_text": "",
        "name": "",
        "width": 64,
        "height": 64,
        "keep_text": False,
    }
    return Graph(
        "calibrate_your_model",
        "**Calibrate** makes a planner for the model in this graph. Choose yours in **Load Checkpoint**, set the size "
        "of the empty latent, and set sampler, scheduler, cfg and max_steps as you render with them, on both nodes."
        "\n\nPress **Run**: 28 prompts are rendered, which takes about as long as 100 pictures. Cancel whenever you "
        "like; what was measured is kept, and the next run goes on.\n\nThen press **Run** again: **Adaptive KSampler** "
        "finds the new planner by itself. As it stands, this graph calibrates Tiny Scenes, which takes a few minutes "
        "on a processor.",
        (
            *model_and_prompts(PHOTOGRAPH),
            Node(5, "BudgetFusion_Calibrate", inputs, 2, width=400),
            adaptive(3, max_steps=most),
            *decode_and_save(6, 4),
        ),
    )


def _blind_test() -> Graph:
    inputs = {"planned": link(8), "full": link(10), "plan": link(5), "quality": 0.9, "label": ""}
    return Graph(
        "blind_test",
        "Can you see which picture took all 50 steps? Press **Run**: **Blind Test** shows pairs of the same seed, "
        "unlabelled. Press **1** or **2** for the better picture, or the space bar where you see no difference.\n\n"
        "Queue as often as you like; the seed changes by itself. Then move **quality** on Budget Planner and go on: "
        "after twenty choices at two or more values the node says at which quality your eyes stop telling.",
        (
            loader(),
            empty(64, pictures=4),
            Node(30, "PrimitiveInt", {"value": HELLO_SEED}, 0, "Seed", after="randomize"),
            encoded(2, PROMPT, "Prompt"),
            encoded(3, NEGATIVE, "Negative prompt"),
            planner(2),
            adaptive(3, plan=link(5), seed=link(30)),
            ksampler(4, 7, 50, "KSampler, all 50 steps", link(30)),
            Node(8, "VAEDecode", {"samples": link(6), "vae": link(1, 2)}, 4, width=200),
            Node(10, "VAEDecode", {"samples": link(7), "vae": link(1, 2)}, 4, width=200),
            Node(12, "BudgetFusion_BlindTest", inputs, 5, width=640),
        ),
    )
