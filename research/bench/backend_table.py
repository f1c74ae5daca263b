"""What each D-SIM backend sees: known distortions of the photographs that scikit-image ships, as Markdown.

    python -m research.bench.backend_table

Numbers are shares of the backend's own distance between two different photographs, mean over the photographs. Every
backend whose weights are on this machine is asked; docs/metrics.md has the table and what was concluded from it.
"""

from __future__ import annotations

import argparse
import functools
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from budgetfusion_nodes.core.errors import BudgetFusionError
from budgetfusion_nodes.metrics.backends import load_d_sim
from budgetfusion_nodes.metrics.d_sim import d_sim
from budgetfusion_nodes.metrics.d_sim_st_lpips import NETS
from budgetfusion_nodes.metrics.interfaces import DSimBackend

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "hubble_deep_field")
"""Colour photographs inside scikit-image's wheel; nothing is fetched."""
SIDE = 288
"""Of the square that is measured, at the photograph's own pixels; the smallest photograph is 300 high."""
MARGIN = 4
NAMES = ("dreamsim", *(f"st_lpips:{net}" for net in NETS), "lpips:alex", "lpips:vgg", "haarpsi", "tiny_scenes")

Picture = Tensor
"""`[1, 3, SIDE, SIDE]` in [0, 1]."""


@dataclass(frozen=True)
class Distortion:
    kind: str
    level: str
    apply: Callable[[Picture, int], Picture]
    """Of the photograph's picture and number."""

    @property
    def name(self) -> str:
        return f"{self.kind} {self.level}"


# -------------------------------------------------------------------------------------------------------- distortions


@functools.lru_cache
def read_photograph(name: str, right: int = 0) -> Picture:
    """The middle of a photograph, its window moved by `right` pixels (-MARGIN to MARGIN)."""
    import skimage
    from PIL import Image

    file = next((Path(skimage.__file__).parent / "data").glob(f"{name}.*"))
    pixels = np.asarray(Image.open(file).convert("RGB"), dtype=np.float32) / 255
    top, left = (pixels.shape[0] - SIDE) // 2, (pixels.shape[1] - SIDE) // 2 + right
    window = np.ascontiguousarray(pixels[top : top + SIDE, left : left + SIDE])
    return torch.from_numpy(window).permute(2, 0, 1)[None]


def blur(x: Picture, sigma: float) -> Picture:
    radius = int(4 * sigma + 0.5)
    t = torch.arange(-radius, radius + 1, dtype=x.dtype)
    kernel = torch.exp(-t.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    wide = pad(x, (radius,) * 4, mode="reflect")
    return conv2d(conv2d(wide, kernel, groups=3), kernel.transpose(2, 3), groups=3).clamp(0, 1)


def noise(x: Picture, sigma: float) -> Picture:
    return (x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)


def jpeg(x: Picture, quality: int) -> Picture:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((x[0].permute(1, 2, 0) * 255).round().byte().numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.asarray(Image.open(buffer), dtype=np.float32) / 255).permute(2, 0, 1)[None]


def hue(x: Picture, degrees: float) -> Picture:
    """Turned about the grey axis of RGB (Rodrigues), which keeps the mean of the channels."""
    angle = torch.deg2rad(torch.tensor(degrees))
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / 3**0.5
    turn = angle.cos() * torch.eye(3) + angle.sin() * cross + (1 - angle.cos()) * torch.full((3, 3), 1 / 3)
    return torch.einsum("ij,bjhw->bihw", turn, x).clamp(0, 1)


def swapped(x: Picture, number: int, share: float) -> Picture:
    """A disc in the middle holds another photograph; share: its diameter over the side."""
    other = read_photograph(PHOTOGRAPHS[(number + 1) % len(PHOTOGRAPHS)])
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    radius = ((rows - SIDE / 2).square() + (columns - SIDE / 2).square()).sqrt()
    return torch.lerp(x, other, ((share * SIDE / 2 - radius) / 2).clamp(0, 1))


def distortions() -> list[Distortion]:
    found = [Distortion("blur", f"{s:g} px", lambda x, _, s=s: blur(x, s)) for s in (0.7, 1.5, 3.0)]
    found += [Distortion("noise", f"{s:g}", lambda x, _, s=s: noise(x, s)) for s in (0.02, 0.05, 0.1)]
    found += [Distortion("JPEG", f"{q}", lambda x, _, q=q: jpeg(x, q)) for q in (70, 30, 10)]
    found += [
        Distortion("shift", f"{n} px", lambda _, number, n=n: read_photograph(PHOTOGRAPHS[number], n))
        for n in (1, 2, 3, 4)
    ]
    found += [Distortion("hue", f"{d} degrees", lambda x, _, d=d: hue(x, d)) for d in (10, 30, 90)]
    found += [
        Distortion("swapped object", f"1/{round(1 / s)}", lambda x, n, s=s: swapped(x, n, s)) for s in (1 / 6, 1 / 3)
    ]
    return found


MORE_VISIBLE = ("blur 3 px", "JPEG 10", "hue 90 degrees", "swapped object 1/3")
"""What is further from the original than a shift of 1 to 4 pixels, which one sees only side by side."""

# ------------------------------------------------------------------------------------------------------------- tables


@torch.no_grad()
def distances(backend: DSimBackend) -> tuple[list[str], np.ndarray]:
    """Names of the distortions and `[P, D]` shares of the mean distance between two different photographs."""
    pictures, known = [read_photograph(name) for name in PHOTOGRAPHS], distortions()
    rows, others = [], []
    for number, picture in enumerate(pictures):
        prepared = backend.prepare(picture)
        changed = [distortion.apply(picture, number) for distortion in known]
        row = [1 - float(backend.similarity(x, prepared)) for x in (*changed, pictures[number - 1])]
        rows.append(row[:-1])
        others.append(row[-1])
    return [distortion.name for distortion in known], np.array(rows) / np.mean(others)


def right_order(names: Sequence[str], table: np.ndarray) -> float:
    """Share of the pairs in which the stronger distortion has the larger distance: levels of one kind, and each shift
    against each of MORE_VISIBLE."""
    kinds = [name.rpartition(" ")[0] if not name.endswith(("px", "degrees")) else name.split(" ")[0] for name in names]
    pairs = [(i, i + 1) for i in range(len(names) - 1) if kinds[i] == kinds[i + 1]]
    pairs += [(i, names.index(m)) for i, kind in enumerate(kinds) if kind == "shift" for m in MORE_VISIBLE]
    return float(np.mean([table[:, weak] < table[:, strong] for weak, strong in pairs]))


def disc(size: int, column: float, colour: Sequence[float], hollow: bool = False) -> Tensor:
    """`[1, 3, size, size]`: a disc of 7/16 of the side on white, as models of simple scenes draw it."""
    n = 4 * size
    rows, columns = torch.meshgrid(torch.arange(n) / 4, torch.arange(n) / 4, indexing="ij")
    radius = ((rows - size / 2).square() + (columns - column).square()).sqrt() / size
    inside = (radius < 7 / 32) & (radius > (9 / 64 if hollow else -1))
    image = torch.where(inside, torch.tensor(colour)[:, None, None], torch.ones(3, n, n))
    return interpolate(image[None], size=(size, size), mode="area")


def disc_distances(backend: DSimBackend, size: int = 64) -> dict[str, float]:
    """Of a red disc from changed ones, as shares of the distance of an empty picture."""
    red, middle = (0.9, 0.1, 0.1), size / 2
    here = disc(size, middle, red)
    changed = {
        "moved by 1 pixel": disc(size, middle + 1, red),
        "moved by 3 pixels": disc(size, middle + 3, red),
        "moved by 16 pixels": disc(size, middle + 16, red),
        "a ring": disc(size, middle, red, hollow=True),
        "blue": disc(size, middle, (0.1, 0.1, 0.9)),
    }
    gone = 1 - float(d_sim(torch.ones_like(here), here, backend))
    return {name: (1 - float(d_sim(image, here, backend))) / gone for name, image in changed.items()}


def markdown(backends: Sequence[DSimBackend]) -> str:
    tables = [distances(backend) for backend in backends]
    names = tables[0][0]
    head = ["", *(backend.name.partition("#")[0] for backend in backends)]
    lines = [_row(head), _row(["---", *["---:"] * len(backends)])]
    for column, name in enumerate(names):
        lines.append(_row([name, *(f"{table[:, column].mean():.1%}" for _, table in tables)]))
    lines.append(_row(["**right order**", *(f"**{right_order(names, table):.0%}**" for _, table in tables)]))
    discs = [disc_distances(backend) for backend in backends]
    lines += ["", _row(["a red disc, 64 x 64", *head[1:]]), _row(["---", *["---:"] * len(backends)])]
    lines += [_row([change, *(f"{found[change]:.0%}" for found in discs)]) for change in discs[0]]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="backend_table", description="What each D-SIM backend sees, as Markdown.")
    parser.add_argument("--backends", nargs="+", default=NAMES, metavar="NAME", help="default: %(default)s")
    found = []
    for name in parser.parse_args(arguments).backends:
        try:
            found.append(load_d_sim(name))
        except BudgetFusionError as error:
            sys.stderr.write(f"left out: {error}\n")
    if not found:
        return 1
    sys.stdout.write(markdown(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
