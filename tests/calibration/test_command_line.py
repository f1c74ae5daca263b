"""The command line without a host: graphs, planner files, the store, exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from budgetfusion_nodes.calibration.planner_folder import file_name, put_planner
from budgetfusion_nodes.cli import main, parser
from budgetfusion_nodes.command_line import calibrate, comfyui
from budgetfusion_nodes.command_line.graphs import CALIBRATE, NODE, with_calibrate
from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.predictor.planner_file import load_planner, save_planner
from tests.calibration.stub import StubRenderer
from tests.calibration.test_job import run as run_job

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "workflows" / "api"


INFO: dict[str, Any] = {
    "CheckpointLoaderSimple": {"input": {"required": {"ckpt_name": [["a.safetensors"]]}}},
    "CLIPTextEncode": {"input": {"required": {"text": ["STRING", {}], "clip": ["CLIP"]}}},
    "EmptyLatentImage": {
        "input": {"required": {name: ["INT", {"default": 64}] for name in ("width", "height", "batch_size")}}
    },
    "KSampler": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"control_after_generate": True}],
                "steps": ["INT", {}],
                "cfg": ["FLOAT", {}],
                "sampler_name": [["euler", "dpmpp_2m"]],
                "scheduler": [["normal", "karras"]],
                "positive": ["CONDITIONING"],
                "negative": ["CONDITIONING"],
                "latent_image": ["LATENT"],
                "denoise": ["FLOAT", {}],
            }
        }
    },
    "VAEDecode": {"input": {"required": {"samples": ["LATENT"], "vae": ["VAE"]}}},
}
"""Of /object_info, what the stock graph below needs."""


def build(*arguments: str) -> tuple[dict[str, Any], str]:
    """Without a host: a graph in the page's format would ask for its definitions."""
    return calibrate.build(parser().parse_args(["calibrate", *arguments]), lambda: INFO)


# ---------------------------------------------------------------------------------------------------------- graphs


@pytest.mark.parametrize("name", ["hello_tiny_scenes", "adaptive_ksampler", "planner_sigmas_sampler_custom_advanced"])
def test_calibrate_takes_the_place_of_the_graphs_sampler(name: str) -> None:
    graph, node = build("--workflow", str(API / f"{name}.json"), "--steps", "30")
    inputs = graph[node]["inputs"]
    assert graph[node]["class_type"] == CALIBRATE
    assert inputs["max_steps"] == 30
    for link in ("model", "clip", "vae", "negative", "latent_image", "positive"):
        assert inputs[link][0] in graph, link
    kinds = [entry["class_type"] for entry in graph.values()]
    assert not any("Sampler" in kind and "Select" not in kind for kind in kinds), "nothing else is rendered"
    assert not any("SaveImage" in kind for kind in kinds)


def flow_graph() -> dict[str, Any]:
    """Split loaders, guidance, a basic guider: as today's templates are built."""
    node = lambda kind, **inputs: {"class_type": kind, "inputs": inputs}  # noqa: E731
    return {
        "1": node("UNETLoader", unet_name="flux.safetensors", weight_dtype="default"),
        "2": node("DualCLIPLoader", clip_name1="a", clip_name2="b", type="flux"),
        "3": node("VAELoader", vae_name="ae.safetensors"),
        "4": node("CLIPTextEncode", text="a fox", clip=["2", 0]),
        "5": node("FluxGuidance", conditioning=["4", 0], guidance=3.5),
        "6": node("BasicGuider", model=["1", 0], conditioning=["5", 0]),
        "7": node("KSamplerSelect", sampler_name="euler"),
        "8": node("BasicScheduler", model=["1", 0], scheduler="simple", steps=20, denoise=1.0),
        "9": node("EmptySD3LatentImage", width=1024, height=1024, batch_size=1),
        "10": node("RandomNoise", noise_seed=1),
        "11": node(
            "SamplerCustomAdvanced",
            noise=["10", 0],
            guider=["6", 0],
            sampler=["7", 0],
            sigmas=["8", 0],
            latent_image=["9", 0],
        ),
        "12": node("VAEDecode", samples=["11", 0], vae=["3", 0]),
        "13": node("SaveImage", images=["12", 0], filename_prefix="x"),
    }


def test_a_flow_graph_of_split_loaders_is_understood() -> None:
    graph, node = with_calibrate(flow_graph())
    inputs = graph[node]["inputs"]
    assert (inputs["model"], inputs["clip"], inputs["vae"]) == (["1", 0], ["2", 0], ["3", 0])
    assert inputs["positive"] == ["5", 0], "with its guidance"
    assert (inputs["sampler_name"], inputs["scheduler"], inputs["max_steps"], inputs["cfg"]) == (
        "euler",
        "simple",
        20,
        1.0,
    )
    assert set(graph) == {"1", "2", "3", "4", "5", "9", NODE}


def page_node(number: int, kind: str, values: list[Any], **links: int) -> dict[str, Any]:
    slots = [{"name": name, "type": name.upper(), "link": link} for name, link in links.items()]
    return {"id": number, "type": kind, "inputs": slots, "widgets_values": values, "outputs": [{"type": "*"}] * 3}


def test_a_saved_page_with_a_subgraph_is_read_as_its_export_would_be(tmp_path: Path) -> None:
    """The sampler lies in a subgraph; its seed has the page's extra value behind it, which the host never sees."""
    sampler = page_node(
        7, "KSampler", [1, "randomize", 24, 5.5, "dpmpp_2m", "karras", 1.0], model=1, positive=2, negative=3,
        latent_image=4,
    )  # fmt: skip
    names = ("model", "positive", "negative", "latent_image")
    inner = {
        "id": "sub",
        "nodes": [sampler],
        "links": [
            *([n, -10, n - 1, 7, n - 1, "*"] for n in (1, 2, 3, 4)),
            [5, 7, 0, -20, 0, "LATENT"],
        ],
        "inputs": [{"name": name, "linkIds": [n]} for n, name in enumerate(names, 1)],
        "outputs": [{"name": "LATENT", "linkIds": [5]}],
    }
    page = {
        "nodes": [
            page_node(1, "CheckpointLoaderSimple", ["a.safetensors"]),
            page_node(2, "CLIPTextEncode", ["a fox"], clip=1),
            page_node(3, "CLIPTextEncode", [""], clip=2),
            page_node(4, "EmptyLatentImage", [96, 64, 1]),
            page_node(5, "sub", [], model=3, positive=4, negative=5, latent_image=6),
            page_node(6, "VAEDecode", [], samples=7, vae=8),
        ],
        "links": [
            [1, 1, 1, 2, 0, "CLIP"],
            [2, 1, 1, 3, 0, "CLIP"],
            [3, 1, 0, 5, 0, "MODEL"],
            [4, 2, 0, 5, 1, "CONDITIONING"],
            [5, 3, 0, 5, 2, "CONDITIONING"],
            [6, 4, 0, 5, 3, "LATENT"],
            [7, 5, 0, 6, 0, "LATENT"],
            [8, 1, 2, 6, 1, "VAE"],
        ],
        "definitions": {"subgraphs": [inner]},
    }
    (tmp_path / "saved.json").write_text(json.dumps(page), encoding="utf-8")
    graph, node = build("--workflow", str(tmp_path / "saved.json"))
    inputs = graph[node]["inputs"]
    assert (inputs["max_steps"], inputs["cfg"], inputs["sampler_name"], inputs["scheduler"]) == (
        24,
        5.5,
        "dpmpp_2m",
        "karras",
    )
    assert (inputs["model"], inputs["clip"], inputs["vae"]) == (["1", 0], ["1", 1], ["1", 2])
    assert graph[inputs["latent_image"][0]]["inputs"] == {"width": 96, "height": 64, "batch_size": 1}


def test_an_own_calibrate_node_is_taken_as_it_is() -> None:
    graph, node = with_calibrate(flow_graph())
    graph["77"] = graph.pop(node)
    again, found = with_calibrate(graph)
    assert found == "77"
    assert again == graph


def test_graphs_that_say_too_little_are_refused(tmp_path: Path) -> None:
    without = flow_graph()
    del without["11"], without["12"], without["13"]
    with pytest.raises(InputError, match="0 samplers"):
        with_calibrate(without)
    undecoded = flow_graph()
    del undecoded["12"], undecoded["13"]
    with pytest.raises(InputError, match="VAE Decode"):
        with_calibrate(undecoded)
    for content in ("[1, 2]", "{", '{"1": 3}', '{"nodes": [3], "links": []}', '{"nodes": [{"id": 1}], "links": [[1]]}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(InputError, match=r"bad\.json"):
            build("--workflow", str(tmp_path / "bad.json"))


def test_a_checkpoint_and_own_prompts(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("one\n# no\ntwo\n")
    options = ["--sampler", "dpmpp_2m", "--cfg", "3", "--width", "64", "--prompts", str(tmp_path / "mine.txt")]
    graph, node = build("--checkpoint", "a.safetensors", *options, "--thoroughness", "standard", "--name", "x")
    inputs = graph[node]["inputs"]
    assert graph["1"]["inputs"]["ckpt_name"] == "a.safetensors"
    assert (inputs["prompt_text"], inputs["thoroughness"], inputs["width"]) == ("one\ntwo", "standard", 64)
    assert "schedule" not in inputs, "the node's own default"
    graph, node = build("--checkpoint", "a.safetensors", "--schedule", "nested 5@1.0")
    assert graph[node]["inputs"]["schedule"] == "nested 5@1.0"
    with pytest.raises(SystemExit) as wrong:
        parser().parse_args(["calibrate", "--checkpoint", "a", "--steps", "1"])
    assert wrong.value.code == 2


def test_the_comfyui_around_the_pack_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    host = tmp_path / "ComfyUI"
    (host / "comfy").mkdir(parents=True)
    (host / "main.py").write_text("")
    (host / "custom_nodes" / "budgetfusion").mkdir(parents=True)
    monkeypatch.setattr(comfyui, "PACK", host / "custom_nodes" / "budgetfusion")
    assert comfyui.find_comfyui().folder == host
    assert comfyui.find_comfyui(tmp_path / "base").planners == tmp_path / "base" / "models" / "budgetfusion"
    monkeypatch.setattr(comfyui, "PACK", tmp_path / "elsewhere")
    monkeypatch.setenv("PWD", str(tmp_path))
    with pytest.raises(comfyui.ServerError, match="COMFYUI_PATH"):
        comfyui.find_comfyui()
    monkeypatch.setenv("COMFYUI_PATH", str(host))
    assert comfyui.find_comfyui().folder == host


def test_a_server_that_is_not_there_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--checkpoint", "a", "--server", "http://127.0.0.1:9"]) == 1
    assert "127.0.0.1:9" in capsys.readouterr().err


def test_ray_refuses_what_one_comfyui_must_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Ray installed: the words come first."""
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").write_text("")
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    command = ["calibrate", "--checkpoint", "a", "--ray"]
    assert main([*command, "--server", "http://127.0.0.1:9"]) == 1
    assert "--server" in capsys.readouterr().err
    assert main([*command, "--thoroughness", "standard"]) == 1
    assert "--schedule stock" in capsys.readouterr().err
    for more in ([], ["--thoroughness", "standard", "--schedule", "stock"]):
        assert main([*command, *more]) == 1
        said = capsys.readouterr().err
        assert "requirements/ray.txt" in said
        assert ("along the stock schedule" in said) == (not more), "quick looks for none, and that is said"


# ------------------------------------------------------------------------------------------------------- planners


@pytest.fixture
def folder(tmp_path: Path, planner: Any) -> Path:
    made = tmp_path / "planners"
    put_planner(made, planner, "mine")
    return made


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main([*arguments, "--json"])
    printed = capsys.readouterr().out
    return code, json.loads(printed) if printed.strip() else None


def test_planners_are_listed_shown_and_given_away(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.safetensors").write_bytes(b"nothing")
    code, listed = output(capsys, "planners", "list", "--folder", str(folder))
    assert code == 0
    names = {row["file"]: row["error"] for row in listed}
    assert names["mine.safetensors"] == ""
    assert [row["file"] for row in listed if not row["shipped"]] == ["broken.safetensors", "mine.safetensors"]
    assert "broken.safetensors" in names["broken.safetensors"]
    code, shown = output(capsys, "planners", "show", "mine", "--folder", str(folder))
    assert shown["backends"]["d_sim"] == "haarpsi"
    given = tmp_path / "given.safetensors"
    assert main(["planners", "export", "mine", str(given), "--folder", str(folder)]) == 0
    other = tmp_path / "other"
    assert main(["planners", "import", str(given), "--folder", str(other)]) == 0
    assert load_planner(other / "given.safetensors").grid == tuple(shown["grid"])
    assert main(["planners", "forget", "given", "--folder", str(other)]) == 0
    assert list(other.iterdir()) == []
    assert main(["planners", "forget", "given", "--folder", str(other)]) == 1


def test_planners_in_folders_are_named_as_they_are_found(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine.safetensors").rename(folder / "moved.safetensors")
    (folder / "old").mkdir()
    (folder / "moved.safetensors").rename(folder / "old" / "mine.safetensors")
    where = ("--folder", str(folder))
    (name,) = [row["file"] for row in output(capsys, "planners", "list", *where)[1] if not row["shipped"]]
    assert output(capsys, "planners", "show", name, *where)[0] == 0
    assert main(["planners", "export", name, str(tmp_path / "none" / "x.safetensors"), *where]) == 1
    assert "none" in capsys.readouterr().err


def test_hostile_files_are_refused_with_the_reason(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = folder / "mine.safetensors"
    bad = {
        "pickle.safetensors": b"\x80\x04\x95nothing to load",
        "zip.safetensors": b"PK\x03\x04 a .pt file",
        "cut.safetensors": good.read_bytes()[:-500],
        "model.safetensors": (ROOT / "weights/image_encoder/tiny_scenes_clip.safetensors").read_bytes(),
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        assert main(["planners", "import", str(tmp_path / name), "--folder", str(tmp_path / "in")]) == 1
        assert name in capsys.readouterr().err
    assert not (tmp_path / "in").exists() or list((tmp_path / "in").iterdir()) == []
    code, rows = output(capsys, "planners", "verify", str(good), str(tmp_path / "cut.safetensors"))
    assert code == 1
    assert [row["ok"] for row in rows] == [True, False]
    for name in ("../mine", "/etc/passwd", "..\\mine"):
        assert main(["planners", "show", name, "--folder", str(folder / "inner")]) == 1


def test_import_replaces_only_when_told(folder: Path, tmp_path: Path, make_planner: Any) -> None:
    other = tmp_path / "mine.safetensors"
    save_planner(other, make_planner(networks=1))
    assert main(["planners", "import", str(other), "--folder", str(folder)]) == 1
    assert main(["planners", "import", str(other), "--folder", str(folder), "--replace"]) == 0
    assert (folder / "mine.safetensors").read_bytes() == other.read_bytes()


def test_another_settings_planner_is_never_written_over(folder: Path, planner: Any, make_planner: Any) -> None:
    from dataclasses import replace

    stamp = (folder / "mine.safetensors").stat().st_mtime_ns
    put_planner(folder, planner, "mine")
    assert (folder / "mine.safetensors").stat().st_mtime_ns == stamp, "the same planner leaves the file alone"
    other = replace(planner, setting=replace(planner.setting, cfg=9.0))
    assert put_planner(folder, other, "mine")[0] == "mine-2.safetensors"
    (folder / "mine-3.safetensors").write_bytes(b"damaged")
    third = replace(planner, setting=replace(planner.setting, cfg=7.0))
    assert put_planner(folder, third, "mine")[0] == "mine-4.safetensors"
    assert put_planner(folder, make_planner(networks=1), "mine")[0] == "mine.safetensors", "a better one replaces it"
    nested = replace(planner, setting=replace(planner.setting, schedule="nested 5@1.0"))
    assert [put_planner(folder, nested, "mine")[0] for _ in range(2)] == ["mine nested.safetensors"] * 2


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("my model", "my model.safetensors"),
        ("a/b\\c:d", "a_b_c_d.safetensors"),
        ("../../up", "up.safetensors"),
        ("con", "_con.safetensors"),
        ("Größe 42.safetensors", "Größe 42.safetensors"),
    ],
)
def test_names_become_file_names(name: str, file: str) -> None:
    assert file_name(name) == file


def test_a_name_of_nothing_is_refused() -> None:
    for name in ("", "///", " . "):
        with pytest.raises(InputError, match="name"):
            file_name(name)


# ---------------------------------------------------------------------------------------------------------- store


def test_the_store_is_shown_exported_imported_and_forgotten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_job(tmp_path, StubRenderer(30))
    store = str(tmp_path / "store.sqlite3")
    code, info = output(capsys, "store", "info", "--store", store)
    assert code == 0
    (setting,) = info["settings"]
    assert setting["prompts"] == 28
    assert setting["planners"][0]["file"] == "planner.safetensors"
    assert main(["store", "info", "--store", store]) == 0
    assert "28 prompts" in capsys.readouterr().out
    copy, other = str(tmp_path / "copy.sqlite3"), str(tmp_path / "other.sqlite3")
    assert output(capsys, "store", "export", copy, "--store", store)[0] == 0
    _, came = output(capsys, "store", "import", copy, "--store", other)
    assert came["measurements"] == setting["measurements"]
    assert output(capsys, "store", "import", copy, "--store", other)[1]["measurements"] == 0
    assert main(["store", "forget", "99", "--store", other]) == 1
    assert "99" in capsys.readouterr().err
    assert output(capsys, "store", "forget", str(setting["setting_id"]), "--store", other)[0] == 0
    assert output(capsys, "store", "info", "--store", other)[1]["settings"] == []


def test_a_store_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "info", "--store", str(tmp_path / "no.sqlite3")]) == 1
    assert "no.sqlite3" in capsys.readouterr().err
