"""Prompt lists, shards, resuming and merging, without a host: a renderer whose numbers are a function of its input."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from budgetfusion_nodes.core.curves import METRICS
from budgetfusion_nodes.core.errors import BackendMissingError, InputError
from budgetfusion_nodes.core.setting import Setting
from budgetfusion_nodes.host.identity import Identity
from budgetfusion_nodes.host.model_sampling import Sampling as ModelSampling
from budgetfusion_nodes.metrics.measure import Backends, measure
from budgetfusion_nodes.predictor.dataset import ABSENT, SweepDataset, select
from budgetfusion_nodes.tiny_scenes.scenes import HELD_OUT
from research import cli
from research.bench.evidence import load_judges
from research.sweeps import commands, joining, sweep
from research.sweeps.commands import AS_RENDERED
from research.sweeps.joining import join
from research.sweeps.prompts import PromptList, StudyPrompt, calibration_scenes, tiny_scenes_prompts
from research.sweeps.rendering import JUDGES, LoadedModel, Sampling, load_model, measure_trajectories, ms_ssim_distance
from research.sweeps.strips import strip_path
from research.sweeps.sweep import SweepJob, SweepSpec, is_finished, merge, prepare, run_here

COUNTS = {"train": 6, "calibration": 3, "test": 2}
SEEDS = {"train": 1, "calibration": 2, "test": 4}
GRID = (2, 4, 8)
SETTING = Setting("fingerprint", "dpmpp_2m", "karras", 3.0, 64, 64, model_name="model", precision="fp32")


class Killed(BaseException):
    """Stands for the signal that ends a process."""


class NumberRenderer:
    """Writes shards whose values tell which prompt and seed they belong to; `die_at` is killed while writing it."""

    def __init__(self, job: SweepJob, base_dir: Path, die_at: int | None = None) -> None:
        del base_dir
        self.job, self.die_at, self.rendered = job, die_at, []

    def render(self, index: int, report: Callable[[int], None] | None = None) -> None:
        pairs = self.job.shards[index]
        if index == self.die_at:
            self.job.shard_path(index).with_suffix(".safetensors.1.part").write_bytes(b"half")
            raise Killed
        self.rendered.append(index)
        noise = np.array([self.job.prompts.prompts[p].seeds[s] for p, s in pairs], float)
        prompt = np.array([p for p, _ in pairs])
        base = (prompt + noise / 1e10)[:, None] + np.arange(len(GRID))
        arrays = {
            "prompt": prompt.astype(np.int64),
            "seed": np.array([s for _, s in pairs], np.int64),
            "tokens": np.broadcast_to(prompt[:, None, None], (len(pairs), 5, 3)).astype(np.float16),
            "lengths": np.full(len(pairs), 5, np.int64),
            "pooled": np.broadcast_to(prompt[:, None], (len(pairs), 2)).astype(np.float16),
            "l_snr": base.astype(np.float32),
            "shortfall": (base[..., None] + 100.0 * np.arange(len(METRICS))).astype(np.float32),
            "judges": np.repeat(base[..., None], len(JUDGES), axis=-1).astype(np.float32),
        }
        facts = {"setting": SETTING.to_dict(), "backends": dict.fromkeys(METRICS, "numbers")}
        facts |= {"host_version": "0", "torch": torch.__version__, "seconds": {"render": 1.0, "measure": 0.5}}
        sweep.write_shard(self.job, index, arrays, facts)
        if report is not None:
            report(len(pairs) * sum(GRID))


@pytest.fixture
def job(tmp_path: Path) -> SweepJob:
    prompts = tiny_scenes_prompts(3, COUNTS, SEEDS)
    spec = SweepSpec("model.safetensors", "0" * 64, prompts.digest(), Sampling(), GRID, batch=4)
    return SweepJob(tmp_path / "sweep", tmp_path, tmp_path / "model.safetensors", spec, prompts)


def render_all(job: SweepJob, monkeypatch: pytest.MonkeyPatch, die_at: int | None = None) -> NumberRenderer:
    renderer = NumberRenderer(job, job.out, die_at)
    monkeypatch.setattr(sweep, "ShardRenderer", lambda *_: renderer)
    run_here(job, prepare(job), job.out)
    return renderer


# ------------------------------------------------------------------------------------------------------- prompt lists


def test_prompt_list_is_a_function_of_its_seed() -> None:
    first, again = tiny_scenes_prompts(7, COUNTS, SEEDS), tiny_scenes_prompts(7, COUNTS, SEEDS)
    assert first == again and first.digest() == again.digest()
    assert tiny_scenes_prompts(8, COUNTS, SEEDS).digest() != first.digest()


def test_default_splits_share_no_scene_and_have_the_promised_size() -> None:
    prompts = tiny_scenes_prompts(1).prompts
    by_split = {s: [p for p in prompts if p.split == s] for s in ("train", "calibration", "test")}
    assert {s: len(v) for s, v in by_split.items()} == {"train": 800, "calibration": 200, "test": 200}
    assert {s: {len(p.seeds) for p in v} for s, v in by_split.items()} == {
        "train": {2},
        "calibration": {2},
        "test": {4},
    }
    keys = {s: {p.key for p in v} for s, v in by_split.items()}
    assert not (
        keys["train"] & keys["test"] or keys["train"] & keys["calibration"] or keys["calibration"] & keys["test"]
    )
    assert len({p.text for p in prompts}) == len({p.key for p in prompts}) == 1200
    assert len({seed for p in prompts for seed in p.seeds}) > 2790  # every picture has noise of its own


def test_calibration_and_test_scenes_were_held_out_from_the_generator() -> None:
    from hashlib import sha256

    for prompt in tiny_scenes_prompts(1, {"train": 40, "calibration": 20, "test": 20}).prompts:
        bucket = int.from_bytes(sha256(prompt.key.encode()).digest()[:8], "big") / 2**64
        assert (bucket < HELD_OUT) == (prompt.split != "train")


def test_every_split_ranges_from_trivial_to_busy() -> None:
    prompts = tiny_scenes_prompts(1).prompts
    for split in COUNTS:
        groups = [p.key.count("|") for p in prompts if p.split == split]
        assert set(groups) == {0, 1, 2, 3}
        assert min(np.bincount(groups) / len(groups)) > 0.04


def test_any_first_part_of_the_order_is_mixed() -> None:
    first = [p.split for p in tiny_scenes_prompts(1).prompts[:120]]
    assert 60 <= first.count("train") <= 100
    assert min(first.count("calibration"), first.count("test")) >= 8


def test_prompt_list_survives_its_file(tmp_path: Path) -> None:
    made = tiny_scenes_prompts(2, COUNTS, SEEDS)
    made.save(tmp_path / "prompts.json")
    assert PromptList.load(tmp_path / "prompts.json") == made


@pytest.mark.parametrize("field", ["text", "key"])
def test_a_repeated_prompt_or_scene_is_refused(field: str) -> None:
    first = StudyPrompt("a red star", "train", (1,), "star")
    other = replace(StudyPrompt("a blue star", "test", (2,), "blue star"), **{field: getattr(first, field)})
    with pytest.raises(InputError, match=f"share one {field}"):
        PromptList((first, other), {})


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": "other"}', '{"format": "budgetfusion.sweep_prompts", "version": 1}']
)
def test_a_file_that_is_no_prompt_list_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "mine.json").write_text(content)
    with pytest.raises(InputError, match=r"mine\.json"):
        PromptList.load(tmp_path / "mine.json")


# ------------------------------------------------------------------------------------------------------------- shards


def test_a_killed_sweep_goes_on_and_equals_an_uninterrupted_one(job: SweepJob, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = replace(job, out=job.out.with_name("whole"))
    render_all(whole, monkeypatch)
    with pytest.raises(Killed):
        render_all(job, monkeypatch, die_at=1)
    assert prepare(job) == list(range(1, len(job.shards)))
    renderer = render_all(job, monkeypatch)
    assert renderer.rendered == list(range(1, len(job.shards)))  # the finished one was not rendered again
    assert prepare(job) == []
    a, b = merge(whole), merge(job)
    for name in ("tokens", "lengths", "pooled", "seeds", "shortfall", "l_snr"):
        np.testing.assert_array_equal(getattr(a.dataset, name), getattr(b.dataset, name))
    np.testing.assert_array_equal(a.judges, b.judges)
    assert a.dataset.prompts == b.dataset.prompts and a.dataset.split == b.dataset.split


def test_a_damaged_shard_is_rendered_again(job: SweepJob, monkeypatch: pytest.MonkeyPatch) -> None:
    render_all(job, monkeypatch)
    path = job.shard_path(2)
    path.write_bytes(path.read_bytes()[:100])
    assert not is_finished(job, 2) and prepare(job) == [2]


def test_merged_arrays_belong_to_their_prompts_and_seeds(job: SweepJob, monkeypatch: pytest.MonkeyPatch) -> None:
    render_all(job, monkeypatch)
    merged = merge(job, {"commit": "abc"})
    data = merged.dataset
    assert data.prompts == tuple(p.text for p in job.prompts.prompts)
    assert data.setting == SETTING and data.grid == GRID and data.provenance["commit"] == "abc"
    assert data.provenance["trajectories"] == 6 * 1 + 3 * 2 + 2 * 4
    for row, prompt in enumerate(job.prompts.prompts):
        assert data.split[row] == prompt.split
        assert (data.tokens[row] == row).all() and (data.pooled[row] == row).all()
        present = len(prompt.seeds)
        assert data.seeds[row].tolist() == [*prompt.seeds, *[ABSENT] * (4 - present)]
        for column, noise in enumerate(prompt.seeds):
            expected = row + noise / 1e10 + np.arange(len(GRID))
            np.testing.assert_allclose(data.l_snr[row, column], expected, rtol=1e-6)
            np.testing.assert_allclose(data.shortfall[row, column, :, 2], expected + 200.0, rtol=1e-6)
            np.testing.assert_allclose(merged.judges[row, column, :, 0], expected, rtol=1e-6)
        assert np.isnan(data.shortfall[row, present:]).all() and np.isnan(data.l_snr[row, present:]).all()
        assert np.isnan(merged.judges[row, present:]).all()


def test_merged_data_survives_its_file(job: SweepJob, monkeypatch: pytest.MonkeyPatch) -> None:
    render_all(job, monkeypatch)
    merged = merge(job)
    path, _ = sweep.save_merged(merged, job.out)
    loaded = SweepDataset.load(path)
    np.testing.assert_array_equal(loaded.shortfall, merged.dataset.shortfall)
    assert loaded.prompts == merged.dataset.prompts and loaded.setting == SETTING
    assert loaded.provenance["spec"]["sampling"]["scheduler"] == "karras"


def test_an_unfinished_sweep_merges_only_on_request(job: SweepJob, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed):
        render_all(job, monkeypatch, die_at=2)
    with pytest.raises(InputError, match=r"2 of \d+ shards are finished"):
        merge(job)
    data = merge(job, partial=True).dataset
    pairs = [pair for shard in job.shards[:2] for pair in shard]
    assert int(data.present.sum()) == len(pairs)
    assert data.prompts == tuple(job.prompts.prompts[p].text for p in sorted({p for p, _ in pairs}))


def test_merging_does_not_undo_a_second_measurement(
    job: SweepJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    render_all(job, monkeypatch)
    command = ["study", "merge", "--out", str(job.out)]
    assert cli.main(command) == 0
    data, path = merge(job).dataset, job.out / sweep.DATASET_FILE
    data.save(job.out / AS_RENDERED)
    assert cli.main(command) == 0  # a remeasurement that was killed before it wrote
    replace(data, provenance={**data.provenance, "measured_again": {}}).save(path)
    again = path.read_bytes()
    assert cli.main(command) == 2
    assert "put the old numbers back" in capsys.readouterr().err
    assert path.read_bytes() == again
    (job.out / AS_RENDERED).replace(path)  # the remedy that is named
    assert cli.main(command) == 0 and "measured_again" not in SweepDataset.load(path).provenance


def test_a_joined_prompt_list_can_be_swept_again(job: SweepJob, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = PromptList(job.prompts.prompts, {"joined": [], "left_out": 0})
    again = replace(job, prompts=prompts)
    render_all(again, monkeypatch)
    assert merge(again).dataset.prompts == tuple(p.text for p in prompts.prompts)


def test_a_remeasurement_that_fails_leaves_the_sweep_as_it_was(
    job: SweepJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    render_all(job, monkeypatch)
    command = ["--quiet", "study", "remeasure", "--sweep", str(job.out), "--metrics", "l_snr", "--d-sim", "haarpsi"]
    assert cli.main(["study", "merge", "--out", str(job.out)]) == 0
    assert cli.main(command) == 2  # no picture was kept
    assert "was not kept" in capsys.readouterr().err
    assert not (job.out / AS_RENDERED).exists()
    assert cli.main(["study", "merge", "--out", str(job.out)]) == 0


def test_shards_of_before_there_was_a_precision_and_a_device_go_on(
    job: SweepJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    render_all(job, monkeypatch)
    for index in range(len(job.shards)):
        shard = sweep.read_shard(job, index)
        assert shard.facts["device"] == "cpu"
        old = {key: value for key, value in shard.facts["setting"].items() if key != "precision"}
        facts = {key: value for key, value in shard.facts.items() if key != "device"}
        new = {**shard.facts, "device": "cpu"}
        sweep.write_shard(job, index, shard.arrays, {**facts, "setting": old} if index % 2 else new)
    found = merge(job).dataset
    assert found.setting == SETTING and found.provenance["device"] == "cpu"


def test_a_sweep_goes_on_only_where_it_began(job: SweepJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before anything is rendered, not hours later when shards are merged."""
    render_all(job, monkeypatch)
    shard = sweep.read_shard(job, 0)
    sweep.write_shard(job, 0, shard.arrays, {**shard.facts, "device": "NVIDIA H100"})
    monkeypatch.undo()
    stub = LoadedModel(None, None, None, "0")
    monkeypatch.setattr(sweep, "load_model", lambda *_, **__: stub)
    monkeypatch.setattr(sweep, "identify", lambda *_: SETTING)
    monkeypatch.setattr(sweep, "Renderer", lambda *_: None)
    backends = SimpleNamespace(names=lambda: dict.fromkeys(METRICS, "numbers"))
    monkeypatch.setattr(sweep.Backends, "from_values", lambda *_: backends)
    with pytest.raises(InputError, match=r"differ in device \(NVIDIA H100 and cpu\).*--device"):
        sweep.ShardRenderer(job, job.out)
    sweep.write_shard(job, 0, shard.arrays, shard.facts)
    assert sweep.ShardRenderer(job, job.out).facts["device"] == "cpu"


def test_other_settings_or_prompts_in_the_folder_are_refused(job: SweepJob) -> None:
    prepare(job)
    changed = replace(job, spec=replace(job.spec, sampling=Sampling(scheduler="normal")))
    with pytest.raises(InputError, match="scheduler: karras there, normal now"):
        prepare(changed)
    others = tiny_scenes_prompts(4, COUNTS, SEEDS)
    with pytest.raises(InputError, match="other prompts"):
        prepare(replace(job, prompts=others))


def test_a_shard_of_another_spec_counts_as_missing(job: SweepJob, monkeypatch: pytest.MonkeyPatch) -> None:
    render_all(job, monkeypatch)
    assert not is_finished(replace(job, spec=replace(job.spec, checkpoint_sha256="1" * 64)), 0)


def test_shards_of_two_models_do_not_merge(job: SweepJob, monkeypatch: pytest.MonkeyPatch) -> None:
    render_all(job, monkeypatch)
    shard = sweep.read_shard(job, 0)
    other = replace(SETTING, model="another").to_dict()
    sweep.write_shard(job, 0, shard.arrays, {**shard.facts, "setting": other})
    with pytest.raises(InputError, match="shards differ in setting"):
        merge(job)


def test_progress_adds_up(job: SweepJob, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    renderer = NumberRenderer(job, job.out)
    monkeypatch.setattr(sweep, "ShardRenderer", lambda *_: renderer)
    run_here(job, prepare(job), job.out, told.append)
    assert sum(told) == job.evaluations(range(len(job.shards))) == 20 * sum(GRID)


# ------------------------------------------------------------------------------------------------------------ measure


class ColourEncoder:
    """Mean colour and its spread as the embedding."""

    name = "colour"

    def encode(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3)), torch.ones(len(x), 1)], dim=1)

    def to(self, device: torch.device) -> None:
        """It has no weights."""


def test_trajectories_measure_as_the_metrics_do_image_by_image() -> None:
    images = torch.rand(3, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    latents = images * 2 - 1
    backends = Backends(Backends.from_values("haarpsi", "none").d_sim, ColourEncoder())
    found = measure_trajectories(latents, images, backends)
    for row in range(3):
        expected = measure(images[row], images[row, -1:], backends)
        for column, metric in enumerate(METRICS):
            torch.testing.assert_close(found.shortfall[row, :-1, column], expected[metric][:-1], atol=1e-5, rtol=1e-4)
    assert (found.shortfall[:, -1] == 0).all() and (found.judges[:, -1] == 0).all()
    expected_rmse = (latents[1, 0] - latents[1, -1]).square().mean().sqrt()
    torch.testing.assert_close(found.judges[1, 0, 0], expected_rmse)
    assert (found.judges[:, :-1] > 0).all()


def ms_ssim_by_the_book(x: np.ndarray, y: np.ndarray, size: int, weights: tuple[float, ...]) -> float:
    """Wang, Simoncelli & Bovik 2003, equation 7, for [C, H, W]: each channel by itself, then their mean."""
    from scipy.signal import convolve2d

    window = np.exp(-((np.arange(size) - size // 2)[:, None] ** 2) / 4.5) * np.exp(
        -((np.arange(size) - size // 2) ** 2) / 4.5
    )
    window /= window.sum()
    found = []
    for a, b in zip(x, y, strict=True):
        product = 1.0
        for scale, weight in enumerate(np.array(weights) / sum(weights)):
            if scale:
                a, b = (image.reshape(image.shape[0] // 2, 2, -1, 2).mean((1, 3)) for image in (a, b))
            mean_a, mean_b = (convolve2d(image, window, mode="valid") for image in (a, b))
            var_a, var_b, both = (
                convolve2d(p * q, window, mode="valid") - m * n
                for p, q, m, n in ((a, a, mean_a, mean_a), (b, b, mean_b, mean_b), (a, b, mean_a, mean_b))
            )
            term = (2 * both + 0.03**2) / (var_a + var_b + 0.03**2)
            if scale == len(weights) - 1:
                term = term * (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
            product *= max(term.mean(), 0.0) ** weight
        found.append(product)
    return float(np.mean(found))


@pytest.mark.parametrize(("pixels", "window", "scales"), [(64, 7, 3), (176, 11, 5), (20, 7, 2)])
def test_ms_ssim_is_that_of_the_paper(pixels: int, window: int, scales: int) -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand((1, 3, pixels // 4, pixels // 4), generator=generator)
    picture = torch.nn.functional.interpolate(picture, scale_factor=4.0, mode="nearest")
    noise = torch.randn(picture.shape, generator=generator)
    worse = [(picture + level * noise).clamp(0, 1) for level in (0.0, 0.02, 0.1, 0.3)]
    found = [float(ms_ssim_distance(image, picture)) for image in worse]
    assert found[0] == pytest.approx(0.0, abs=1e-6) and found == sorted(found) and found[-1] > 0.05
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)[:scales]
    expected = ms_ssim_by_the_book(worse[2][0].double().numpy(), picture[0].double().numpy(), window, weights)
    assert found[2] == pytest.approx(1 - expected, abs=1e-4)


def test_shards_with_other_judges_are_rendered_again(job: SweepJob, monkeypatch: pytest.MonkeyPatch) -> None:
    render_all(job, monkeypatch)
    assert prepare(job) == []
    monkeypatch.setattr(sweep, "JUDGES", (*JUDGES, "another"))
    assert prepare(job) == list(range(len(job.shards)))


def test_measuring_without_an_encoder_is_an_error() -> None:
    backends = Backends.from_values("haarpsi", "none")
    with pytest.raises(BackendMissingError, match="i_clip"):
        measure_trajectories(torch.zeros(1, 2, 3, 16, 16), torch.zeros(1, 2, 3, 16, 16), backends)


# ----------------------------------------------------------------------------------------------------------- commands


def test_train_writes_a_planner_with_its_story(
    tmp_path: Path, make_dataset: Callable[..., SweepDataset], capsys: pytest.CaptureFixture[str]
) -> None:
    from budgetfusion_nodes.predictor.planner_file import load_planner

    data, out = tmp_path / "dataset.safetensors", tmp_path / "planners" / "mine.safetensors"
    make_dataset(train=30, calibration=20, test=10).save(data)
    assert cli.main(["study", "train", "--data", str(data), "--out", str(out), "--networks", "1", "--epochs", "2"]) == 0
    planner = load_planner(out)
    story = json.loads(out.with_suffix(".json").read_text())
    assert planner.name == story["planner"] == "mine"
    assert story["setting"] == planner.setting.to_dict() and story["held_out"]["quality"] == 0.9
    assert str(tmp_path) not in json.dumps(story) and story["command"].startswith("python -m")
    assert planner.provenance["data_sha256"] == story["data_sha256"]
    stored = capsys.readouterr().out
    assert cli.main(["study", "report", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed in stored and "Quality 0.90" in printed and "oracle B" in printed
    assert cli.main(["study", "report", str(out), "--data", str(data)]) == 0
    assert capsys.readouterr().out == printed  # the planner alone gives the figures it was shipped with
    other = tmp_path / "other.safetensors"
    made = make_dataset(train=30, calibration=20, test=10)
    replace(made, backends={**made.backends, "l_snr": "another"}).save(other)
    assert cli.main(["study", "report", str(out), "--data", str(other)]) == 2
    assert "was measured with" in capsys.readouterr().err


def test_own_prompts_need_an_image_encoder_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PromptList((StudyPrompt("a photo of a cat", "train", (1,), "cat"),), {}).save(tmp_path / "mine.json")
    words = ["study", "sweep", "--out", str(tmp_path / "out"), "--prompt-list", str(tmp_path / "mine.json")]
    assert cli.main(words) == 2
    assert "knows Tiny Scenes pictures only" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sweep", "--checkpoint", "nowhere.safetensors"], "no file"),
        (["sweep", "--sampler", "euler_ancestral"], "euler_ancestral"),
        (["sweep", "--grid", "8 4"], "must increase"),
        (["merge", "--out", "nowhere"], "sweep.json"),
        (["remeasure", "--sweep", "nowhere"], "sweep.json"),
        (["train", "--data", "nowhere.safetensors"], "nowhere.safetensors"),
        (["report", "nowhere.safetensors"], "nowhere.json"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given: list[Any] = ["study", *words]
    assert cli.main(given) == 2
    found = capsys.readouterr().err
    assert said in found and "Traceback" not in found


# ---------------------------------------------------------------------------------------------------------- joining


def finished_sweep(folder: Path, prompts: PromptList, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> SweepJob:
    """Rendered by the NumberRenderer, with a picture for each trajectory that holds its name."""
    spec = SweepSpec("model.safetensors", "0" * 64, prompts.digest(), Sampling(), GRID, batch=4)
    job = SweepJob(folder, folder, folder / "model.safetensors", replace(spec, **changes), prompts)
    render_all(job, monkeypatch)
    sweep.save_merged(merge(job, {"command": folder.name}), folder)
    for index, prompt in enumerate(prompts.prompts):
        for noise in prompt.seeds:
            picture = strip_path(folder, index, noise)
            picture.parent.mkdir(exist_ok=True)
            picture.write_text(f"{prompt.text} {noise}")
    return job


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A sweep, and one of more training prompts of which one shows a scene of the first in other words."""
    first = tiny_scenes_prompts(3, COUNTS, SEEDS)
    more = tiny_scenes_prompts(4, {"train": 5, "calibration": 0, "test": 0}, {**SEEDS, "train": 2})
    known = next(p for p in first.prompts if p.split == "train")
    twin = replace(more.prompts[2], key=known.key)
    more = PromptList((*more.prompts[:2], twin, *more.prompts[3:]), more.source)
    finished_sweep(tmp_path / "first", first, monkeypatch)
    finished_sweep(tmp_path / "more", more, monkeypatch)
    return tmp_path / "first", tmp_path / "more"


def test_joined_sweeps_are_one(two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "joined"
    assert cli.main(["study", "join", *map(str, two), "--out", str(out)]) == 0
    assert "10 train, 3 calibration, 2 test" in capsys.readouterr().out
    first, more = (SweepDataset.load(folder / sweep.DATASET_FILE) for folder in two)
    joined, job = SweepDataset.load(out / sweep.DATASET_FILE), sweep.open_job(out)
    assert joined.prompts == (*first.prompts, *more.prompts[:2], *more.prompts[3:])
    assert joined.prompts == tuple(p.text for p in job.prompts.prompts)
    assert job.spec.prompts_sha256 == job.prompts.digest()
    judges = load_judges(out / sweep.JUDGES_FILE)
    for folder, data in zip(two, (first, more), strict=True):
        own = load_judges(folder / sweep.JUDGES_FILE).values
        for row, text in enumerate(data.prompts):
            if text not in joined.prompts:
                continue
            place, seeds = joined.prompts.index(text), data.present[row]
            assert joined.split[place] == data.split[row]
            assert joined.seeds[place][joined.present[place]].tolist() == data.seeds[row][seeds].tolist()
            np.testing.assert_array_equal(joined.shortfall[place, : seeds.sum()], data.shortfall[row, seeds])
            np.testing.assert_array_equal(judges.values[place, : seeds.sum()], own[row, seeds])
            np.testing.assert_array_equal(joined.tokens[place], data.tokens[row])
            assert np.isnan(judges.values[place, seeds.sum() :]).all()
    pictures = {strip_path(out, i, n): f"{p.text} {n}" for i, p in enumerate(job.prompts.prompts) for n in p.seeds}
    assert {path: path.read_text() for path in (out / "images").iterdir()} == pictures
    made = joined.provenance
    assert made["trajectories"] == int(joined.present.sum()) == 6 + 2 * 3 + 4 * 2 + 2 * 4
    assert made["source"]["left_out"] == 1 and [part["command"] for part in made["joined"]] == ["first", "more"]
    drawn = {p.key for p in tiny_scenes_prompts(3, COUNTS, SEEDS).prompts if p.split == "calibration"}
    assert calibration_scenes(made["source"]) == drawn and len(drawn) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"grid": (2, 4, 8), "batch": 8}, "batch: 4 in first, 8 in other"),
        ({"checkpoint_sha256": "1" * 64}, "checkpoint_sha256"),
        ({"sampling": Sampling(dtype="bf16")}, "dtype: fp32 in first, bf16 in other"),
    ],
)
def test_sweeps_of_other_settings_do_not_join(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], said: str
) -> None:
    prompts = tiny_scenes_prompts(5, {"train": 2, "calibration": 0, "test": 0}, SEEDS)
    finished_sweep(tmp_path / "other", prompts, monkeypatch, **change)
    with pytest.raises(InputError, match=said):
        join([two[0], tmp_path / "other"], tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_only_whole_sweeps_of_one_host_join_and_only_into_an_empty_folder(two: tuple[Path, Path]) -> None:
    first, more = two
    out = first.with_name("joined")
    with pytest.raises(InputError, match="at least two"):
        join([first], out)
    with pytest.raises(InputError, match="not an empty folder"):
        join([first, more], more)
    with pytest.raises(InputError, match="not an empty folder"):
        join([first, more], more / sweep.DATASET_FILE)
    data = SweepDataset.load(more / sweep.DATASET_FILE)
    select(data, np.arange(3)).save(more / sweep.DATASET_FILE)
    with pytest.raises(InputError, match="Finish that sweep first"):
        join([first, more], out)
    seeds = data.seeds.copy()
    seeds[1, 0] = ABSENT  # a seed before another: judges would land beside the wrong one
    replace(data, seeds=seeds).save(more / sweep.DATASET_FILE)
    with pytest.raises(InputError, match="Finish that sweep first"):
        join([first, more], out)
    wide = replace(
        data, **{name: np.repeat(getattr(data, name), 2, axis=1) for name in ("seeds", "shortfall", "l_snr")}
    )
    wide.seeds[:, 1] = wide.seeds[:, 3] = ABSENT  # both seeds are there, with a gap between them
    wide.seeds[:, 2] = data.seeds[:, 1]
    wide.save(more / sweep.DATASET_FILE)
    with pytest.raises(InputError, match="Finish that sweep first"):
        join([first, more], out)
    replace(data, provenance={**data.provenance, "measured_again": {}}).save(more / sweep.DATASET_FILE)
    with pytest.raises(InputError, match="measured again from its 8-bit pictures"):
        join([first, more], out)
    replace(data, provenance={**data.provenance, "host_version": "9"}).save(more / sweep.DATASET_FILE)
    with pytest.raises(InputError, match="host_version 9, first with 0"):
        join([first, more], out)
    (more / sweep.DATASET_FILE).unlink()
    with pytest.raises(InputError, match="cannot be read"):
        join([first, more], out)
    assert not out.exists()


def test_a_join_that_cannot_be_written_leaves_an_empty_folder(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(joining, "save_merged", full)
    with pytest.raises(InputError, match="cannot be written"):
        join(two, tmp_path / "joined")
    assert list((tmp_path / "joined").iterdir()) == []
    monkeypatch.undo()
    assert len(join(two, tmp_path / "joined").dataset.prompts) == 15
    with pytest.raises(InputError, match="cannot be written"):
        join(two, two[0] / sweep.DATASET_FILE / "below a file")


def test_a_joined_sweep_has_no_shards_to_merge(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "joined"
    out.mkdir()
    assert cli.main(["study", "join", *map(str, two), "--out", str(out)]) == 0
    assert "1 prompts were left out" in capsys.readouterr().out
    assert cli.main(["study", "merge", "--out", str(out)]) == 2
    assert "is a joined sweep" in capsys.readouterr().err
    third = tiny_scenes_prompts(6, {"train": 2, "calibration": 0, "test": 0}, SEEDS)
    with pytest.MonkeyPatch.context() as patch:
        finished_sweep(tmp_path / "third", third, patch)
    again = join([out, tmp_path / "third"], tmp_path / "twice").dataset
    assert len(again.prompts) == 17
    assert [part["command"] for part in again.provenance["joined"][0]["joined"]] == ["first", "more"]


def test_a_gpu_that_is_not_there_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr(getattr(torch, "accelerator", torch.cuda), "is_available", lambda: False)
    with pytest.raises(InputError, match="finds no GPU"):
        load_model(tmp_path, tmp_path, tmp_path / "model.safetensors", "gpu")


def identity(precision: str) -> Identity:
    return Identity("a", "b", precision, ModelSampling(), ())


def test_on_a_gpu_the_precision_is_comfyuis_or_fp32(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model.safetensors"
    model.touch()
    command = ["study", "sweep", "--checkpoint", str(model), "--out", str(tmp_path / "s"), "--device", "gpu"]
    assert cli.main([*command, "--dtype", "bf16"]) == 2
    assert "bf16 is for the CPU" in capsys.readouterr().err
    for more, dtype in (((), "host"), (("--dtype", "fp32"), "fp32")):
        given = cli.build_parser().parse_args([*command, *more, "--host", str(tmp_path)])
        assert commands._sampling(given, "karras").dtype == dtype
    assert Sampling(dtype="host").setting(identity("fp16")).precision == "fp16"
    assert Sampling(dtype="bf16").setting(identity("fp32")).precision == "bf16"
    assert Sampling().setting(identity("fp32")).precision == "fp32"


def test_sweeps_of_two_devices_do_not_join(two: tuple[Path, Path]) -> None:
    """A sweep that does not name its device is of before they had a choice."""
    data = SweepDataset.load(two[1] / sweep.DATASET_FILE)
    assert data.provenance["device"] == "cpu"
    replace(data, provenance={**data.provenance, "device": "NVIDIA H100"}).save(two[1] / sweep.DATASET_FILE)
    with pytest.raises(InputError, match="device NVIDIA H100, first with cpu"):
        join(two, two[0].with_name("joined"))


def test_a_sweep_needs_a_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    none = [word for split in COUNTS for word in (f"--{split}", "0")]
    assert cli.main(["study", "sweep", "--out", str(tmp_path / "s"), *none]) == 2
    assert "no prompt is left" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
