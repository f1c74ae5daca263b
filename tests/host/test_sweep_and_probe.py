"""Step Sweep and Perceptual Metric Probe in the genuine host."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from budgetfusion_nodes.core.curves import METRICS
from budgetfusion_nodes.metrics.backends import load_d_sim
from research.in_process_host import HostInterrupted, HostRunError, HostValidationError, interrupted_after
from tests.fixtures.said import code

COUNTS = (2, 3, 5)


@pytest.fixture
def sweep(bench: Any) -> Any:
    def make(**changes: Any) -> dict[str, Any]:
        return bench.decoded("BudgetFusion_StepSweep", **{"step_counts": "2 3, 5", **changes})

    return make


@pytest.fixture
def probe(make_node: Any) -> Any:
    def make(**inputs: Any) -> dict[str, Any]:
        chosen = {"step_counts": "", "d_sim_backend": "haarpsi", **inputs}
        return make_node("BudgetFusion_PerceptualMetricProbe", **chosen)

    return make


@pytest.fixture
def clip_vision() -> Any:
    """Stands in for a CLIP_VISION of a gigabyte; the host's class is tested with real weights in tests/metrics."""

    class ColourVision:
        model_type = "mean-colour"
        image_size = 8

        def get_sd(self) -> dict[str, torch.Tensor]:
            return {"cells": torch.tensor(8.0)}

        def encode_image(self, image: torch.Tensor, crop: bool = True) -> Any:
            del crop
            cells = torch.nn.functional.adaptive_avg_pool2d(image.movedim(-1, 1), 8)
            return type("Output", (), {"image_embeds": cells.flatten(1) + 0.1})()

    return ColourVision()


@pytest.fixture
def vision_name(clip_vision: Any, pack: Any) -> str:
    return pack("metrics.encoders").HostClipVisionEncoder(clip_vision).name


@pytest.fixture
def eyes(bench: Any, make_node: Any, clip_vision: Any) -> dict[str, Any]:
    return make_node("GivenCLIP_VISION", key=bench.value(clip_vision))


def test_each_count_is_the_stock_samplers_picture(bench: Any, sweep: Any, make_node: Any, to: Any) -> None:
    graph = {**bench.base(), "7": sweep(), "show": make_node("PreviewAny", source=to("7", 1))}
    for steps in COUNTS:
        graph[f"k{steps}"] = make_node(
            "KSampler",
            model=to("1"),
            seed=5,
            steps=steps,
            cfg=3.0,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            positive=to("2"),
            negative=to("3"),
            latent_image=to("4"),
            denoise=1.0,
        )
        graph[f"d{steps}"] = make_node("VAEDecode", samples=to(f"k{steps}"), vae=to("1", 2))
        graph[f"s{steps}"] = make_node("PreviewImage", images=to(f"d{steps}"))
    run = bench.run(graph)
    images, text, counts = run.outputs["7"]
    assert images.shape == (3, 64, 64, 3)
    assert (text, counts) == ("2 3 5", [2, 3, 5])
    for index, steps in enumerate(COUNTS):
        assert torch.equal(images[index], run.outputs[f"d{steps}"][0][0])
    assert not torch.equal(images[0], images[1])


def test_one_progress_bar_over_all_counts(bench: Any, sweep: Any) -> None:
    run = bench.run({**bench.base(), "7": sweep(seed=6)}, show="7")
    progress = [(d["value"], d["max"]) for event, d in run.messages if event == "progress" and d["node"] == "7"]
    values = [value for value, _ in progress]
    assert values == sorted(values)
    assert values[-1] == sum(COUNTS)
    assert len(set(values)) >= 3  # newer hosts leave some out when steps are quick
    assert {total for _, total in progress} == {sum(COUNTS)}


def test_cancel_stops_a_sweep(bench: Any, sweep: Any) -> None:
    with interrupted_after(3) as seen, pytest.raises(HostInterrupted):
        bench.run({**bench.base(), "7": sweep(seed=8, step_counts="2 40 50")}, show="7")
    assert len(seen) <= 5


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ("5 3", "must increase, but 3 follows 5"),
        ("4 4", "must increase"),
        ("4", "at least two"),
        ("", "at least two"),
        ("2 many", "'many' is not a whole number"),
        ("0 5", "from 1 to"),
    ],
)
def test_bad_grid_is_refused_before_anything_is_rendered(bench: Any, sweep: Any, counts: str, message: str) -> None:
    with pytest.raises(HostValidationError, match=message):
        bench.run({**bench.base(), "7": sweep(step_counts=counts)}, show="7")


def test_bad_grid_from_another_node_is_named_too(bench: Any, sweep: Any, make_node: Any, to: Any) -> None:
    def linked(text: str) -> dict[str, Any]:
        return {**bench.base(), "6": make_node("GivenSTRING", key=bench.value(text)), "7": sweep(step_counts=to("6"))}

    assert bench.run(linked("2 3"), show="7").outputs["7"][2] == [2, 3]
    with pytest.raises(HostRunError, match="must increase, but 3 follows 5"):
        bench.run(linked("5 3"), show="7")


@pytest.mark.parametrize("sampler_name", ["dpm_adaptive", "euler_ancestral"])
def test_sampler_whose_image_does_not_settle_is_refused(bench: Any, sweep: Any, sampler_name: str) -> None:
    with pytest.raises(HostValidationError, match=f"{sampler_name}.*[Cc]hoose dpmpp_2m"):
        bench.run({**bench.base(), "7": sweep(sampler_name=sampler_name)}, show="7")


def test_a_batch_is_measured_picture_by_picture(bench: Any, sweep: Any, probe: Any, eyes: Any, to: Any) -> None:
    graph = {
        **bench.base(batch=2),
        "7": sweep(),
        "8": probe(images=to("7"), step_counts=to("7", 1), clip_vision=to("9")),
        "9": eyes,
    }
    run = bench.run(graph)
    images = run.outputs["7"][0]
    assert images.shape[0] == 2 * len(COUNTS)
    (shown,) = run.ui["8"]["probe"]
    assert (shown["steps"], shown["frames"]) == (list(COUNTS), 2)
    assert "mean over 2 frames" in run.outputs["8"][5]
    measured = load_d_sim("haarpsi").similarity(images.movedim(-1, 1), images[-2:].repeat(3, 1, 1, 1).movedim(-1, 1))
    assert shown["d_sim"] == pytest.approx((1 - measured).reshape(3, 2).mean(1).tolist(), abs=1e-5)
    assert shown["d_sim"][-1] == pytest.approx(0.0, abs=1e-5)


class FilmVae:
    """Decodes [1, 3, F, H, W] in [-1, 1] as a video VAE does: [1, F, H, W, 3]."""

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        return (samples.movedim(1, -1) / 2 + 0.5).clamp(0.0, 1.0)


def test_a_video_is_measured_frame_by_frame(
    bench: Any, sweep: Any, probe: Any, eyes: Any, make_node: Any, to: Any, loaded: Any
) -> None:
    """A denoiser that takes any number of frames: the one of N(0.3, 1) data, whose picture is known."""
    model = loaded.model.clone()

    def evaluate(apply_model: Any, call: dict[str, Any]) -> torch.Tensor:
        del apply_model
        sigma = call["timestep"].reshape(-1, 1, 1, 1, 1)
        return (0.3 * sigma**2 + call["input"]) / (sigma**2 + 1.0)

    model.set_model_unet_function_wrapper(evaluate)
    video = {"samples": torch.zeros(1, 3, 9, 16, 16)}
    graph = {
        **bench.base(),
        "m": make_node("GivenMODEL", key=bench.value(model)),
        "v": make_node("GivenVAE", key=bench.value(FilmVae())),
        "l": make_node("GivenLATENT", key=bench.value(video)),
        "7": sweep(model=to("m"), vae=to("v"), latent_image=to("l"), scheduler="normal"),
        "8": probe(images=to("7"), step_counts=to("7", 1), clip_vision=to("9")),
        "9": eyes,
    }
    run = bench.run(graph)
    assert run.outputs["7"][0].shape == (9 * len(COUNTS), 16, 16, 3)
    (shown,) = run.ui["8"]["probe"]
    assert (shown["steps"], shown["frames"]) == (list(COUNTS), 9)
    assert shown["l_snr"][-1] == 0.0
    assert max(shown["d_sim"]) > 0.0


@pytest.mark.parametrize("shape", [(1, 64, 256), (1, 8, 4096, 1, 2, 2)])
def test_a_latent_of_no_pictures_is_refused_before_rendering(
    bench: Any, sweep: Any, make_node: Any, to: Any, shape: tuple[int, ...]
) -> None:
    graph = {**bench.base(), "l": make_node("GivenLATENT", key=bench.value({"samples": torch.zeros(shape)}))}
    with interrupted_after(1) as reports, pytest.raises(HostRunError, match="does not become pictures"):
        bench.run({**graph, "7": sweep(latent_image=to("l"))}, show="7")
    assert not reports


def test_an_sde_sampler_is_swept_where_its_noise_is_one_path(bench: Any, sweep: Any) -> None:
    run = bench.run({**bench.base(), "7": sweep(sampler_name="dpmpp_2m_sde")}, show="7")
    assert run.outputs["7"][0].shape[0] == len(COUNTS)
    with pytest.raises(HostRunError, match="another noise path"):
        bench.run({**bench.base(), "7": sweep(sampler_name="dpmpp_2m_sde", scheduler="ddim_uniform")}, show="7")


def test_sweep_into_probe(bench: Any, sweep: Any, probe: Any, eyes: Any, to: Any) -> None:
    graph = {
        **bench.base(),
        "7": sweep(),
        "8": probe(images=to("7"), step_counts=to("7", 1), clip_vision=to("9")),
        "9": eyes,
    }
    run = bench.run(graph)
    curves, l_snr, d_sim, i_clip, plot, text = run.outputs["8"]
    (shown,) = run.ui["8"]["probe"]
    assert json.loads(curves) == shown
    assert shown["steps"] == [2, 3, 5]
    assert (shown["l_snr"][0], shown["d_sim"][0], shown["i_clip"][0]) == (l_snr, d_sim, i_clip)
    for metric in METRICS:
        values = shown[metric]
        assert values[-1] == pytest.approx(0.0, abs=1e-4), "the reference is the last image"
        assert all(value >= 0 and math.isfinite(value) for value in values)
        assert values[0] > 0
    assert shown["quality"] is None
    assert shown["backends"]["d_sim"] == "haarpsi"
    assert shown["backends"]["i_clip"].startswith("clip_vision:mean-colour-8#")
    assert plot.shape == (1, 480, 960, 3)
    assert 0.0 <= plot.min() < plot.max() <= 1.0
    assert text.splitlines()[0].split() == ["steps", "L-SNR", "dB", "D-SIM", "I-CLIP"]
    assert len(run.ui["8"]["images"]) == 1


def test_probe_of_a_plan_measures_quality_on_its_scale(
    bench: Any, sweep: Any, probe: Any, eyes: Any, to: Any, save_variant: Any, setting: Any, vision_name: str
) -> None:
    backends = {"l_snr": "l_snr:laplacian-v2", "d_sim": "haarpsi", "i_clip": vision_name}
    own = replace(setting, cfg=4.0)
    save_variant("measured.safetensors", name="measured", setting=own, backends=backends)
    graph = {
        **bench.base(),
        "6": bench.planner(cfg=4.0),
        "7": sweep(),
        "8": probe(images=to("7"), step_counts=to("7", 1), clip_vision=to("9"), plan=to("6")),
        "9": eyes,
    }
    run = bench.run(graph)
    assert run.outputs["6"][0].planner == "measured"
    (shown,) = run.ui["8"]["probe"]
    scale = {"l_snr": 6.0, "d_sim": 0.5, "i_clip": 0.3}
    for i, value in enumerate(shown["quality"]):
        worst = max(shown[metric][i] / scale[metric] for metric in METRICS)
        assert value == pytest.approx(min(1.0, max(0.0, 1.0 - worst)))
    assert "quality" in run.ui["8"]["text"][0]
    assert [note["code"] for note in shown["notes"]] == ["remembered", "prediction_error"]


def test_a_sweep_along_a_nested_plan_renders_its_beginning_once_and_can_be_compared_with_it(
    bench: Any,
    sweep: Any,
    probe: Any,
    eyes: Any,
    make_node: Any,
    to: Any,
    save_variant: Any,
    setting: Any,
    pack: Any,
    vision_name: str,
    loaded: Any,
) -> None:
    pack("host.prefix_cache").DRAFTS.clear()
    backends = {"l_snr": "l_snr:laplacian-v2", "d_sim": "haarpsi", "i_clip": vision_name}
    nested = replace(setting, cfg=7.0, schedule="nested 4@1.0")
    save_variant("nested.safetensors", name="nested", setting=nested, backends=backends)
    calls: list[int] = []
    model = loaded.model.clone()

    def count(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return executor(*args, **kwargs)

    kinds = sys.modules["comfy.patcher_extension"].WrappersMP
    model.add_wrapper_with_key(kinds.APPLY_MODEL, "budgetfusion_count", count)

    def measured(**plan: Any) -> Any:
        counts = {"step_counts": "3 6 8", "cfg": 7.0}
        graph = {
            **bench.base(),
            "m": make_node("GivenMODEL", key=bench.value(model)),
            "6": bench.planner(cfg=7.0),
            "7": sweep(model=to("m"), **counts, **plan),
            "8": probe(images=to("7"), step_counts=to("7", 1), clip_vision=to("9"), plan=to("6")),
            "9": eyes,
        }
        return bench.run(graph)

    run = measured(plan=to("6"))
    assert run.outputs["6"][0].prefix_steps == 4
    assert len(calls) == 3 + 6 + (8 - 5), "the prefix and the evaluation after it are those of 6 steps"
    (shown,) = run.ui["8"]["probe"]
    assert len(shown["quality"]) == 3 and "prediction_error" in [code(note) for note in shown["notes"]]
    whole = bench.adaptive(min_steps=8, max_steps=8, cfg=7.0)
    alone = bench.run({**bench.base(), "5": whole, "d": make_node("VAEDecode", samples=to("5"), vae=to("1", 2))}, "d")
    assert torch.equal(run.outputs["7"][0][2], alone.outputs["d"][0][0])
    (other,) = measured().ui["8"]["probe"]
    assert other["quality"] is None and other["l_snr"] != shown["l_snr"]
    (note,) = [note for note in other["notes"] if code(note) != "remembered"]
    assert note["code"] == "probe_schedule", "the stock sweep's counts are other pictures"


def test_auto_measures_as_the_plan_was_made(
    bench: Any, sweep: Any, probe: Any, eyes: Any, to: Any, save_variant: Any, setting: Any, vision_name: str
) -> None:
    own = replace(setting, cfg=5.0)
    for name, d_sim in (("shapes", load_d_sim("tiny_scenes").name), ("elsewhere", "lpips:not-here")):
        backends = {"l_snr": "l_snr:laplacian-v2", "d_sim": d_sim, "i_clip": vision_name}
        path = save_variant(f"{name}.safetensors", name=name, setting=own, backends=backends)
        plan, counts = {"6": bench.planner(cfg=5.0, planner=path.name)}, to("7", 1)
        chosen = {"images": to("7"), "step_counts": counts, "d_sim_backend": "auto", "clip_vision": to("9")}
        graph = {**bench.base(), **plan, "7": sweep(), "9": eyes, "8": probe(**chosen, plan=to("6"))}
        (shown,) = bench.run(graph).ui["8"]["probe"]
        if name == "shapes":
            assert shown["backends"]["d_sim"] == d_sim
            assert len(shown["quality"]) == len(shown["steps"])
        else:
            assert shown["quality"] is None
            (note,) = [note for note in shown["notes"] if note["code"] != "remembered"]
            assert note["code"] == "backend_absent"
            assert (note["values"]["wanted"], note["values"]["there"]) == (d_sim, shown["backends"]["d_sim"])


def test_another_clip_vision_than_the_planners_is_named(
    bench: Any, sweep: Any, probe: Any, eyes: Any, to: Any, save_variant: Any, setting: Any, vision_name: str
) -> None:
    wanted = "clip_vision:ViT-H-14-224#00000000"
    backends = {"l_snr": "l_snr:laplacian-v2", "d_sim": "haarpsi", "i_clip": wanted}
    save_variant("other_eyes.safetensors", name="other_eyes", setting=replace(setting, cfg=6.0), backends=backends)
    graph = {
        **bench.base(),
        "6": bench.planner(cfg=6.0),
        "7": sweep(),
        "8": probe(images=to("7"), step_counts=to("7", 1), clip_vision=to("9"), plan=to("6")),
        "9": eyes,
    }
    run = bench.run(graph)
    (shown,) = run.ui["8"]["probe"]
    assert shown["quality"] is None
    (note,) = [note for note in shown["notes"] if note["code"] != "remembered"]
    assert note == {
        "code": "backend_clip_vision",
        "values": {"metric": "i_clip", "wanted": wanted, "there": vision_name},
    }
    assert wanted in run.ui["8"]["text"][0]
    assert vision_name in run.ui["8"]["text"][0]


def test_quality_is_withheld_where_backends_differ(bench: Any, sweep: Any, probe: Any, eyes: Any, to: Any) -> None:
    graph = {
        **bench.base(),
        "6": bench.planner(),
        "7": sweep(),
        "8": probe(images=to("7"), step_counts=to("7", 1), clip_vision=to("9"), plan=to("6")),
        "9": eyes,
    }
    run = bench.run(graph)
    (shown,) = run.ui["8"]["probe"]
    assert shown["quality"] is None
    withheld = [note for note in shown["notes"] if note["code"] != "remembered"]
    assert {note["code"] for note in withheld} == {"backend_version"}
    assert {note["values"]["wanted"] for note in withheld} == {"untold"}


GREY = torch.full((1, 64, 64, 3), 0.5)


@pytest.mark.parametrize(
    ("images", "reference", "counts", "message"),
    [
        (torch.full((2, 64, 64, 3), float("nan")), None, "", "not numbers"),
        (torch.zeros(2, 8, 8, 3), None, "", "8 x 8 pixels is too small"),
        (torch.zeros(2, 64, 64, 3), torch.zeros(1, 32, 64, 3), "", "Compare images of one size"),
        (torch.zeros(0, 64, 64, 3), None, "", "batch is empty"),
        (torch.zeros(1, 64, 64, 3), None, "", "reference is not connected"),
        (torch.zeros(2, 64, 64, 3), None, "2 3 5", "names 3 counts, but images holds 2"),
        (torch.zeros(3, 64, 64, 3), None, "5 3 2", "must increase"),
        (torch.zeros(2, 64, 64, 4), None, "", "3 colour channels"),
        (torch.zeros(3, 64, 64, 3), torch.zeros(2, 64, 64, 3), "", "reference: expected 1 image"),
        (torch.full((2, 64, 64, 3), 200.0), None, "", "Divide 8-bit values by 255"),
    ],
    ids=["NaN", "too small", "sizes", "empty", "no reference", "count", "grid", "alpha", "references", "range"],
)
def test_images_that_cannot_be_measured(
    bench: Any, probe: Any, eyes: Any, make_node: Any, to: Any, images: Any, reference: Any, counts: str, message: str
) -> None:
    graph = {"7": make_node("GivenIMAGE", key=bench.value(images)), "9": eyes}
    inputs = {"images": to("7"), "clip_vision": to("9"), "step_counts": counts}
    if reference is not None:
        graph["6"] = make_node("GivenIMAGE", key=bench.value(reference))
        inputs["reference"] = to("6")
    with pytest.raises(HostRunError, match=message):
        bench.run({**graph, "8": probe(**inputs)})


def test_connected_reference(bench: Any, probe: Any, eyes: Any, make_node: Any, to: Any) -> None:
    torch.manual_seed(0)
    picture = torch.rand(1, 64, 64, 3)
    graph = {
        "6": make_node("GivenIMAGE", key=bench.value(picture)),
        "7": make_node("GivenIMAGE", key=bench.value(torch.cat([picture, GREY]))),
        "8": probe(images=to("7"), reference=to("6"), clip_vision=to("9")),
        "9": eyes,
    }
    run = bench.run(graph)
    (shown,) = run.ui["8"]["probe"]
    assert (code(shown["reference"]), shown["counted"], shown["steps"]) == ("reference_given", False, [1, 2])
    assert run.outputs["8"][1:4] == [pytest.approx(0.0, abs=1e-4)] * 3
    assert all(shown[metric][1] > 0 for metric in METRICS)


def test_backend_whose_weights_are_missing_is_an_error(
    bench: Any, probe: Any, eyes: Any, make_node: Any, to: Any, monkeypatch: Any, tmp_path: Any, pack: Any
) -> None:
    monkeypatch.setenv("BUDGETFUSION_DREAMSIM_DIR", str(tmp_path))
    monkeypatch.setattr(pack("metrics.d_sim_dreamsim"), "dreamsim_folders", lambda: (tmp_path,))
    given = make_node("GivenIMAGE", key=bench.value(torch.zeros(2, 64, 64, 3)))
    graph = {"7": given, "9": eyes, "8": probe(images=to("7"), clip_vision=to("9"), d_sim_backend="dreamsim")}
    with pytest.raises(HostRunError, match="dreamsim"):
        bench.run(graph)
