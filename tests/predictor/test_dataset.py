from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from budgetfusion_nodes.core.curves import quality
from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.predictor.dataset import (
    ABSENT,
    SweepDataset,
    true_quality,
    true_shortfall,
)

SCALE = (6.0, 0.4, 0.2)


@pytest.fixture(scope="module")
def dataset(make_dataset) -> SweepDataset:
    return make_dataset(12, 6, 6)


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


def test_truth_equals_the_quality_of_the_rendered_counts(dataset):
    on_grid = np.array(dataset.grid) - dataset.grid[0]
    truth = true_quality(dataset, SCALE)
    assert truth.shape == (24, 4, 49)
    present = dataset.present
    np.testing.assert_allclose(truth[present][:, on_grid], quality(dataset.shortfall[present], SCALE), atol=1e-12)
    assert np.isnan(truth[~present]).all()
    assert (true_shortfall(dataset, SCALE)[present][:, -1] == 0.0).all()
