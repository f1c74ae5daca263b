"""Seconds of each metric for one picture beside a reference that was prepared before, as Markdown.

    python -m research.bench.metric_seconds [--device cuda] [--open-clip ViT-L-14] [--random lpips:vgg dreamsim]

Median of several runs after one that is not counted, with the device waited for. On a CPU the processor's seconds of
this process, so that what else runs does not count: with OMP_NUM_THREADS=1 those of an idle core. Needs torch,
torchvision and numpy, and of piq, stlpips-pytorch and open_clip_torch what is to be timed; a backend that is not there
is left out and named.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from budgetfusion_nodes.core.errors import BudgetFusionError
from budgetfusion_nodes.metrics.backends import load_d_sim
from budgetfusion_nodes.metrics.d_sim_dreamsim import DreamSimBackend
from budgetfusion_nodes.metrics.d_sim_lpips import LpipsBackend
from budgetfusion_nodes.metrics.d_sim_st_lpips import NETS
from budgetfusion_nodes.metrics.encoders import OpenClipImageEncoder, default_image_encoder
from budgetfusion_nodes.metrics.interfaces import DSimBackend, ImageEncoder
from budgetfusion_nodes.metrics.measure import Backends, Series

SIZES = (512, 1024, 2048)
D_SIM = ("dreamsim", *(f"st_lpips:{net}" for net in NETS), "lpips:alex", "haarpsi", "tiny_scenes")
LIMIT = 60.0
"""Seconds of one run; a size that would take longer, by its pixels, is left out."""


def timed(call: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median seconds of `call` after one run that is not counted."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def lap() -> float:
        _wait(device)
        started = clock()
        call()
        _wait(device)
        return clock() - started

    lap()
    return float(np.median([lap() for _ in range(repeats)]))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rows_of(
    backends: Backends, metric: str, sizes: Sequence[int], device: torch.device, repeats: int
) -> tuple[list[float | None], float]:
    """Seconds at each size, None where left out, and the largest working memory in GiB (a GPU's only, else NaN)."""
    found: list[float | None] = []
    expected, peak = 0.0, float("nan")
    for place, size in enumerate(sizes):
        if expected > LIMIT:
            found.append(None)
            continue
        generator = torch.Generator().manual_seed(size)
        reference, image = torch.rand((2, 1, size, size, 3), generator=generator).to(device)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        series = Series(reference, backends, (metric,), device)
        found.append(timed(lambda s=series, x=image: s.add(x), device, repeats))
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device) / 2**30
        if place + 1 < len(sizes):
            expected = (found[-1] or 0.0) * (sizes[place + 1] / size) ** 2
    return found, peak


def table(options: argparse.Namespace) -> str:
    device = torch.device(options.device)
    piq = load_d_sim("haarpsi")
    jobs: list[tuple[str, Backends, str]] = [("L-SNR", Backends(piq, None), "l_snr")]
    for name in options.backends:
        try:
            jobs.append((f"D-SIM {name}", Backends(load_d_sim(name), None), "d_sim"))
        except BudgetFusionError as error:
            sys.stderr.write(f"left out: {error}\n")
    jobs += [(f"D-SIM {name}, random weights", Backends(_random_d_sim(name), None), "d_sim") for name in options.random]
    encoders: list[ImageEncoder] = [default_image_encoder(), *map(_random_encoder, options.open_clip)]
    jobs += [(f"I-CLIP {e.name.partition('#')[0]}", Backends(piq, e), "i_clip") for e in encoders]
    lines = [
        f"| seconds on {_called(device)} | {' | '.join(map(str, options.sizes))} | peak GiB |",
        f"| --- |{' ---: |' * (len(options.sizes) + 1)}",
    ]
    for name, backends, metric in jobs:
        seconds, peak = rows_of(backends, metric, options.sizes, device, options.repeats)
        backends.to(torch.device("cpu"))
        cells = ["-" if value is None else f"{value:.4f}" for value in seconds]
        cells.append("" if peak != peak else f"{peak:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
        sys.stderr.write(lines[-1] + "\n")
    return "\n".join(lines)


def _random_encoder(architecture: str) -> OpenClipImageEncoder:
    """open_clip's model with random weights: they do not change the time."""
    import open_clip

    model: Any = open_clip.create_model(architecture, pretrained=None)
    size = model.visual.image_size
    side = size[0] if isinstance(size, (tuple, list)) else size
    return OpenClipImageEncoder(model, int(side), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), architecture)


def _random_d_sim(name: str) -> DSimBackend:
    """The genuine architecture with random weights, which do not change the time."""
    kind, _, net = name.partition(":")
    if kind == "lpips":
        import lpips

        return LpipsBackend(lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False), net)
    return DreamSimBackend(_DreamSimTowers(), "ensemble")


class _DreamSimTowers(torch.nn.Module):
    """The three ViT-B/16 of DreamSim's ensemble (arXiv 2306.09344) without its adapters."""

    def __init__(self) -> None:
        super().__init__()
        import open_clip

        models: list[Any] = [open_clip.create_model("ViT-B-16", pretrained=None) for _ in range(3)]
        self.towers = torch.nn.ModuleList(model.visual for model in models)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 3, 224, 224] -> [B, 1536]."""
        return torch.cat([tower(x) for tower in self.towers], dim=-1)


def _called(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"a CPU ({threads} thread{'' if threads == 1 else 's'}, {platform.machine()})"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="metric_seconds", description="Seconds of each metric for one picture, as Markdown."
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, metavar="PIXELS", help="default: %(default)s")
    parser.add_argument("--backends", nargs="*", default=D_SIM, metavar="NAME", help="default: %(default)s")
    parser.add_argument("--open-clip", nargs="*", default=(), metavar="MODEL", help="also time these, such as ViT-L-14")
    parser.add_argument(
        "--random",
        nargs="*",
        default=(),
        metavar="NAME",
        help="also time these with random weights: lpips:NET, dreamsim",
    )
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    sys.stdout.write(table(parser.parse_args(arguments)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
