"""Tiny Scenes Flow in the genuine host is what is trained: one file or split files, fp8, LoRA, shift, sizes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from budgetfusion_nodes.tiny_scenes import flow_architecture as flow
from budgetfusion_nodes.tiny_scenes.tokenizer import WordTokenizer
from research.in_process_host import HostRunError
from research.tiny_scenes_training.flow_model import (
    FlowTrainingModel,
    load_checkpoint,
    make_random_checkpoint,
    split_checkpoint,
)

NAME = "random_flow.safetensors"
BLOCKS = 3
"""Neither the shipped model's number nor the number of heads: it is read from the file."""


@pytest.fixture(scope="module")
def checkpoint(session: Any) -> Path:
    """A random checkpoint where the host looks for it, and its split files."""
    models = session.base_dir / "models"
    path = make_random_checkpoint(models / "checkpoints" / NAME, seed=1, blocks=BLOCKS)
    split_checkpoint(path, models)
    return path


@pytest.fixture(scope="module")
def whole(checkpoint: Path) -> tuple[Any, Any, Any]:
    with torch.inference_mode():
        return sys.modules["nodes"].CheckpointLoaderSimple().load_checkpoint(NAME)


@pytest.fixture(scope="module")
def split(checkpoint: Path) -> tuple[Any, Any, Any]:
    return load_split("default")


@pytest.fixture(scope="module")
def trained(checkpoint: Path) -> FlowTrainingModel:
    return load_checkpoint(checkpoint).eval()


def load_split(weight_dtype: str, clip_type: str = "flux2") -> tuple[Any, Any, Any]:
    nodes = sys.modules["nodes"]
    with torch.inference_mode():
        (model,) = nodes.UNETLoader().load_unet(NAME, weight_dtype)
        (clip,) = nodes.CLIPLoader().load_clip("random_flow_text.safetensors", clip_type)
        (vae,) = nodes.VAELoader().load_vae("random_flow_vae.safetensors")
    return model, clip, vae


def render(parts: tuple[Any, Any, Any], *, size: tuple[int, int] = (64, 64), cfg: float = 3.0) -> torch.Tensor:
    """A picture [1, H, W, 3] by the host's own nodes: euler, simple, three steps."""
    nodes, (model, clip, vae), (width, height) = sys.modules["nodes"], parts, size
    with torch.inference_mode():
        positive, negative = (nodes.CLIPTextEncode().encode(clip, text)[0] for text in ("a large red star on blue", ""))
        (latent,) = nodes.EmptyLatentImage().generate(width, height, 1)
        (latent,) = nodes.KSampler().sample(model, 5, 3, cfg, "euler", "simple", positive, negative, latent, 1.0)
        return nodes.VAEDecode().decode(vae, latent)[0].clone()


def test_denoised_is_what_is_trained(whole: Any, trained: FlowTrainingModel) -> None:
    """x0 = x - sigma v at x = (1 - sigma) x0 + sigma noise, with the text that the host encoded."""
    model, clip, _ = whole
    sys.modules["comfy.model_management"].load_models_gpu([model])
    text = "two large blue circles on a green background"
    ((context, extra),) = sys.modules["nodes"].CLIPTextEncode().encode(clip, text)[0]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        own_context, own_pooled = trained.encode(torch.tensor([WordTokenizer().padded(text)]))
        assert (context.float() - own_context).abs().max() < 1e-3 * own_context.abs().max()
        for size in (64, 128):
            for level in (0.05, 0.5, 1.0):
                sigma = torch.tensor([level])
                x = torch.randn(1, 3, size, size, generator=generator)
                host = model.model.apply_model(x, sigma, c_crossattn=context, y=extra["pooled_output"])
                expected = x - sigma * trained(x, sigma, own_context, own_pooled)
                assert (host - expected).abs().max() < 2e-3 * expected.abs().max()


def test_it_is_a_flow_model_with_the_shift(whole: Any) -> None:
    model = whole[0]
    sampling = model.get_model_object("model_sampling")
    assert model.model.model_type.name == "FLOW"
    assert sampling.shift == flow.SHIFT
    assert float(sampling.sigma_max) == 1.0
    assert float(sampling.timestep(torch.tensor(0.25))) == 250.0
    assert len(model.model.diffusion_model.joint_blocks) == BLOCKS
    assert model.model.diffusion_model.num_heads == flow.HEADS


@pytest.mark.parametrize("size", [(64, 64), (128, 128), (96, 40)])
def test_split_files_draw_the_same_picture(whole: Any, split: Any, size: tuple[int, int]) -> None:
    one, three = render(whole, size=size), render(split, size=size)
    assert one.shape == (1, size[1], size[0], 3)
    assert one.std() > 0.01
    assert torch.equal(one, three)


def test_the_hosts_own_pixel_vae_serves_too(whole: Any, split: Any) -> None:
    (vae,) = sys.modules["nodes"].VAELoader().load_vae("pixel_space")
    assert torch.equal(render(whole), render((*split[:2], vae)))


def test_fp8_is_near(split: Any) -> None:
    fp8 = load_split("fp8_e4m3fn", clip_type="stable_diffusion")
    weight = fp8[0].model.diffusion_model.joint_blocks[0].x_block.attn.qkv.weight
    assert weight.dtype == torch.float8_e4m3fn
    difference = (render(fp8) - render(split)).abs().mean()
    assert 0 < difference < 0.1


def test_cfg_one_and_negative_count(whole: Any) -> None:
    assert (render(whole, cfg=1.0) - render(whole, cfg=4.0)).abs().max() > 1e-3


def test_shift_nodes_change_the_schedule(whole: Any) -> None:
    from comfy_extras.nodes_model_advanced import (  # pyright: ignore[reportMissingImports]
        ModelSamplingAuraFlow,
        ModelSamplingSD3,
    )

    model = whole[0]
    for made in (ModelSamplingSD3().patch(model, 1.5)[0], ModelSamplingAuraFlow().patch_aura(model, 1.5)[0]):
        assert made.get_model_object("model_sampling").shift == 1.5
        assert not torch.equal(render((made, *whole[1:])), render(whole))


def test_lora_patches_the_blocks(whole: Any, session: Any) -> None:
    target = "diffusion_model.joint_blocks.1.x_block.attn.qkv"
    generator = torch.Generator().manual_seed(0)
    lora = {
        f"{target}.lora_up.weight": torch.randn(3 * flow.WIDTH, 4, generator=generator),
        f"{target}.lora_down.weight": torch.randn(4, flow.WIDTH, generator=generator),
    }
    folder = session.base_dir / "models" / "loras"
    folder.mkdir(exist_ok=True)
    save_file(lora, folder / "flow_lora.safetensors")
    (patched,) = sys.modules["nodes"].LoraLoaderModelOnly().load_lora_model_only(whole[0], "flow_lora.safetensors", 1.0)
    assert list(patched.patches) == [f"{target}.weight"]
    assert not torch.equal(render((patched, *whole[1:])), render(whole))
    assert torch.equal(render(whole), render(whole))


def test_saved_checkpoint_loads_again(whole: Any, session: Any) -> None:
    from comfy_extras.nodes_model_merging import save_checkpoint  # pyright: ignore[reportMissingImports]

    model, clip, vae = whole
    out = session.base_dir / "output"
    save_checkpoint(model, clip=clip, vae=vae, filename_prefix="flow_saved", output_dir=str(out))
    (saved,) = out.glob("flow_saved*.safetensors")
    saved.rename(session.base_dir / "models" / "checkpoints" / "flow_saved.safetensors")
    with torch.inference_mode():
        again = sys.modules["nodes"].CheckpointLoaderSimple().load_checkpoint("flow_saved.safetensors")
    assert (render(again) - render(whole)).abs().max() < 0.02


def test_registered_once_and_others_untouched(session: Any, pack: Any) -> None:
    supported = sys.modules["comfy.supported_models"].models
    before, hook = list(supported), sys.modules["comfy.sd"].load_text_encoder_state_dicts
    pack("tiny_scenes.host_model").register()
    assert supported == before
    assert sys.modules["comfy.sd"].load_text_encoder_state_dicts is hook
    detect = sys.modules["comfy.model_detection"]
    sd3 = {
        "joint_blocks.0.context_block.attn.qkv.weight": torch.zeros(3 * 64, 64),
        "x_embedder.proj.weight": torch.zeros(64, 16, 2, 2),
        "final_layer.linear.weight": torch.zeros(64, 64),
    }
    assert type(detect.model_config_from_unet(sd3, "")).__name__ == "SD3"


def test_refused_size_says_what_to_do(whole: Any) -> None:
    model = whole[0]
    with pytest.raises(ValueError, match="multiples of 4; got 66 x 64"):
        model.model.diffusion_model(torch.zeros(1, 3, 64, 66), torch.zeros(1), context=torch.zeros(1, 48, 128))


def test_a_graph_of_split_files_is_planned(bench: Any, make_node: Any, checkpoint: Path) -> None:
    """The three loaders in an executed graph, with our sampler on top: it renders, planned or with its reason."""
    graph = {
        "1": make_node("UNETLoader", unet_name=NAME, weight_dtype="default"),
        "6": make_node("CLIPLoader", clip_name="random_flow_text.safetensors", type="sd3"),
        "7": make_node("VAELoader", vae_name="random_flow_vae.safetensors"),
        "2": make_node("CLIPTextEncode", text="a red star", clip=["6", 0]),
        "3": make_node("CLIPTextEncode", text="", clip=["6", 0]),
        "4": make_node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "5": bench.adaptive(max_steps=3, min_steps=2, sampler_name="euler", scheduler="simple"),
        "8": make_node("VAEDecode", samples=["5", 0], vae=["7", 0]),
    }
    try:
        run = bench.run(graph, show="8")
    except HostRunError as error:
        pytest.fail(str(error))
    assert run.outputs["8"][0].shape == (1, 64, 64, 3)


def test_split_keeps_every_weight(checkpoint: Path) -> None:
    from safetensors.torch import load_file

    models = checkpoint.parents[1]
    one = load_file(checkpoint)
    parts = {
        "model.diffusion_model.": load_file(models / "diffusion_models" / NAME),
        "text_encoders.clip_tiny.transformer.": load_file(models / "text_encoders" / "random_flow_text.safetensors"),
        "vae.": load_file(models / "vae" / "random_flow_vae.safetensors"),
    }
    joined = {prefix + key: value for prefix, part in parts.items() for key, value in part.items()}
    assert set(joined) - set(one) == {"text_encoders.clip_tiny.transformer.tiny_scenes_text"}
    assert all(torch.equal(value, joined[key]) for key, value in one.items())
    assert json.loads(checkpoint.with_suffix(".json").read_text())["seed"] == 1
