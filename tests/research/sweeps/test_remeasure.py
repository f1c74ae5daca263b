"""A sweep measured again from its pictures gives what measuring the pictures gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from budgetfusion_nodes.core.errors import InputError
from budgetfusion_nodes.metrics.d_sim_haarpsi import HaarPsiBackend
from budgetfusion_nodes.metrics.l_snr import NAME, l_snr
from budgetfusion_nodes.metrics.measure import Backends, measure
from research.sweeps.prompts import PromptList, StudyPrompt
from research.sweeps.remeasure import remeasure
from research.sweeps.strips import save_strip, strip_path

BACKENDS = Backends(HaarPsiBackend(), None)


@pytest.fixture
def swept(make_dataset, tmp_path):
    """(data set, its prompts in another order, kept pictures by (row, seed)); pictures that 8 bits hold exactly."""
    data = make_dataset(2, 2, 2)
    data = replace(data, grid=data.grid[-3:], shortfall=data.shortfall[:, :, -3:], l_snr=data.l_snr[:, :, -3:])
    order = [4, 0, 3, 1, 5, 2]
    prompts = PromptList(tuple(StudyPrompt(data.prompts[i], data.split[i], (1,), f"scene {i}") for i in order), {})
    pictures = {}
    for row, seed in np.argwhere(data.present):
        drawn = torch.Generator().manual_seed(int(row) * 10 + int(seed))
        images = torch.randint(0, 256, (3, 3, 64, 64), generator=drawn).float() / 255
        pictures[row, seed] = images
        save_strip(strip_path(tmp_path, order.index(row), int(data.seeds[row, seed])), images)
    return data, prompts, pictures


def test_every_trajectory_is_measured_on_its_own_pictures(swept, tmp_path):
    data, prompts, pictures = swept
    seen = []
    found = remeasure(data, prompts, tmp_path, BACKENDS, ("d_sim", "l_snr"), {"commit": "abc"}, seen.append)
    assert len(seen) == data.present.sum() == len(pictures)
    for (row, seed), images in pictures.items():
        expected = measure(images, images[-1:], BACKENDS, ("l_snr", "d_sim"))
        for column, metric in enumerate(("l_snr", "d_sim")):
            assert found.shortfall[row, seed, :, column] == pytest.approx(expected[metric].numpy(), abs=1e-5)
        assert found.l_snr[row, seed] == pytest.approx(l_snr(images).numpy(), abs=1e-5)
    assert (found.shortfall[data.present][:, -1, :2] == 0).all()
    assert found.backends == {"l_snr": NAME, "d_sim": "haarpsi", "i_clip": "i_clip-synthetic"}
    assert found.provenance["made"] == "synthetic", "what was known before is kept"
    assert found.provenance["measured_again"]["commit"] == "abc"
    assert found.provenance["measured_again"]["backends"] == {"l_snr": NAME, "d_sim": "haarpsi"}


def test_what_is_not_measured_again_stays(swept, tmp_path):
    data, prompts, _ = swept
    before = data.shortfall.copy()
    found = remeasure(data, prompts, tmp_path, BACKENDS, ("l_snr",))
    np.testing.assert_array_equal(found.shortfall[..., 1:], before[..., 1:])
    np.testing.assert_array_equal(data.shortfall, before)
    assert not np.allclose(found.shortfall[data.present][..., 0], before[data.present][..., 0])


@pytest.mark.parametrize("metrics", [(), ("l_snr", "sharpness")])
def test_unknown_metrics_are_refused(swept, tmp_path, metrics):
    data, prompts, _ = swept
    with pytest.raises(InputError, match=r"expected some of l_snr, d_sim, i_clip, got (none|sharpness)"):
        remeasure(data, prompts, tmp_path, BACKENDS, metrics)


def test_another_prompt_list_is_refused(swept, tmp_path):
    data, prompts, _ = swept
    with pytest.raises(InputError, match="does not hold"):
        remeasure(data, PromptList(prompts.prompts[1:], {}), tmp_path, BACKENDS, ("l_snr",))


def test_a_picture_that_was_not_kept_is_named(swept, tmp_path):
    data, prompts, _ = swept
    path = strip_path(tmp_path, 1, int(data.seeds[0, 0]))
    path.unlink()
    with pytest.raises(InputError, match=rf"{path.name} was not kept\. Sweep again with --keep-images"):
        remeasure(data, prompts, tmp_path, BACKENDS, ("l_snr",))
