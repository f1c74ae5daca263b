"""Calibrate in the genuine host: a planner appears and is used, cancel and go on, foreign families, wrong inputs."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file

from research.foreign_checkpoint import FOLDERS, copied
from research.in_process_host import PACK_ROOT, HostInterrupted, HostRunError, HostSession, interrupted_after
from research.shipped_models import MODELS
from tests.fixtures.calibrating import CAPTIONS, TinyClip, TinyVae, calibrate_family, graph, rendering
from tests.fixtures.graphs import link, node
from tests.fixtures.tiny_models import VIDEO, make_tiny


def measured(pack: Any, store: Path) -> int:
    with pack("calibration.store").Store.at(store) as opened:
        return sum(one.measurements for one in opened.contents())


def test_cancel_go_on_and_render_with_what_was_learned(
    session: HostSession, pack: Any, store: Path, planners: Path, foreign: str
) -> None:
    whole = graph(foreign, max_steps=6)
    with interrupted_after(60), pytest.raises(HostInterrupted):
        session.execute(whole)
    kept = measured(pack, store)
    assert kept > 0, "cancel keeps what was measured"
    assert not list(planners.glob("*")), "two prompts guarantee nothing"

    run = session.execute(whole)
    (shown,) = run.ui["5"]["calibration"]
    assert run.outputs["5"][0] == shown["file"] == "mine.safetensors"
    assert shown["prompts"] == len(CAPTIONS)
    assert run.outputs["5"][2].shape[0] == 1
    events = [data for event, data in run.messages if event == "budgetfusion.calibration"]
    assert events[0]["messages"][0]["code"] == "calibrate_progress"
    assert events[0]["curve"] is None, "nothing is guaranteed yet"
    assert [event["prompts"] for event in events] == sorted(event["prompts"] for event in events)
    assert events[-1]["curve"] == shown["curve"], "the page has the last curve before the result"
    assert len(shown["curve"]["counts"]) == len(shown["curve"]["quality_median"])
    first = [progress for event, progress in run.messages if event == "progress" and progress["node"] == "5"]
    assert [bar["value"] for bar in first] == sorted(bar["value"] for bar in first)
    assert any(0 < bar["value"] < bar["max"] for bar in first), "the bar moves on the way"

    before = (planners / "mine.safetensors").read_bytes()
    session.clear_cache()
    again = session.execute(whole)
    assert not [d for event, d in again.messages if event == "progress" and d["node"] == "5" and d["value"] > 0]
    assert (planners / "mine.safetensors").read_bytes() == before, "nothing new: the file is left alone"

    nodes = rendering()
    nodes["6"]["inputs"]["max_steps"] = 6
    render = session.execute({**{k: whole[k] for k in "1234"}, **nodes})
    (receipt,) = render.ui["6"]["receipt"]
    assert receipt["fallback"] is None
    assert receipt["planner"] == "mine"


def test_the_template_calibrates_and_its_sampler_plans_at_the_next_queue(
    session: HostSession, store: Path, planners: Path
) -> None:
    """As an artist queues it twice, with fewer steps; the shipped planner is not there. Its own prompt is like those of
    the calibration, so that nothing is warned of."""
    twin = json.loads((PACK_ROOT / "workflows" / "api" / "calibrate_your_model.json").read_text(encoding="utf-8"))
    (calibrate,) = [key for key, node in twin.items() if node["class_type"] == "BudgetFusion_Calibrate"]
    (sampler,) = [key for key, node in twin.items() if node["class_type"] == "BudgetFusion_AdaptiveKSampler"]
    for node_id in (calibrate, sampler):
        twin[node_id]["inputs"]["max_steps"] = 4
    first = session.execute(twin)
    made = first.ui[calibrate]["calibration"][0]
    assert (planners / made["file"]).is_file()
    second = session.execute(twin)
    (receipt,) = second.ui[sampler]["receipt"]
    assert (receipt["fallback"], receipt["warnings"]) == (None, [])
    assert receipt["planner"] == made["file"].removesuffix(".safetensors")


def test_numbers_are_those_of_single_stock_renders(
    session: HostSession, pack: Any, store: Path, planners: Path, foreign: str
) -> None:
    """One measured distance, done again with the stock nodes and the Probe's own code."""
    session.execute(graph(foreign, max_steps=5))
    prompts, measure = pack("calibration.prompts"), pack("metrics.measure")
    backends = measure.Backends.from_values("tiny_scenes", "shipped")
    prompt = prompts.CalibrationPrompt(CAPTIONS[1])
    images = []
    for steps in (3, 5):
        sampler = node(
            "KSampler",
            model=link("1"),
            seed=prompt.seed(0),
            steps=steps,
            cfg=3.0,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            positive=link("2"),
            negative=link("3"),
            latent_image=link("4"),
            denoise=1.0,
        )
        stock = graph(foreign)
        del stock["5"]
        stock["2"] = node("CLIPTextEncode", text=prompt.text, clip=link("1", 1))
        stock |= {"6": sampler, "7": node("VAEDecode", samples=link("6"), vae=link("1", 2))}
        images.append(session.execute({**stock, "show": node("PreviewAny", source=link("7"))}).outputs["7"][0])
    expected = measure.measure(images[0], images[1], backends)
    with pack("calibration.store").Store.at(store) as opened:
        ids = list(range(1, len(CAPTIONS) + 1))
        found = opened.measured(1, 1, ids)
        (own,) = [counts for (_, seed), counts in found.items() if seed == prompt.seed(0)]
    for metric, value in expected.items():
        assert own[3].distances[metric] == pytest.approx(float(value[0]), abs=1e-5)


def test_split_loaders_give_the_same_planner(
    session: HostSession,
    pack: Any,
    store: Path,
    planners: Path,
    foreign: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """UNETLoader and VAELoader on the parts of the checkpoint: the same model, so nothing is rendered twice."""
    (family,) = [m for m in sys.modules["comfy.supported_models"].models if m.__name__ == "BudgetFusionTinyScenes"]
    monkeypatch.setattr(family, "required_keys", {})  # they name the checkpoint's prefix, which UNETLoader takes away
    state = load_file(session.base_dir / "models" / "checkpoints" / foreign)
    for folder, prefix in (("diffusion_models", "model.diffusion_model."), ("vae", "vae.")):
        path = session.base_dir / "models" / folder / "split.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, path)
        sys.modules["folder_paths"].filename_list_cache.pop(folder, None)
    few = {"max_steps": 4}
    session.execute(graph(foreign, **few))
    kept = measured(pack, store)
    split = graph(foreign, model=link("7"), vae=link("8"), name="split", **few)
    split["7"] = node("UNETLoader", unet_name="split.safetensors", weight_dtype="default")
    split["8"] = node("VAELoader", vae_name="split.safetensors")
    run = session.execute(split)
    assert run.ui["5"]["calibration"][0]["prompts"] == len(CAPTIONS)
    assert measured(pack, store) == kept, "it is known as the same model"


def test_a_foreign_model_of_three_files_is_calibrated_and_planned(
    session: HostSession, pack: Any, store: Path, planners: Path
) -> None:
    """UNETLoader, CLIPLoader and VAELoader, files that nobody knows, flow matching: as today's graphs load."""
    loaders = copied(MODELS["flow"], session.base_dir / "models").loaders
    for folder in FOLDERS.values():
        sys.modules["folder_paths"].filename_list_cache.pop(folder, None)
    nodes = {str(7 + i): node(kind, **inputs) for i, (kind, inputs) in enumerate(loaders.items())}
    sampling = {"sampler_name": "euler", "scheduler": "simple", "max_steps": 4}
    whole = graph("", model=link("7"), clip=link("8"), vae=link("9"), name="split", **sampling) | nodes
    del whole["1"]
    for key in "23":
        whole[key]["inputs"]["clip"] = link("8")
    shown = session.execute(whole).ui["5"]["calibration"][0]
    assert shown["prompts"] == len(CAPTIONS)
    render = rendering()
    render["6"]["inputs"] |= {"model": link("7"), **sampling}
    (receipt,) = session.execute({**{key: whole[key] for key in ("2", "3", "4", *nodes)}, **render}).ui["6"]["receipt"]
    assert receipt["fallback"] is None
    assert receipt["planner"] == "split"


def test_what_graphs_carry_beside_a_plain_render(
    session: HostSession, bench: Any, pack: Any, store: Path, planners: Path, foreign: str
) -> None:
    """A batch with a noise mask, several conditionings with an area, prompts of 1 and 200 words, no name for a file."""
    texts = "\n".join([*CAPTIONS, "star", "star " * 200])
    linked = {"latent_image": link("8"), "positive": link("9"), "name": "Größe: a/b*?", "prompt_text": texts}
    area = {"width": 1.0, "height": 1.0, "x": 0.0, "y": 0.0, "strength": 1.0}
    whole = graph(foreign, **linked, max_steps=2)
    whole |= {
        "mask": node("GivenMASK", key=bench.value(torch.ones(1, 64, 64))),
        "7": node("EmptyLatentImage", width=64, height=64, batch_size=3),
        "8": node("SetLatentNoiseMask", samples=link("7"), mask=link("mask")),
        "9": node("ConditioningCombine", conditioning_1=link("10"), conditioning_2=link("2")),
        "10": node("ConditioningSetAreaPercentage", conditioning=link("2"), **area),
    }
    (shown,) = session.execute(whole).ui["5"]["calibration"]
    assert (shown["prompts"], shown["file"]) == (12, "Größe_ a_b.safetensors")
    whole["mask"] = node("GivenMASK", key=bench.value(torch.full((1, 64, 64), 0.9)))
    session.execute(whole)
    with pack("calibration.store").Store.at(store) as opened:
        assert [one.prompts for one in opened.contents()] == [12, 12], "another mask makes other pictures"


# --------------------------------------------------------------------------------------------------- other families


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux", "qwen_image", *VIDEO])
def test_todays_families_are_calibrated(
    family: str, session: HostSession, pack: Any, store: Path, planners: Path
) -> None:
    del session
    result = calibrate_family(pack, family, 4)
    planner = pack("predictor.planner_file").load_planner(planners / result.name)
    assert planner.grid == (1, 2, 3, 4)
    assert planner.metrics == ("l_snr", "d_sim"), "without a CLIP_VISION the meaning is not measured"
    facts = planner.provenance["calibration"]["facts"]
    carried = set(make_tiny(family).positive[0][1]) - {"pooled_output", "attention_mask"}
    assert ("extras" in facts) == bool(carried)


def test_pictures_of_another_vae_are_not_taken_for_measured(session: HostSession, pack: Any, loaded: Any) -> None:
    """A finetuned VAE has the class of its parent; in another precision it is the same."""
    del session
    network, other = torch.nn.Conv2d(4, 3, 3), torch.nn.Conv2d(4, 3, 3)

    def facts(first_stage_model: torch.nn.Module) -> Any:
        vae = copy.copy(loaded.vae)
        vae.first_stage_model = first_stage_model
        given = (loaded.model, loaded.clip, vae, loaded.encode(""), "euler", "karras", 3.0)
        with torch.inference_mode():
            return pack("calibration.host_renderer").Graph.connected(*given, width=64, height=64).facts()

    assert facts(other) != facts(network) == facts(copy.deepcopy(network).bfloat16())


def test_extras_of_the_graph_are_laid_on_every_prompt(session: HostSession, pack: Any) -> None:
    del session
    tiny = make_tiny("flux")
    renderer = pack("calibration.host_renderer")
    ((tokens, own),) = tiny.positive
    positive = [[tokens, {**own, "attention_mask": torch.ones(1, 3)}], [tokens, {"guidance": 9.0}]]
    with torch.inference_mode():
        graph = renderer.Graph.connected(
            tiny.model, TinyClip(tiny), TinyVae(), tiny.negative, "euler", "simple", 1.0, positive=positive
        )
        made = renderer.HostRenderer(graph, None, (), lambda steps, model: model)
        ((_, extra),) = made.conditioning("a text of its own")
    assert extra["guidance"] == 3.5
    assert "attention_mask" not in extra, "it is of another text"
    assert not torch.equal(extra["pooled_output"], tiny.positive[0][1]["pooled_output"]), "the text's own stays"


# ------------------------------------------------------------------------------------------------------- wrong inputs


@pytest.mark.one_host
def test_a_render_of_no_numbers_is_set_aside_and_all_of_them_stop_the_job(
    session: HostSession, pack: Any, store: Path, planners: Path
) -> None:
    del session

    class Broken(TinyVae):
        def decode(self, samples: torch.Tensor) -> torch.Tensor:
            return super().decode(samples) * torch.nan

    class Black(TinyVae):
        def decode(self, samples: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(super().decode(samples))

    class Full(TinyVae):
        def decode(self, samples: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 byte")

    for vae, said in ((Broken(), "no numbers"), (Black(), "one colour"), (Full(), "out of memory")):
        with pytest.raises(pack("calibration.job").CalibrationError, match=said):
            calibrate_family(pack, "sd15", 4, vae=vae)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": "file in the input folder", "prompt_text": "nothing_there.txt"}, "nothing_there"),
        ({"prompts": "file in the input folder", "prompt_text": "../../secret.txt"}, "secret"),
        ({"prompt_text": "  \n# only a remark\n"}, "no prompt"),
        ({"prompt_text": "one\ntwo\nthree"}, "9"),
        ({"max_steps": 1}, "max_steps"),
        ({"name": "///"}, "name"),
    ],
)
def test_wrong_inputs_are_named(
    session: HostSession,
    store: Path,
    planners: Path,
    foreign: str,
    changes: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(HostRunError, match=said):
        session.execute(graph(foreign, **changes))


def test_prompts_come_from_files_and_from_pictures(session: HostSession, pack: Any) -> None:
    job = pack("calibration.host_job")
    folder = Path(sys.modules["folder_paths"].get_input_directory())
    (folder / "list.txt").write_text("first\n\n# remark\nsecond\n", encoding="utf-8")
    (folder / "list.json").write_text(json.dumps(["a", {"prompt": "b"}, 3]), encoding="utf-8")
    output = Path(sys.modules["folder_paths"].get_output_directory()) / "sub"
    output.mkdir(parents=True, exist_ok=True)
    for picture in output.parent.rglob("*.png"):  # of other tests
        picture.unlink()
    saved = {
        "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "a picture of a fox", "clip": ["9", 0]}},
        "2": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["1", 0], "guidance": 3.5}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["9", 0]}},
        "4": {"class_type": "KSampler", "inputs": {"positive": ["2", 0], "negative": ["3", 0]}},
    }
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", json.dumps(saved))
    Image.new("RGB", (8, 8)).save(output / "fox.png", pnginfo=info)
    Image.new("RGB", (8, 8)).save(output / "plain.png")
    read = lambda file: [p.text for p in job.read_prompts("file in the input folder", "", file)]  # noqa: E731
    assert read("list.txt") == ["first", "second"]
    assert read("list.json") == ["a", "b"]
    assert read("output") == ["a picture of a fox"], "the positive prompt, not the negative one"
    for name in ("a\0b", "\ud800", "x" * 5000, "..", ""):
        with pytest.raises(Exception) as caught:  # of the pack as the host loaded it
            read(name)
        assert caught.value.message.code == "calibrate_no_file"  # type: ignore[attr-defined]
