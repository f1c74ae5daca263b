"""The D-SIM of the shipped models' pictures: open_clip's own features, and the order of changes as one sees them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from budgetfusion_nodes.core.errors import BackendMissingError
from budgetfusion_nodes.metrics.backends import load_d_sim
from budgetfusion_nodes.metrics.d_sim import d_sim
from budgetfusion_nodes.metrics.d_sim_tiny_scenes import TinyScenesBackend


def test_tiny_scenes_is_the_cosine_of_open_clips_own_intermediate_features(pictures, blurred) -> None:
    """Against open_clip's `forward_intermediates`, on pictures of the encoder's own size."""
    backend = load_d_sim("tiny_scenes")
    assert isinstance(backend, TinyScenesBackend)
    encoder, soft = backend.encoder, blurred(pictures, 1.0)
    mean, std = (torch.tensor(v)[None, :, None, None] for v in (encoder.mean, encoder.std))
    cells = []
    for x in (soft, pictures):
        found = encoder.model.visual.forward_intermediates((x - mean) / std, indices=[1], intermediates_only=True)
        (features,) = found["image_intermediates"]  # [B, width, 8, 8] after the second of three blocks
        cells.append(features.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean(dim=(3, 5)).flatten(1))
    expected = torch.nn.functional.cosine_similarity(*cells)
    assert torch.allclose(backend.similarity(soft, backend.prepare(pictures)), expected, atol=1e-5)


def test_tiny_scenes_ranks_changes_as_one_sees_them() -> None:
    """What HaarPSI, which compares pixel by pixel, has the other way round."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")

    def drawn(inside: torch.Tensor) -> torch.Tensor:
        return torch.where(inside, torch.tensor([0.9, 0.1, 0.1])[:, None, None], torch.ones(3, 64, 64))[None]

    def circle(x: float) -> torch.Tensor:
        return drawn((rows - 32) ** 2 + (columns - x) ** 2 < 14**2)

    here, ring = circle(32), drawn(((rows - 32) ** 2 + (columns - 32) ** 2 - 125).abs() < 71)
    worse = [circle(33), circle(35), ring, circle(48), here.flip(1)]  # moved a little, more, hollow, far, blue
    learned = [float(d_sim(here, other, "tiny_scenes")) for other in worse]
    assert all(after < before - 0.005 for before, after in pairwise(learned)), learned
    pixels = [float(d_sim(here, other, "haarpsi")) for other in worse]
    assert pixels[1] < pixels[2] < pixels[4]


def test_tiny_scenes_numbers_of_another_encoder_are_refused() -> None:
    name = load_d_sim("tiny_scenes").name
    assert load_d_sim(name).name == name
    with pytest.raises(BackendMissingError, match="weights of that kind here are tiny_scenes:"):
        load_d_sim("tiny_scenes:tiny_scenes_clip#00000000")
