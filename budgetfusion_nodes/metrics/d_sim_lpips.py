"""LPIPS (Zhang et al. 2018, arXiv 1801.03924), by the package `lpips` over a torchvision trunk that is on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.errors import BackendMissingError, InputError
from .images import MIN_SIDE
from .weights import load_state_dict, parameters_digest, require_package

LPIPS_TRUNKS = {"alex": "alexnet-owt-*", "vgg": "vgg16-*", "squeeze": "squeezenet1_1-*"}
"""File name patterns of torchvision's ImageNet weights in the torch hub cache, in the order of preference."""

LPIPS_MIN_SIDE = {"alex": 31, "vgg": MIN_SIDE, "squeeze": 17}  # below, a pooling layer has no output

_BYTES_PER_PIXEL = {"alex": 300, "vgg": 2600, "squeeze": 900}


class LpipsBackend:
    """1 - LPIPS. Takes any `lpips.LPIPS` model; `from_trunk` builds one from weight files on disk."""

    def __init__(self, model: nn.Module, net: str) -> None:
        if net not in LPIPS_TRUNKS:
            raise InputError(f"lpips: unknown network {net!r}. Choose one of {', '.join(LPIPS_TRUNKS)}.")
        self.name = f"lpips:{net}#{parameters_digest(model.state_dict())}"
        self.min_side = LPIPS_MIN_SIDE[net]
        self.bytes_per_pixel = _BYTES_PER_PIXEL[net]
        self.model = model.eval().requires_grad_(False)

    @classmethod
    def from_trunk(cls, trunk: Path, net: str = "alex") -> LpipsBackend:
        """The package's LPIPS: its bundled linear layers (v0.1) over a torchvision trunk file (.pth, .safetensors)."""
        require_package("lpips", "lpips")
        import lpips

        # pnet_rand keeps the package from fetching the trunk; every random weight is overwritten below.
        model = lpips.LPIPS(net=net, pretrained=True, pnet_rand=True, verbose=False)
        weights = load_state_dict(trunk)
        state = {}
        for key, random in model.net.state_dict().items():  # "slice3.6.weight" holds torchvision's "features.6.weight"
            source = "features." + key.split(".", 1)[1]
            if source not in weights or weights[source].shape != random.shape:
                raise InputError(
                    f"lpips: {trunk.name} does not hold the weights of torchvision's {net} network ({source} is "
                    "missing or has another shape). Replace the file by the one torchvision offers."
                )
            state[key] = weights[source]
        model.net.load_state_dict(state)
        return cls(model, net)

    def prepare(self, reference: Tensor) -> Tensor:
        return reference

    def similarity(self, x: Tensor, reference: Tensor) -> Tensor:
        self.model.to(x.device)
        distance = self.model(x.float(), reference.expand_as(x).float(), normalize=True)  # [B, 1, 1, 1]
        return 1.0 - distance.flatten().to(x.dtype)

    def to(self, device: torch.device) -> None:
        self.model.to(device)


def find_lpips_trunk(net: str) -> Path | None:
    """The torchvision weights of this network in the torch hub cache ($TORCH_HOME/hub/checkpoints), or None."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    found = [p for p in sorted(folder.glob(LPIPS_TRUNKS[net])) if p.suffix in (".pth", ".safetensors")]
    return found[0] if found else None


def load_lpips(net: str | None) -> LpipsBackend:
    """net: None takes the first of LPIPS_TRUNKS that is on disk. BackendMissingError, InputError."""
    require_package("lpips", "lpips")
    nets = (net,) if net else tuple(LPIPS_TRUNKS)
    for candidate in nets:
        if candidate not in LPIPS_TRUNKS:
            raise InputError(f"lpips: unknown network {candidate!r}. Choose one of {', '.join(LPIPS_TRUNKS)}.")
        trunk = find_lpips_trunk(candidate)
        if trunk is not None:
            return LpipsBackend.from_trunk(trunk, candidate)
    raise BackendMissingError(
        f"lpips: no network weights ({' or '.join(LPIPS_TRUNKS[n] + '.pth' for n in nets)}) in "
        f"{Path(torch.hub.get_dir()) / 'checkpoints'}. Put torchvision's ImageNet weights there, or choose haarpsi, "
        "which needs none."
    )
