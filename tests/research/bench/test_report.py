"""From picture sets on disk to the written report, without a host: true scenes plus noise that falls with the count."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.metrics.measure import Backends
from budgetfusion_nodes.predictor.fit import FitOptions, fit_planner
from budgetfusion_nodes.predictor.planner_file import save_planner
from research.bench.analysis import Material
from research.bench.catalogue import NESTED, STOCK, Catalogue, Method, open_prompts, save_conditioning
from research.bench.measures import HELD_OUT, as_dataset, load_curves, load_values, measure_all
from research.bench.report import write_report
from research.bench.settings import PROMPT_SEED, SETTINGS
from research.sweeps.picture_sets import PictureSets, word_key
from research.sweeps.prompts import calibration_scenes
from research.tiny_scenes_training.classifier import to_tensor
from research.tiny_scenes_training.renderer import render
from research.tiny_scenes_training.scene_check import scene_from_key

PROMPTS = 8
COUNTS = {STOCK: (2, 6, 10, 50), NESTED: (6, 10, 50)}
SCHEDULE = "nested 5@1.0"


def drawn(sets: PictureSets, steps: int, rng: np.random.Generator) -> torch.Tensor:
    scenes = [scene_from_key(p.key) for p in sets.prompts.prompts for _ in p.seeds]
    images = to_tensor(np.stack([render(scene, np.random.default_rng(i)) for i, scene in enumerate(scenes)]))
    noise = torch.from_numpy(rng.normal(size=images.shape)).float()
    return (images + noise * 0.5 * (1 / steps - 1 / 50)).clamp(0, 1)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory, make_dataset) -> tuple[PictureSets, Path]:
    """(picture sets of both schedules and a peer, a folder with a planner for the nested one)."""
    folder, planners = tmp_path_factory.mktemp("pictures"), tmp_path_factory.mktemp("planners")
    sets = PictureSets(folder / "eps_karras", open_prompts(folder, PROMPTS))
    sets.folder.mkdir()
    rng = np.random.default_rng(0)
    methods = [
        Method(family, str(n), n, word_key(family, str(n)), float(n)) for family, ns in COUNTS.items() for n in ns
    ]
    for method in methods:
        sets.save(method.key, 0, drawn(sets, method.steps, rng))
    peer = Method("EasyCache", "0.2 at 50", 50, word_key("peer"))
    sets.save(peer.key, 0, drawn(sets, 30, rng), [31.0] * PROMPTS * sets.seeds)
    data = make_dataset(20, 20, 5, counts=(6, 8, 10, 20, 50))
    Catalogue(data.setting, SCHEDULE, (*methods, peer), {"host": "0", "torch": "0", "device": "CPU"}, {}).save(
        sets.folder
    )
    save_conditioning(sets.folder, data.tokens[:PROMPTS].astype(np.float32), data.pooled[:PROMPTS])
    planner = fit_planner(replace(data, setting=replace(data.setting, schedule=SCHEDULE)), 0,
                          options=FitOptions(networks=1, epochs=2))  # fmt: skip
    save_planner(planners / "nested.safetensors", planner)
    return sets, planners


@pytest.fixture(scope="module")
def measured(material: tuple[PictureSets, Path]) -> PictureSets:
    measure_all(material[0])
    return material[0]


def test_nothing_is_measured_twice(measured: PictureSets) -> None:
    before = {path: path.stat().st_mtime_ns for path in (measured.folder / "measured").iterdir()}
    measure_all(measured)
    assert {path: path.stat().st_mtime_ns for path in (measured.folder / "measured").iterdir()} == before


def test_distances_fall_to_exactly_nothing(measured: PictureSets) -> None:
    catalogue = Catalogue.load(measured.folder)
    curves = load_curves(measured, list(catalogue.family(STOCK).values()), PROMPTS)
    assert curves.counts == COUNTS[STOCK] and curves.distances.shape[:3] == (PROMPTS, 2, 4)
    assert (curves.distances[:, :, -1] == 0.0).all()
    mean = curves.distances.mean(axis=(0, 1))  # [K, columns]
    assert (np.diff(mean, axis=0) < 0.0).all()


def test_distances_are_those_of_one_picture_at_a_time(measured: PictureSets) -> None:
    from budgetfusion_nodes.core.curves import METRICS
    from budgetfusion_nodes.metrics.measure import measure

    catalogue = Catalogue.load(measured.folder)
    methods = catalogue.family(STOCK)
    curves = load_curves(measured, list(methods.values()), PROMPTS)
    few, target = (measured.picture(methods[n].key, 3, 1)[None] for n in (6, 50))
    found = measure(few, target, Backends.from_values("tiny_scenes", "shipped"))
    expected = [float(found[metric]) for metric in METRICS]
    np.testing.assert_allclose(curves.distances[3, 1, 1, : -len(HELD_OUT)], expected, atol=1e-4)


def test_true_scenes_are_right_and_noise_is_not(measured: PictureSets) -> None:
    fine, coarse = (load_values(measured, word_key(STOCK, n), PROMPTS) for n in ("50", "2"))
    assert fine.wrong.mean() < 0.06 and coarse.l_snr.mean() != pytest.approx(fine.l_snr.mean(), abs=0.5)
    assert fine.features.shape == (PROMPTS, 2, 1280)


@pytest.fixture
def empty(measured: PictureSets, tmp_path: Path) -> PictureSets:
    (tmp_path / "flow").mkdir()
    return PictureSets(tmp_path / "flow", measured.prompts)


def test_the_report_is_written_from_the_files_alone(
    measured: PictureSets, empty: PictureSets, material, tmp_path: Path
) -> None:
    both = {name: SETTINGS[name] for name in ("eps_karras", "flow")}
    lines = write_report(both, {"eps_karras": measured, "flow": empty}, material[1], tmp_path, 0)
    page, content = (tmp_path / "benchmark.md").read_text(), json.loads((tmp_path / "bench.json").read_text())
    found = content["settings"]["eps_karras"]
    assert found["schedules"][STOCK]["planner"] is None and found["schedules"][NESTED]["planner"] == "planner"
    assert len(found["schedules"][NESTED]["rows"]) == len(found["schedules"][NESTED]["splits"]) == 9
    assert {row["family"] for row in found["methods"]} >= {
        STOCK,
        NESTED,
        "EasyCache",
        "nested, planned",
        "stock, one count",
    }
    (peer,) = (row for row in found["methods"] if row["family"] == "EasyCache")
    assert peer["evaluations"] == 31.0
    assert len(lines) == len(content["goals"]) and "| EasyCache 0.2 at 50 | 8 | 31.0 |" in page
    for picture in ("eps_karras", "composition"):
        assert (tmp_path / "images" / "benchmark" / f"{picture}.png").stat().st_size > 1000
        assert f"images/benchmark/{picture}.png" in page
    assert "{{" not in page and "{%" not in page
    assert "Tiny Scenes Flow, euler / simple, cfg 3: not measured." in page


def test_without_any_measured_picture_there_is_no_report(empty: PictureSets, material, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing is rendered"):
        write_report({"flow": SETTINGS["flow"]}, {"flow": empty}, material[1], tmp_path, 0)


def test_prompts_that_a_planner_of_the_setting_was_calibrated_on_are_left_out(
    measured: PictureSets, material, tmp_path: Path
) -> None:
    shutil.copy(material[1] / "nested.safetensors", tmp_path)
    counts = {"train": 0, "calibration": 2, "test": PROMPTS - 2}
    source = {"grammar": "tiny_scenes", "seed": PROMPT_SEED, "prompts": counts}
    (tmp_path / "nested.json").write_text(json.dumps({"source": source}))
    others = {**source, "prompts": {**counts, "calibration": PROMPTS, "test": 0}}
    (tmp_path / "of_another_setting.json").write_text(json.dumps({"source": others}))
    known = calibration_scenes(source)
    rows = Material(SETTINGS["eps_karras"], measured, tmp_path, 0).rows
    assert rows.tolist() == [i for i, p in enumerate(measured.prompts.prompts) if p.key not in known]
    assert len(rows) == PROMPTS - 2


def test_a_picture_set_is_data_to_transfer_planners_on(measured: PictureSets) -> None:
    catalogue = Catalogue.load(measured.folder)
    curves = load_curves(measured, list(catalogue.family(STOCK).values()), PROMPTS)
    data = as_dataset(measured, curves, catalogue, 0)
    assert len(data.rows("calibration")) == len(data.rows("test")) == PROMPTS // 2
    np.testing.assert_allclose(data.shortfall, curves.distances[..., :3], rtol=1e-6)


def test_rows_lie_where_the_format_says(measured: PictureSets, tmp_path: Path) -> None:
    sets = PictureSets(tmp_path, measured.prompts)
    assert sets.covered("a") == 0
    images = torch.rand(2 * PROMPTS, 3, 8, 8)
    sets.save("a", 0, images, [float(i) for i in range(2 * PROMPTS)])
    assert sets.covered("a") == PROMPTS
    torch.testing.assert_close(sets.picture("a", 5, 1), images[11].half().float())
    np.testing.assert_allclose(sets.evaluations("a", 4), [0.5, 2.5, 4.5, 6.5])
