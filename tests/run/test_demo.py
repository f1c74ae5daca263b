"""The demo's own side: prompts, graph, report and contact sheet. `run.py demo` itself does it with genuine renders."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont

from budgetfusion_nodes.tiny_scenes.captions import describe, vocabulary, words
from budgetfusion_nodes.tiny_scenes.scenes import is_held_out, sample_scenes
from launcher.layout import ROOT
from research import cli as research
from research.demo import __main__ as demo
from research.demo import graph as graphs
from research.demo import prompts as lists
from research.demo.client import Finished
from research.demo.errors import DemoError
from research.demo.report import Report, Row
from research.demo.sheet import PAIR_WIDTH, SIDE, Pair, draw_sheet, wrap
from research.shipped_models import MODELS
from research.sweeps import prompts as study_prompts
from research.sweeps.prompts import PromptList, StudyPrompt

ISSUE_KEYS = {"host_version", "target_steps", "prompts", "mean_steps", "saved_steps_pct", "saved_seconds_pct"}
ISSUE_KEYS |= {"mean_steps_stock"}
SETTING_KEYS = {"model", "sampler_name", "scheduler", "cfg"}
ISSUE_PROMPT_KEYS = {
    *("prompt", "seed", "steps", "prefix_steps", "steps_stock", "quality_predicted", "quality_measured", "set_by"),
    *("seconds", "seconds_target"),
}


def a_row(prompt: str = "a plain red background", **changes: Any) -> Row:
    return replace(Row(prompt, 1, 10, 0, 17, 0.95, 0.93, "d_sim", 0.5, 2.0), **changes)


def a_receipt(steps: int, prefix_steps: int, replayed: int) -> dict[str, Any]:
    return {"steps": steps, "prefix_steps": prefix_steps, "nfe": steps, "replayed": replayed, "seconds_per_step": 0.1}


# ---------------------------------------------------------------------------------------------------------- prompts


def test_the_list_goes_from_trivial_to_busy_in_words_the_model_knows() -> None:
    assert len(lists.TRIVIAL_TO_BUSY) >= 6
    known = set(vocabulary())
    for prompt in lists.TRIVIAL_TO_BUSY:
        assert set(words(prompt)) <= known, set(words(prompt)) - known
    lengths = [len(words(prompt)) for prompt in lists.TRIVIAL_TO_BUSY]
    assert lengths[0] < lengths[len(lengths) // 2] < lengths[-1]


def test_held_out_captions_are_of_scenes_that_nothing_has_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"source": {"grammar": "tiny_scenes", "seed": 5}}]}))
    (tmp_path / "b.json").write_text("no json")
    drawn = sample_scenes(70, lists.HELD_OUT_SEED, held_out=True)
    seeds: list[int] = []

    def prompts(seed: int, _: object) -> PromptList:
        """As if the first scene drawn here were one that seed 5 was calibrated on."""
        seeds.append(seed)
        return PromptList((StudyPrompt("", "calibration", (1,), drawn[0].key),) if seed == 5 else (), {})

    monkeypatch.setattr(study_prompts, "tiny_scenes_prompts", prompts)
    captions = lists.held_out(60, tmp_path)
    assert sorted(seeds) == [1, 5]
    wording = np.random.default_rng(lists.HELD_OUT_SEED)
    assert captions == tuple(describe(scene, wording) for scene in drawn[1:61])
    assert all(is_held_out(scene) for scene in drawn) and len(set(captions)) == 60


def test_the_counts_of_a_planners_prompt_list_decide_its_calibration_scenes(tmp_path: Path) -> None:
    counts = {"train": 3, "calibration": 7, "test": 11}
    source = {"grammar": "tiny_scenes", "seed": 9, "prompts": counts}
    (tmp_path / "planner.json").write_text(json.dumps({"data": {"source": source}}))
    made = study_prompts.tiny_scenes_prompts(9, counts, {"train": 1, "calibration": 2, "test": 1}).prompts
    own = {prompt.key for prompt in made if prompt.split == "calibration"}
    assert len(own) == 7
    assert lists.calibrated_scenes(tmp_path.glob("*.json")) == own
    (tmp_path / "nothing.json").write_text("{}")
    usual = lists.calibrated_scenes([tmp_path / "nothing.json"])
    assert len(usual) == study_prompts.COUNTS["calibration"]
    assert lists.calibrated_scenes(tmp_path.glob("*.json")) == own | usual


def test_scenes_that_a_caption_list_left_out_were_not_calibrated_on(tmp_path: Path) -> None:
    """Else a benchmark would leave out prompts that its planners were kept away from."""
    counts = {"train": 0, "calibration": 0, "test": 10}
    avoided = study_prompts.tiny_scenes_prompts(13, counts)
    avoided.save(tmp_path / "avoided.json")
    options = [
        "captions",
        "--out",
        str(tmp_path / "a.txt"),
        "--count",
        "20",
        "--not-in",
        str(tmp_path / "avoided.json"),
    ]
    assert research.main(options) == 0
    source = json.loads((tmp_path / "a.json").read_text())
    known = study_prompts.calibration_scenes(source)
    drawn = study_prompts.tiny_scenes_prompts(source["seed"], source["prompts"]).prompts
    written = (tmp_path / "a.txt").read_text().splitlines()
    assert {p.key for p in drawn if p.text in written} <= known
    assert 0 < len(known) < len(drawn) and not known & {p.key for p in avoided.prompts}


def test_warm_up_has_a_seed_that_no_prompt_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else the host takes a prompt that equals the warm-up's from its cache, and no receipt is shown."""
    seeds: list[int] = []

    async def warm_up(_client: object, _base: object, seed: int, _quality: float) -> str:
        seeds.append(seed)
        raise DemoError("enough")

    monkeypatch.setattr(demo, "_warm_up", warm_up)
    monkeypatch.setattr(demo, "Client", lambda _: contextlib.nullcontext())
    command = ["--server", "", "--out", str(tmp_path), "--seed", "5", "--prompt", "a", "--prompt", "b"]
    assert demo.main(command) == 1
    assert len(seeds) == 1 and seeds[0] not in (5, 6)


def test_own_prompts_come_before_held_out_and_the_list() -> None:
    assert demo.chosen_prompts(["mine"], 0) == ("mine",)
    assert len(demo.chosen_prompts([], 3)) == 3
    assert demo.chosen_prompts([], 0) == lists.TRIVIAL_TO_BUSY


# ------------------------------------------------------------------------------------------------------------ graph


def test_the_full_step_render_differs_from_the_adaptive_one_in_nothing_but_steps() -> None:
    made = graphs.build(graphs.load_base(), "a prompt", 42, 0.8)
    adaptive, full = (made.nodes[name]["inputs"] for name in made.samplers)
    target = made.target_steps
    limits = {"quality": 0.8, "min_steps": target, "max_steps": target}
    assert full == {**{name: adaptive[name] for name in full if name not in limits}, **limits}
    assert adaptive["seed"] == 42 and made.nodes[made.planner]["inputs"]["quality"] == 0.8
    assert made.nodes[made.full]["class_type"] == graphs.ADAPTIVE
    planned, stock = (made.nodes[name]["inputs"] for name in (made.planner, made.stock))
    assert stock == {**planned, "schedule": "stock"}
    assert made.target_steps == made.nodes[made.planner]["inputs"]["max_steps"] == 50
    assert adaptive["plan"] == [made.planner, 0]


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_is_loaded_and_sampled_as_it_is_shipped(name: str) -> None:
    model = MODELS[name]
    made = graphs.build(graphs.load_base(model=model), "a prompt", 1, 0.9)
    loaders = {
        n["class_type"]: n["inputs"] for n in made.nodes.values() if n["class_type"].endswith(("Loader", "Simple"))
    }
    assert loaders == model.loaders
    for node in (made.planner, made.adaptive, made.full):
        inputs = made.nodes[node]["inputs"]
        assert {key: inputs[key] for key in model.setting} == model.setting
    for node in made.nodes.values():
        for value in node["inputs"].values():
            assert not isinstance(value, list) or value[0] in made.nodes
    report = Report("0.30.0", 50, (a_row(),), model)
    assert report.to_dict()["model"] == model.title
    assert model.describe() in report.summary(0.9)


def test_the_prompt_reaches_the_positive_text_alone_and_the_base_stays_as_it_was() -> None:
    base = graphs.load_base()
    before = json.dumps(base)
    made = graphs.build(base, "a prompt", 1, 0.9)
    texts = {name: n["inputs"]["text"] for name, n in made.nodes.items() if n["class_type"] == "CLIPTextEncode"}
    positive = made.nodes[made.adaptive]["inputs"]["positive"][0]
    assert texts[positive] == "a prompt" and list(texts.values()).count("a prompt") == 1
    assert json.dumps(base) == before


def test_every_link_leads_to_a_node() -> None:
    made = graphs.build(graphs.load_base(), "a prompt", 1, 0.9)
    for node in made.nodes.values():
        for value in node["inputs"].values():
            if isinstance(value, list):
                assert value[0] in made.nodes
    probe = made.nodes[made.probe]["inputs"]
    assert made.nodes[probe["images"][0]]["inputs"]["samples"][0] == made.adaptive
    assert made.nodes[probe["reference"][0]]["inputs"]["samples"][0] == made.full
    assert probe["plan"] == [made.planner, 0]


def test_a_missing_or_altered_example_graph_is_named(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match=r"cannot be read .* Restore it"):
        graphs.load_base(tmp_path / "none.json")
    base = graphs.load_base()
    del base[next(name for name, node in base.items() if node["class_type"] == graphs.PLANNER)]
    with pytest.raises(DemoError, match="holds 0 nodes of type BudgetFusion_BudgetPlanner"):
        graphs.build(base, "a", 1, 0.9)


# ----------------------------------------------------------------------------------------------------------- report


def test_the_report_has_exactly_the_promised_keys(tmp_path: Path) -> None:
    report = Report("0.30.0", 50, (a_row(steps=10), a_row(steps=20, seconds=1.0)))
    report.save(tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text())
    assert set(saved) == ISSUE_KEYS | SETTING_KEYS
    assert set(saved["prompts"][0]) == ISSUE_PROMPT_KEYS
    assert saved["mean_steps"] == 15 and saved["saved_steps_pct"] == pytest.approx(70.0)
    assert saved["saved_seconds_pct"] == pytest.approx(100 * (1 - 1.5 / 4.0))


def test_what_was_not_measured_is_not_counted_as_reached() -> None:
    rows = (a_row(quality_measured=0.9), a_row(quality_measured=0.89), a_row(quality_measured=None))
    report = Report("0.30.0", 50, rows)
    assert report.reached(0.9) == (1, 2)
    assert "1 of 2 renders reached the wanted quality of 0.90" in report.summary(0.9)
    nothing = Report(
        "0.30.0", 50, (a_row(quality_measured=None, quality_predicted=None, steps=50, seconds_target=0.0),)
    )
    assert "No quality could be measured" in nothing.summary(0.9)
    assert nothing.saved_seconds_pct == 0.0


def test_a_row_is_what_the_nodes_showed() -> None:
    made = graphs.build(graphs.load_base(), "a prompt", 1, 0.9)
    ui = {
        made.planner: {"budget_plan": [{"quality_predicted": 0.94, "limited_by": "i_clip", "fallback": None}]},
        made.adaptive: {"receipt": [a_receipt(12, 5, replayed=0)]},
        made.full: {"receipt": [a_receipt(50, 5, replayed=10)]},
        made.stock: {"budget_plan": [{"steps": 18}]},
        made.probe: {"probe": [{"quality": [0.91]}]},
    }
    seconds = {made.planner: 0.25, made.adaptive: 1.0, made.full: 4.0}
    row = demo.to_row(made, Finished(ui, seconds), "a prompt", 7)
    assert row == Row(
        "a prompt", 7, 12, 5, 18, 0.94, 0.91, "i_clip", 1.25, 5.0
    )  # ten steps of .1 s came from the draft
    with pytest.raises(DemoError, match="showed no probe"):
        demo.to_row(made, Finished({**ui, made.probe: {}}, seconds), "a prompt", 7)


# ------------------------------------------------------------------------------------------------------------ sheet


@pytest.mark.parametrize("count", [1, 6, 8, 60])
def test_the_sheet_holds_every_pair(count: int) -> None:
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    rows = tuple(a_row() for _ in range(count))
    sheet = draw_sheet([Pair(red, blue, row) for row in rows], Report("0.30.0", 50, rows), 0.9)
    colours = {colour: number for number, colour in sheet.getcolors(1 << 24) or ()}
    assert colours[(255, 0, 0)] == colours[(0, 0, 255)] == count * SIDE * SIDE


def test_pictures_of_any_size_fit() -> None:
    rows = (a_row("word " * 80), a_row(""), a_row("x" * 300))
    sizes = ((512, 256), (30, 200), (192, 192))
    pairs = [Pair(Image.new("RGB", size), Image.new("RGBA", size), row) for size, row in zip(sizes, rows, strict=True)]
    assert draw_sheet(pairs, Report("0.30.0", 50, rows), 0.9).width >= PAIR_WIDTH


@pytest.mark.parametrize("text", ["one two three four five six seven", "a" * 200 + " b", "", "\U0001f600 emoji"])
def test_wrapped_lines_fit_and_lose_nothing(text: str) -> None:
    font = ImageFont.load_default(14)
    lines = wrap(text, font, 120)
    assert all(font.getlength(line) <= 120 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


# ----------------------------------------------------------------------------------------------------------- files


def test_an_output_folder_that_is_a_file_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("")
    assert demo.main(["--server", "http://127.0.0.1:9", "--out", str(tmp_path / "out")]) == 1
    assert "Choose another folder with --out" in capsys.readouterr().err


def test_only_pictures_of_an_earlier_demo_are_removed(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in ("01_adaptive.png", "12_full.png", "mine.png", "01_other.png"):
        (images / name).write_text("")
    demo._prepare_folder(tmp_path)
    assert sorted(path.name for path in images.iterdir()) == ["01_other.png", "mine.png"]


def test_the_demos_side_needs_neither_torch_nor_the_host() -> None:
    code = "import sys, research.demo.__main__; print(sorted({'torch', 'comfy', 'nodes'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
