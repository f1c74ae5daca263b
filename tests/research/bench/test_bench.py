"""The benchmark as a whole, on a synthetic sweep and without a host: parts, resuming, the report and its numbers."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.metrics.measure import Backends
from budgetfusion_nodes.predictor.fit import FitOptions, fit_planner
from budgetfusion_nodes.predictor.planner_file import save_planner
from budgetfusion_nodes.tiny_scenes.captions import MAX_TOKENS, words
from research import cli
from research.bench import bench as bench_module
from research.bench import gpu_profile
from research.bench import peers as peers_module
from research.bench.bench import BenchOptions, BenchRun, host_version
from research.bench.bench_report import markdown, report_folder, seed_warning, write
from research.bench.goals import goals
from research.bench.wording import number, share
from research.sweeps import commands
from research.sweeps.prompts import PromptList, StudyPrompt, busier_prompts, tiny_scenes_prompts
from research.sweeps.rendering import JUDGES, Sampling, file_digest
from research.sweeps.sweep import Merged, SweepSpec, save_merged, write_shard

QUICK = FitOptions(networks=1, epochs=4, patience=3)
DATA_PARTS = ("variance", "rules", "risk", "ablations", "gallery")


@pytest.fixture(scope="module")
def folder(make_dataset, tmp_path_factory) -> Path:
    """A finished sweep and a planner for it."""
    path = tmp_path_factory.mktemp("bench")
    (path / "sweep" / "shards").mkdir(parents=True)
    data = make_dataset(40, 30, 30)
    seeds = [tuple(int(s) for s in row if s >= 0) for row in data.seeds]
    listed = zip(data.prompts, data.split, seeds, strict=True)
    prompts = PromptList(tuple(StudyPrompt(p, s, n, f"plain/red/None/None|{p}") for p, s, n in listed), {})
    prompts.save(path / "sweep" / "prompts.json")
    (path / "model.safetensors").write_bytes(b"a model")
    digest = file_digest(path / "model.safetensors")
    spec = SweepSpec("model.safetensors", digest, prompts.digest(), Sampling(), data.grid)
    (path / "sweep" / "sweep.json").write_text(json.dumps(spec.to_dict()))
    judges = np.where(data.present[..., None, None], 0.5, np.nan) * np.ones((len(data.grid), len(JUDGES)))
    save_merged(Merged(data, judges.astype(np.float32)), path / "sweep")
    save_planner(path / "planner.safetensors", fit_planner(data, 0, name="mine", options=QUICK))
    return path


def options_for(folder: Path, **changes: Any) -> BenchOptions:
    made = BenchOptions(
        host=folder / "no host",
        checkpoint=folder / "model.safetensors",
        planner=folder / "planner.safetensors",
        work=folder / "work",
        out=folder / "docs",
        sweep=folder / "sweep",
        parts=DATA_PARTS,
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def run(folder: Path) -> BenchRun:
    made = BenchRun(options_for(folder))
    made.fit_options = QUICK  # takes the place of the cached property
    return made


@pytest.fixture(scope="module")
def parts(run: BenchRun) -> dict[str, Any]:
    return run.run()


def test_every_part_is_kept_and_not_computed_again(run: BenchRun, parts: dict[str, Any], folder: Path) -> None:
    assert tuple(parts) == ("variance", "rules", "risk", "ablations", "gallery")
    again = BenchRun(options_for(folder))
    for name in DATA_PARTS:
        setattr(again, f"part_{name}", lambda: pytest.fail("computed again"))
    assert again.run() == parts
    asked = BenchRun(options_for(folder, parts=("risk",), again=("risk",)))
    setattr(asked, "part_risk", lambda: {"new": True})  # noqa: B010
    found = asked.run()
    assert found["risk"]["new"] and found["rules"] == parts["rules"]
    asked._keep("risk", parts["risk"])


def test_other_inputs_are_another_run(run: BenchRun, folder: Path) -> None:
    assert BenchRun(options_for(folder, seed=2)).key() != run.key()
    assert BenchRun(options_for(folder, full=True)).key() != run.key()
    assert BenchRun(options_for(folder)).key() == run.key()


def test_parts_of_the_host_depend_on_it(folder: Path, tmp_path: Path) -> None:
    """Peers and profile are of one host, one model and so many prompts; the other parts are not."""

    def paths(**changes: Any) -> list[Path]:
        return [BenchRun(options_for(folder, **changes))._path(name) for name in ("peers", "profile", "rules")]

    first = paths(peer_prompts=5, host=tmp_path)
    assert first == paths(host=tmp_path)  # 5 is what the quick run takes
    (tmp_path / "comfyui_version.py").write_text('# made\n__version__ = "1.2"\n')
    assert host_version(tmp_path) == "1.2" and host_version(folder) is None
    second = paths(host=tmp_path)
    for other in (
        paths(peer_prompts=6, host=tmp_path),
        paths(host=folder),
        paths(host=tmp_path, checkpoint=folder / "planner.safetensors"),
    ):
        assert other[0] != second[0] and other[1] != second[1] and other[2] == second[2]


def test_peers_are_rendered_again_where_that_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    seen: list[list[str]] = []

    def run_prompts(bed: Any, chosen: Any, prompts: Any, kept: Path, *_: Any) -> list[Any]:
        seen.append(sorted(path.name for path in kept.glob("*")))
        kept.mkdir(parents=True, exist_ok=True)
        (kept / "0000.json").write_text("{}")
        return []

    monkeypatch.setattr(peers_module, "run_prompts", run_prompts)
    monkeypatch.setattr(peers_module, "summarise", lambda *_: {})
    for again in ((), (), ("peers",)):
        made = BenchRun(options_for(folder, parts=("peers",), again=again))
        made.bed = SimpleNamespace(usable=lambda listed: (listed, {}), limit_steps=100)  # type: ignore[assignment]
        made.part_peers()
    assert seen == [[], ["0000.json"], []]


def test_peers_need_the_planners_backends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planner's scale is in the units of its own backends. Refused before a host is started."""
    from types import SimpleNamespace

    made = BenchRun(options_for(folder))
    names = dict(made.planner.backends)
    monkeypatch.setattr(Backends, "from_values", lambda *_: SimpleNamespace(names=lambda: names))
    assert made._peer_backends().names() == names
    names = {**names, "d_sim": "another"}
    with pytest.raises(InputError, match="Name a planner of these"):
        _ = made.bed


def test_an_own_sweep_leaves_out_what_the_planner_was_calibrated_on(folder: Path) -> None:
    made = BenchRun(options_for(folder))
    counts = {"train": 5, "calibration": 4, "test": 6}
    prompts = tiny_scenes_prompts(3, counts)
    source = {"grammar": "tiny_scenes", "seed": 3, "prompts": counts}
    made.planner = replace(made.planner, provenance={"data": {"source": source}})
    kept = made._unseen(prompts)
    assert [p for p in prompts.prompts if p not in kept.prompts] == [
        p for p in prompts.prompts if p.split == "calibration"
    ]
    assert kept.source["left_out"] == 4
    for other in ({}, {"data": "made by hand"}, {"data": {"source": {"grammar": "mine", "seed": 3}}}):
        made.planner = replace(made.planner, provenance=other)
        assert made._unseen(prompts).prompts == prompts.prompts


def test_a_number_that_json_cannot_hold_stops_no_run(folder: Path) -> None:
    made = BenchRun(options_for(folder, parts=("risk",), again=("risk",), work=folder / "other work"))
    ratio = {"value": np.inf, "low": np.float64("nan"), "high": 1.0}
    setattr(made, "part_risk", lambda: {"rows": [{"ratio": ratio}]})  # noqa: B010
    expected = [{"ratio": {"value": None, "low": None, "high": 1.0}}]
    assert made.run()["risk"]["rows"] == expected
    kept = made.finished("risk")
    assert kept is not None and kept["rows"] == expected
    assert number(expected[0]["ratio"]) == "n/a" and share(float("nan")) == "n/a"
    assert number({"value": 0.5, "low": None, "high": 1.0}, ".1f") == "0.5 (n/a to 1.0)"


def test_a_damaged_partial_ablation_is_computed_again(
    run: BenchRun, parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = run._path("ablations").with_suffix(".partial.json")
    whole = kept.read_text()
    kept.write_text(whole[: len(whole) // 2])
    monkeypatch.setattr(bench_module.ablations, "jobs", lambda *_: [("metrics", "one", lambda: None)])
    monkeypatch.setattr(bench_module.ablations, "figures", lambda *_: {"missed": np.nan})
    monkeypatch.setattr(bench_module.ablations, "promise_by_metric", lambda *_: {})
    assert run.part_ablations()["groups"] == {"metrics": {"one": {"missed": None}}}
    assert json.loads(kept.read_text()) == {"metrics": {"one": {"missed": None}}}
    kept.write_text(whole)


def test_the_scene_classifiers_answers_are_kept_whole(
    run: BenchRun, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, made = run.evidence.dataset, BenchRun(options_for(folder, work=tmp_path))
    rows = dataset.rows("test")
    whole = np.where(dataset.present[rows][..., None], 0.25, np.nan) * np.ones(len(dataset.grid))
    missing = whole.copy()
    missing[0, 1] = np.nan  # one picture of the first prompt
    answers = [missing, whole, whole]
    monkeypatch.setattr(bench_module, "wrong_answers", lambda *_: answers.pop(0))
    monkeypatch.setattr(bench_module, "load_classifier", lambda _: None)
    np.testing.assert_array_equal(made._wrong_answers(dataset, rows), missing)
    assert not list(tmp_path.iterdir())  # its picture may come later
    np.testing.assert_array_equal(made._wrong_answers(dataset, rows), whole)
    (kept,) = tmp_path.iterdir()
    assert file_digest(bench_module.CLASSIFIER)[:12] in kept.name
    np.testing.assert_array_equal(made._wrong_answers(dataset, rows), whole)
    assert len(answers) == 1
    kept.write_bytes(kept.read_bytes()[:200])
    np.testing.assert_array_equal(made._wrong_answers(dataset, rows), whole)
    assert not answers and np.load(kept).shape == whole.shape


def test_own_sweeps_of_other_models_lie_side_by_side(
    run: BenchRun, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new checkpoint is not refused with "holds a sweep with other settings"; the old one is still known."""
    dataset = run.evidence.dataset
    monkeypatch.setattr(
        bench_module, "run_workers", lambda job, missing, workers, told: write_shards(job, missing, dataset, told)
    )
    monkeypatch.setattr(bench_module, "QUICK_COUNTS", {"train": 2, "calibration": 2, "test": 2})
    other = tmp_path / "model.safetensors"
    other.write_bytes(b"another model")
    first = BenchRun(options_for(folder, sweep=None, work=tmp_path)).sweep_folder
    second = BenchRun(options_for(folder, sweep=None, work=tmp_path, checkpoint=other)).sweep_folder
    assert first != second and first.name.startswith("sweep-quick-")
    for found in (first, second):
        assert (found / "dataset.safetensors").is_file() and (found / "sweep.json").is_file()
    monkeypatch.setattr(bench_module, "run_workers", lambda *_: pytest.fail("rendered again"))
    assert BenchRun(options_for(folder, sweep=None, work=tmp_path)).sweep_folder == first


def test_quick_sweeps_show_four_seeds_of_each_test_prompt() -> None:
    assert bench_module.QUICK_SEEDS["test"] == 4


def test_the_recorded_command_has_no_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["x", "study", "bench", "--sweep=/home/someone/mine", f"--work={commands.ROOT / 'w'}", "--parts=a,b"]
    monkeypatch.setattr("sys.argv", [*given, "--out", "/home/someone/docs"])
    told = "python -m research study bench --sweep=mine --work=w --parts=a,b --out docs"
    assert commands._command_line() == told


def test_joules_are_the_hosts_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_profile, "watt_hours", lambda device: 0.5 if device.type == "cuda" else None)
    assert gpu_profile.joules() == 1800.0
    monkeypatch.setattr(gpu_profile, "watt_hours", lambda _: None)
    assert gpu_profile.joules() is None


def test_a_stopped_ablation_goes_on(run: BenchRun, parts: dict[str, Any], folder: Path, monkeypatch: Any) -> None:
    kept = run._path("ablations").with_suffix(".partial.json")
    assert json.loads(kept.read_text()) == parts["ablations"]["groups"]
    monkeypatch.setattr(bench_module.ablations, "figures", lambda *_: pytest.fail("computed again"))
    assert run.part_ablations()["groups"] == parts["ablations"]["groups"]


def test_the_report_says_what_the_parts_say(run: BenchRun, parts: dict[str, Any], folder: Path) -> None:
    made = {**run.provenance(), "commit": None}
    (folder / "docs").mkdir(exist_ok=True)
    (folder / "docs" / "benchmark_notes.md").write_text("## Remedies\n\nThree were tried.\n")
    table = write(parts, made, "run.py bench", folder / "docs", folder / "docs" / "images" / "benchmark")
    content = json.loads((folder / "docs" / "bench.json").read_text())
    text = (folder / "docs" / "benchmark.md").read_text()
    assert content["parts"]["rules"] == parts["rules"] and content["planner"]["name"] == "mine"
    assert [goal["verdict"] for goal in content["goals"]] == [goal.verdict for goal in table]
    assert "Tiny Scenes" in text and str(folder) not in text and str(folder) not in json.dumps(content)
    ours = parts["rules"]["by_quality"]["0.90"]["equal_cost"]["rules"]["ours"]
    assert share(ours["violation_controlled"]) in text and number(ours["judges"]["mdsi"], ".4f") in text
    assert "the planner itself was made from 40 training and 30 calibration prompts" in text
    assert text.index("## Goals") < text.index("Three were tried.") < text.index("## Risk")
    for row in parts["risk"]["rows"]:
        assert share(row["missed"]) in text
    for deal in parts["risk"]["redealt"]:  # each beside the row that it belongs to
        (line,) = (x for x in text.splitlines() if x.startswith(f"| {deal['risk']:g} | {deal['quality']:.2f} |"))
        cells = [cell.strip() for cell in line.split("|")]
        assert cells[7:11] == [
            share(deal["missed"]),
            f"{deal['mean_steps']:.1f}",
            share(deal["other"]["missed"]),
            f"{deal['other']['mean_steps']:.1f}",
        ]
    for goal in table:
        assert goal.name in text and goal.found in text
    for file in ("variance.png", "rules.png", "risk.png", "too_few_steps.png"):
        assert (folder / "docs" / "images" / "benchmark" / file).stat().st_size > 3000
        assert f"images/benchmark/{file}" in text
    lines = text.splitlines()
    for before, line in itertools.pairwise(lines):
        if before.startswith("|") and line.startswith("|"):
            assert before.count("|") == line.count("|"), line  # every table is rectangular


def test_a_report_of_few_parts_is_still_one(run: BenchRun, parts: dict[str, Any]) -> None:
    text = markdown({"risk": parts["risk"]}, run.provenance(), "command", goals(None, None, 0.1), {})
    assert "## Risk" in text and "## Ablations" not in text and "not measured" in text


def test_a_dominating_seed_is_said_at_the_top() -> None:
    def variance(prompt: float | None) -> dict[str, Any]:
        return {"sweep": {"by_quality": {"0.90": {"all metrics": {"prompt": prompt}}}}}

    assert "explains 30%" in seed_warning(variance(0.3))
    assert seed_warning(variance(0.7)) == "" and seed_warning(None) == ""
    assert "one seed" in seed_warning(variance(None))
    crossed = {**variance(0.9), "crossed": variance(0.2)["sweep"]}
    assert "explains 20%" in seed_warning(crossed)
    crossed["crossed"]["dtype"] = "bf16"  # another precision than the sweep's: it does not speak for it
    assert seed_warning(crossed) == seed_warning(variance(0.9))


def test_numbers_are_written_with_their_interval() -> None:
    assert number({"value": 0.5, "low": 0.25, "high": 1.0}, ".2f") == "0.50 (0.25 to 1.00)"
    assert share(0.125) == "12.5%" and number(None) == "n/a"


def test_what_is_wrong_is_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="unknown"):
        BenchRun(options_for(folder, parts=("everything",)))
    with pytest.raises(InputError, match="not the model that the sweep"):
        BenchRun(options_for(folder, checkpoint=folder / "planner.safetensors")).side_sampling()
    given = ["study", "bench", "--planner", str(folder / "planner.safetensors"), "--sweep", str(folder / "nowhere")]
    assert cli.main([*given, "--work", str(folder / "w"), "--out", str(folder / "o")]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_command_writes_the_report_from_finished_parts(
    run: BenchRun, parts: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"planner": "planner.safetensors", "checkpoint": "model.safetensors", "sweep": "sweep", "work": "work"}
    given = [word for name, file in names.items() for word in (f"--{name}", str(folder / file))]
    wanted = ["--quiet", "study", "bench", *given, "--out", str(folder / "other"), "--parts", "risk"]
    assert cli.main(wanted) == 0
    assert "mean evaluations below the target's" in capsys.readouterr().out
    assert json.loads((folder / "other" / "bench.json").read_text())["parts"] == parts


def test_busier_prompts_are_busier_whole_and_held_out() -> None:
    prompts = busier_prompts(20, 2, 1).prompts
    assert len(prompts) == 20 and all(len(p.seeds) == 2 and p.split == "test" for p in prompts)
    assert all(p.key.count("|") == 4 for p in prompts)  # training scenes have at most three groups
    assert all(len(words(p.text)) <= MAX_TOKENS - 2 for p in prompts)
    assert busier_prompts(20, 2, 1) == busier_prompts(20, 2, 1)


def write_shards(job: Any, indices: Any, dataset: Any, progress: Any) -> None:
    """Stands for the worker processes: curves of the law e = 2 / n for every prompt and seed."""
    grid = np.array(job.spec.grid)
    for index in indices:
        pairs = job.shards[index]
        curve = np.broadcast_to((2 / grid - 2 / grid[-1])[:, None], (len(pairs), len(grid), 3))
        tokens = dataset.tokens[: len(pairs)].astype(np.float16)
        arrays = {
            "prompt": np.array([p for p, _ in pairs]),
            "seed": np.array([s for _, s in pairs]),
            "tokens": tokens,
            "lengths": np.full(len(pairs), tokens.shape[1]),
            "pooled": dataset.pooled[: len(pairs)].astype(np.float16),
            "shortfall": curve.astype(np.float32),
            "l_snr": curve[..., 0].astype(np.float32),
            "judges": np.zeros((len(pairs), len(grid), len(JUDGES)), np.float32),
        }
        facts = {"setting": dataset.setting.to_dict(), "backends": dict(dataset.backends), "host_version": "0"}
        write_shard(job, index, arrays, {**facts, "torch": "0", "seconds": {"render": 1.0, "measure": 1.0}})
        progress(job.evaluations([index]))


def test_further_sweeps_are_of_the_same_kind(run: BenchRun, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The crossed sweep: test prompts at the planner's grid, all from the same noise; a second look renders nothing."""
    dataset, seen = run.evidence.dataset, []
    monkeypatch.setattr(
        bench_module, "run_workers", lambda job, missing, workers, told: write_shards(job, missing, dataset, told)
    )
    full = BenchRun(options_for(folder, full=True), lambda what, done, total: seen.append((what, done / total)))
    found = full.part_variance()["crossed"]
    assert found["prompts"] == 30 and found["seeds"] == 8 and found["same_noise_for_all_prompts"]
    assert found["by_quality"]["0.90"]["all metrics"]["prompt"] is None  # one law for all: nothing varies
    assert seen[-1] == ("crossed seeds", 1.0)
    monkeypatch.setattr(bench_module, "run_workers", lambda *_: pytest.fail("rendered again"))
    assert full.part_variance()["crossed"] == found
    given = BenchRun(options_for(folder, crossed=full._crossed()))  # one that lies there is taken as it is
    assert given.part_variance()["crossed"] == found
    with pytest.raises(InputError, match="do not all have the same noise seeds"):
        BenchRun(options_for(folder, crossed=given.sweep_folder)).part_variance()
    shifted = BenchRun(options_for(folder))
    monkeypatch.setattr(
        bench_module, "run_workers", lambda job, missing, workers, told: write_shards(job, missing, dataset, told)
    )
    fine = full.part_grid()
    assert fine is not None and [len(row["grid"]) for row in fine["grids"]] == [4, 6, 8, 12, 24]
    assert fine["prompts"] == {"train": 40, "calibration": 30, "test": 30}
    text = markdown({"grid": fine}, full.provenance(), "command", goals(None, None, 0.1), {})
    assert "2 8 17 50 | 77 |" in text and share(fine["grids"][0]["at_our_promise"]["missed"]) in text
    assert shifted.part_grid() is None  # half an hour of rendering is nothing for a quick run
    figures = shifted.part_shift()
    assert figures["prompts"] == 24 and len(figures["rows"]) == 9
    assert 0 <= figures["noticed"]["shifted"]["share_warned"] <= 1


def test_run_py_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What run.py starts is a command that the study's own parser takes."""
    from types import SimpleNamespace

    from launcher import cli as launch

    started: list[list[str]] = []
    monkeypatch.setattr(launch, "set_up", lambda *_: None)
    monkeypatch.setattr(launch, "chosen_host", lambda *_: SimpleNamespace(path=tmp_path))
    monkeypatch.setattr(launch, "run_child", lambda command, environment: started.append(list(command)) or 0)
    assert launch.main(["bench", "--full", "--sweep", "mine", "--parts", "risk,rules", "--peer-prompts", "3"]) == 0
    given = started[0][started[0].index("study") :]
    options = cli.build_parser().parse_args(given)
    assert options.full and options.sweep == Path("mine").absolute() and options.parts == "risk,rules"
    assert options.peer_prompts == 3 and options.host == tmp_path and options.out.name == "docs"


def test_a_quick_run_leaves_the_report_of_a_full_one(tmp_path: Path) -> None:
    assert report_folder(tmp_path, full=False) == tmp_path  # nothing lies there
    (tmp_path / "bench.json").write_text("[]")
    assert report_folder(tmp_path, full=False) == tmp_path
    (tmp_path / "bench.json").write_text('{"mode": "quick"}')
    assert report_folder(tmp_path, full=False) == tmp_path
    (tmp_path / "bench.json").write_text('{"mode": "full"}')
    assert report_folder(tmp_path, full=False) == tmp_path / "quick"
    assert report_folder(tmp_path, full=True) == tmp_path
