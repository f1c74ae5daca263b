from __future__ import annotations

import numpy as np
import pytest
import torch

from research.bench.efficientnet import WIDTH, classes, features, load_weights

CATS = {281, 282, 285}
ESPRESSO = {967}


@pytest.mark.parametrize(("name", "wanted"), [("chelsea", CATS), ("coffee", ESPRESSO)])
def test_photographs_are_what_imagenet_calls_them(name, wanted):
    """A wrong padding, stride, norm or input range would not name them."""
    from skimage import data

    photo = np.ascontiguousarray(getattr(data, name)())
    side = min(photo.shape[:2])
    top, left = ((size - side) // 2 for size in photo.shape[:2])
    image = torch.from_numpy(photo[top : top + side, left : left + side]).permute(2, 0, 1)[None] / 255.0
    assert int(classes(image, load_weights()).argmax()) in wanted


def test_features_are_of_each_picture_alone():
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    together, weights = features(images, load_weights()), load_weights()
    assert together.shape == (3, WIDTH) and together.dtype == torch.float32
    torch.testing.assert_close(features(images[1:2], weights)[0], together[1], atol=1e-4, rtol=1e-4)
