from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from budgetfusion_nodes.core.curves import quality
from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.predictor.dataset import (
    ABSENT,
    ARRAYS,
    SweepDataset,
    merge_datasets,
    true_quality,
    true_shortfall,
)

SCALE = (6.0, 0.4, 0.2)


@pytest.fixture(scope="module")
def dataset(make_dataset) -> SweepDataset:
    return make_dataset(12, 6, 6)


def part(data: SweepDataset, rows) -> SweepDataset:
    arrays = {name: getattr(data, name)[rows] for name in ARRAYS}
    names = {name: tuple(np.array(getattr(data, name))[rows]) for name in ("prompts", "split")}
    return replace(data, **arrays, **{key: tuple(map(str, value)) for key, value in names.items()})


def one_seed(data: SweepDataset, column: int) -> SweepDataset:
    pick = slice(column, column + 1)
    return replace(data, seeds=data.seeds[:, pick], shortfall=data.shortfall[:, pick], l_snr=data.l_snr[:, pick])


def assert_same(a: SweepDataset, b: SweepDataset) -> None:
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for name in ("prompts", "split", "grid", "metrics", "setting", "backends", "provenance"):
        assert getattr(a, name) == getattr(b, name)


def test_a_data_set_survives_its_file(dataset, tmp_path):
    dataset.save(tmp_path / "d.safetensors")
    loaded = SweepDataset.load(tmp_path / "d.safetensors")
    assert_same(loaded, dataset)
    assert loaded.tokens.dtype == np.float16
    assert [p.name for p in tmp_path.iterdir()] == ["d.safetensors"]


def test_an_older_file_names_its_precision_in_its_provenance(dataset, tmp_path):
    path, spec = tmp_path / "d.safetensors", {"spec": {"sampling": {"dtype": "bf16"}}}
    for provenance, own, wanted in ((spec, "", "bf16"), (spec, "fp32", "fp32"), ({}, "", ""), ({"spec": 3}, "", "")):
        setting = replace(dataset.setting, precision=own)
        replace(dataset, provenance=provenance, setting=setting).save(path)
        assert SweepDataset.load(path).setting == replace(setting, precision=wanted)


def test_shards_merge_to_the_whole(dataset):
    shards = [part(dataset, slice(0, 9)), part(dataset, slice(9, 10)), part(dataset, slice(10, None))]
    assert_same(merge_datasets(shards), dataset)


def test_seeds_of_a_prompt_in_two_shards_are_joined_once(dataset):
    few = part(dataset, slice(0, 12))  # two seeds each
    merged = merge_datasets([one_seed(few, 0), one_seed(few, 1), one_seed(few, 0)])
    assert merged.seeds.shape == (12, 2)
    np.testing.assert_array_equal(merged.seeds, few.seeds[:, :2])
    np.testing.assert_array_equal(merged.shortfall, few.shortfall[:, :2])


def test_shards_of_different_token_length_are_padded(dataset):
    short = part(dataset, slice(0, 3))
    short = replace(short, tokens=short.tokens[:, :5], lengths=np.full(3, 5))
    merged = merge_datasets([short, part(dataset, slice(3, None))])
    assert merged.tokens.shape == dataset.tokens.shape
    assert merged.lengths[:4].tolist() == [5, 5, 5, 12]
    assert not merged.tokens[0, 5:].any()


def test_shards_that_do_not_belong_together_are_refused(dataset):
    with pytest.raises(InputError, match="differ in setting"):
        merge_datasets([dataset, replace(dataset, setting=replace(dataset.setting, cfg=9.0))])
    with pytest.raises(InputError, match="text encoders"):
        merge_datasets([dataset, replace(dataset, tokens=dataset.tokens[..., :3])])
    with pytest.raises(InputError, match="two splits"):
        merge_datasets([dataset, replace(dataset, split=("test",) * 24)])
    with pytest.raises(InputError, match="no shard"):
        merge_datasets([])


def test_splits_and_present_seeds(dataset):
    assert [len(dataset.rows(split)) for split in ("train", "calibration", "test")] == [12, 6, 6]
    assert dataset.present.sum(axis=1).tolist() == [2] * 18 + [4] * 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: {"prompts": ("same",) * 24}, "occurs twice"),
        (lambda d: {"split": ("train",) * 23}, "split"),
        (lambda d: {"split": ("holdout",) * 24}, "split"),
        (lambda d: {"grid": (2, 4)}, "shortfall has shape"),
        (lambda d: {"metrics": ("l_snr",)}, "shortfall has shape"),
        (lambda d: {"backends": {}}, "no backend"),
        (lambda d: {"seeds": np.full_like(d.seeds, ABSENT)}, "no seed at all"),
        (lambda d: {"seeds": np.abs(d.seeds)}, "negative or not finite"),
        (lambda d: {"shortfall": -d.shortfall}, "negative"),
        (lambda d: {"tokens": np.full_like(d.tokens, np.nan)}, "conditioning"),
        (lambda d: {"lengths": np.zeros(24, np.int64)}, "lengths"),
        (lambda d: {"pooled": d.pooled[:3]}, "pooled has shape"),
    ],
)
def test_damaged_data_are_refused(dataset, change, said):
    with pytest.raises(InputError, match=said):
        replace(dataset, **change(dataset))


def test_other_files_are_refused(dataset, tmp_path):
    path = tmp_path / "d.safetensors"
    with pytest.raises(InputError, match=r"d\.safetensors"):
        SweepDataset.load(path)
    dataset.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="study sweep"):
        SweepDataset.load(path)
    path.write_text("no data")
    with pytest.raises(InputError, match="study sweep"):
        SweepDataset.load(path)


def test_truth_equals_the_quality_of_the_rendered_counts(dataset):
    on_grid = np.array(dataset.grid) - dataset.grid[0]
    truth = true_quality(dataset, SCALE)
    assert truth.shape == (24, 4, 49)
    present = dataset.present
    np.testing.assert_allclose(truth[present][:, on_grid], quality(dataset.shortfall[present], SCALE), atol=1e-12)
    assert np.isnan(truth[~present]).all()
    assert (true_shortfall(dataset, SCALE)[present][:, -1] == 0.0).all()
