"""Shift-tolerant LPIPS (Ghildyal & Liu, ECCV 2022, arXiv 2207.13686): 1 minus a distance of deep features.

As in LPIPS, the features of five depths of a trunk are scaled to unit length at each place, and their squared
differences are weighted by trained heads, averaged over the picture and summed. The trunk is made tolerant of small
shifts: its strides are taken after a binomial blur over reflected borders (Zhang 2019, arXiv 1904.11486), and AlexNet's
first convolution has stride 1.

Trunk and heads are the authors' own weights, which the package stlpips-pytorch carries (BSD 2-Clause). Only its weight
files are read: the forward pass is this module's, and the blur is two averages of two neighbours.
"""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, pad

from ..core.errors import BackendMissingError, InputError
from .weights import file_digest, load_state_dict, require_package

PACKAGE = "stlpips_pytorch"
NETS = ("alex", "vgg")
"""The default first; docs/metrics.md has what each of them sees."""

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of RGB in [-1, 1], as in LPIPS: the mean and deviation of ImageNet."""
EPS = 1e-10
BORDER = 2
"""Pixels of reflected border before each blur."""
BAND = 1 << 22
"""Feature values that are compared at once: keeps what is computed on the way small beside the features."""
CHANNELS_AT_ONCE = 16

_MIN_SIDE = {"alex": 21, "vgg": 18}  # below, a border would be wider than what it reflects
_BYTES_PER_PIXEL = {"alex": 500, "vgg": 1500}  # seen: 415 and 1318, resident on the CPU


class Blur(nn.Module):
    """Binomial filter [1, 2, 1] / 4 along both sides with stride 2: two averages of two neighbours."""

    def forward(self, x: Tensor) -> Tensor:
        return avg_pool2d(avg_pool2d(pad(x, (BORDER,) * 4, mode="reflect"), 2, stride=1), 2, stride=2)


class BlurredConvolution(nn.Sequential):
    """A convolution of stride 1, blur and ReLU, a few channels at a time: the whole output before the blur would be the
    largest tensor of all."""

    def forward(self, input: Tensor) -> Tensor:
        convolution, blur = self[0], self[1]
        assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
        channels = zip(
            convolution.weight.split(CHANNELS_AT_ONCE), convolution.bias.split(CHANNELS_AT_ONCE), strict=True
        )
        parts = [blur(conv2d(input, w, b, padding=convolution.padding)) for w, b in channels]
        return torch.cat(parts, dim=1).relu_()


def _alexnet() -> list[nn.Sequential]:
    """Five depths of AlexNet; the numbers are the package's names of the layers."""

    def convolution(channels_in: int, channels_out: int, size: int, padding: int) -> nn.Conv2d:
        return nn.Conv2d(channels_in, channels_out, size, padding=padding)

    def pooled() -> dict[str, nn.Module]:
        return {"pool": nn.MaxPool2d(3, stride=1), "blur": Blur()}

    def layer(number: int, module: nn.Module) -> dict[str, nn.Module]:
        return {str(number): module, "relu": nn.ReLU(inplace=True)}

    return [
        BlurredConvolution(OrderedDict({"0": convolution(3, 64, 11, 2), "blur": Blur()})),
        nn.Sequential(OrderedDict({**pooled(), **layer(5, convolution(64, 192, 5, 2))})),
        nn.Sequential(OrderedDict({**pooled(), **layer(9, convolution(192, 384, 3, 1))})),
        nn.Sequential(OrderedDict(layer(11, convolution(384, 256, 3, 1)))),
        nn.Sequential(OrderedDict(layer(13, convolution(256, 256, 3, 1)))),
    ]


def _vgg16() -> list[nn.Sequential]:
    """Five depths of VGG-16; the numbers are the package's names of the layers."""
    slices = []
    number, channels = 0, 3
    for width, layers in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        modules: dict[str, nn.Module] = {}
        if slices:
            modules = {"pool": nn.MaxPool2d(2, stride=1), "blur": Blur()}
            number += 2
        for _ in range(layers):
            modules[str(number)] = nn.Conv2d(channels, width, 3, padding=1)
            modules[f"relu{number}"] = nn.ReLU(inplace=True)
            number, channels = number + 2, width
        slices.append(nn.Sequential(OrderedDict(modules)))
    return slices


_TRUNKS: dict[str, Callable[[], list[nn.Sequential]]] = {"alex": _alexnet, "vgg": _vgg16}


class ShiftTolerantLpips(nn.Module):
    """Trunk and heads of one network."""

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str) -> None:
        super().__init__()
        self.slices = nn.ModuleList(_TRUNKS[net]())
        widths = [64, 192, 384, 256, 256] if net == "alex" else [64, 128, 256, 512, 512]
        self.heads = nn.ParameterList(nn.Parameter(torch.zeros(width)) for width in widths)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)

    def load_package_weights(self, state: dict[str, Tensor]) -> None:
        """Tensors named as in the package. ValueError that names the first one that is missing or misshapen."""
        named = {
            f"net.slice{i + 1}.{key}": p for i, part in enumerate(self.slices) for key, p in part.named_parameters()
        }
        named |= {f"lin{i}.model.1.weight": head for i, head in enumerate(self.heads)}
        for key, parameter in named.items():
            found = state.get(key)
            if not isinstance(found, Tensor) or found.numel() != parameter.numel():
                raise ValueError(f"{key} is missing or has another shape")
            if not bool(torch.isfinite(found).all()):
                raise ValueError(f"{key} holds values that are not numbers")
            parameter.data.copy_(found.reshape(parameter.shape))

    def features(self, x: Tensor) -> list[Tensor]:
        """`[B, C, h, w]` of each depth, for `[B, 3, H, W]` in [0, 1]."""
        x = (2.0 * x - 1.0 - self.shift) / self.scale
        found = []
        for part in self.slices:
            # The last layer of a slice writes into its own input only, so `found` stays as it is.
            x = part(x)
            found.append(x)
        return found

    def distance(self, x: Tensor, reference: list[Tensor]) -> Tensor:
        """`[B]` of `[B, 3, H, W]` in [0, 1] and the `unit` features of 1 or B references."""
        total = x.new_zeros(x.shape[0])
        for a, b, head in zip(self.features(x), reference, self.heads, strict=True):
            total += _weighted_mean_square(a, b, head)
        return total


def _weighted_mean_square(a: Tensor, b: Tensor, head: Tensor) -> Tensor:
    """`[B]`: mean over places of the weighted squared difference of features `[B, C, h, w]` made `unit` and of unit
    features `[1 or B, C, h, w]`, in bands of rows."""
    rows = max(1, BAND // (a.shape[0] * a.shape[1] * a.shape[3]))
    total = a.new_zeros(a.shape[0])
    for one, other in zip(a.split(rows, dim=2), b.split(rows, dim=2), strict=True):
        difference = unit(one) - other
        total += torch.einsum("bchw,c->b", difference.square_(), head)
    return total / (a.shape[2] * a.shape[3])


def unit(features: Tensor) -> Tensor:
    """`[B, C, h, w]` scaled to length 1 at each place."""
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + EPS)


class StLpipsBackend:
    """1 - shift-tolerant LPIPS."""

    def __init__(self, model: ShiftTolerantLpips, net: str, digest: str) -> None:
        self.name = f"st_lpips:{net}#{digest}"
        self.min_side, self.bytes_per_pixel = _MIN_SIDE[net], _BYTES_PER_PIXEL[net]
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def from_file(cls, path: Path, net: str) -> StLpipsBackend:
        """From one of the package's weight files. InputError if it is damaged or of another network."""
        state, model = load_state_dict(path), ShiftTolerantLpips(net)
        try:
            model.load_package_weights(state)
        except (ValueError, AttributeError) as error:
            raise InputError(
                f"st_lpips: {path.name} does not hold the weights of the {net} network ({error}). Install "
                "stlpips-pytorch again."
            ) from error
        return cls(model, net, file_digest(path))

    def prepare(self, reference: Tensor) -> list[Tensor]:
        self.model.to(reference.device)
        return [unit(features) for features in self.model.features(reference.float())]

    def similarity(self, x: Tensor, reference: list[Tensor]) -> Tensor:
        self.model.to(x.device)
        return 1.0 - self.model.distance(x.float(), reference).to(x.dtype)

    def to(self, device: torch.device) -> None:
        self.model.to(device)


def find_st_lpips(net: str) -> Path | None:
    """The package's weight file of this network, without importing the package; None where it is not there."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    files = [Path(folder) / "weights" / "vST0.0" / f"{net}_shift_tolerant.pth" for folder in folders or ()]
    return next((file for file in files if file.is_file()), None)


def load_st_lpips(net: str | None) -> StLpipsBackend:
    """net: None takes the first of NETS. BackendMissingError, InputError."""
    net = net or NETS[0]
    if net not in NETS:
        raise InputError(f"st_lpips: unknown network {net!r}. Choose one of {', '.join(NETS)}.")
    require_package(PACKAGE, "st_lpips")
    path = find_st_lpips(net)
    if path is None:
        raise BackendMissingError(
            f"st_lpips: the installed stlpips-pytorch has no weights of the {net} network. Install version 0.0.2, or "
            "choose another backend."
        )
    return StLpipsBackend.from_file(path, net)
