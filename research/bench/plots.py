"""The report's pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from research.sweeps.picture_sets import PictureSets

from .catalogue import NESTED, STOCK, Catalogue
from .comparison import METRICS, NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENLARGED = 2
STRIP_ROWS = 3
STRIP_COUNTS = (6, 8, 10, 13, 20, 50)
MARKS = ".xv^<>dP"
"""Of the peers."""
LABEL = 14
"""Pixels for the numbers above a strip."""


def draw_metrics(found: Mapping[str, Any], file: Path) -> None:
    """Every held-out metric against mean evaluations: both schedules as lines, plans as stars, peers as dots.

    Peers have fewer prompts, so each stands at its difference from the dense stock set on the same prompts. What
    would stand far above all schedules stands at the top edge."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5), layout="constrained")
    axes = figure.subplots(1, len(METRICS))
    for axis, metric in zip(axes, METRICS, strict=True):
        _draw_metric(axis, found["methods"], metric)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.suptitle(
        f"{found['words']}: {found['prompts']} prompts x {found['seeds']} seeds, 95 % intervals; dots: peers on fewer "
        f"prompts, at their difference from {found['dense']} on the same, or at the top edge",
        fontsize=10,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)


def _draw_metric(axis: Axes, rows: Sequence[Mapping[str, Any]], metric: str) -> None:
    dense = [r[metric] for r in rows if r["family"] == STOCK][-1]
    for family, style in ((STOCK, "o-"), (NESTED, "s-")):
        line = [row for row in rows if row["family"] == family and row["evaluations"] > 3]
        if line:
            _points(axis, line, metric, style, family)
    planned = {row["family"] for row in rows if "," in row["family"]}
    for family in sorted(planned):
        _points(axis, [row for row in rows if row["family"] == family], metric, "*", family, markersize=11)
    top = 1.25 * max(r[metric]["high"] for r in rows if r["family"] in (STOCK, NESTED) and r["evaluations"] > 3)
    others = dict.fromkeys(r["family"] for r in rows if r["family"] not in (STOCK, NESTED, *planned))
    for place, family in enumerate(others):
        peers = [row for row in rows if row["family"] == family]
        levels = [min(dense["value"] + r["difference"][metric]["value"], top) for r in peers]
        axis.plot(
            [r["evaluations"] for r in peers],
            levels,
            MARKS[place % len(MARKS)],
            ms=4,
            label=family,
            color=f"C{4 + place % 6}",
        )
    axis.axhspan(dense["low"], dense["high"], color="grey", alpha=0.15)
    axis.set(xscale="log", xlabel="mean evaluations", title=NAMES[metric])
    axis.minorticks_off()
    axis.set_xticks([4, 6, 8, 10, 15, 20, 30, 50], labels=["4", "6", "8", "10", "15", "20", "30", "50"])


def _points(axis: Axes, rows: Sequence[Mapping[str, Any]], metric: str, style: str, label: str, **options: Any) -> None:
    values = [row[metric] for row in rows]
    low, high = ([abs(v["value"] - v[end]) for v in values] for end in ("low", "high"))
    given = [row["evaluations"] for row in rows], [v["value"] for v in values]
    axis.errorbar(*given, yerr=[low, high], fmt=style, label=label, capsize=2, linewidth=1, **options)


def draw_strips(sets: PictureSets, catalogue: Catalogue, changed: Sequence[tuple[int, int]], file: Path) -> list[str]:
    """The same seeds over rising counts, stock above nested; gives the captions. changed: (prompt, seed) indices."""
    strips, texts = [], []
    for prompt, seed in changed[:STRIP_ROWS]:
        texts.append(sets.prompts.prompts[prompt].text)
        for family in (STOCK, NESTED):
            strips.append(_strip(sets, catalogue, family, prompt, seed))
    width = max(strip.width for strip in strips)
    sheet = Image.new("RGB", (width, sum(strip.height for strip in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)
    return texts


def _strip(sets: PictureSets, catalogue: Catalogue, family: str, prompt: int, seed: int) -> Image.Image:
    methods = catalogue.family(family)
    rendered = [n for n, m in methods.items() if sets.covered(m.key) > prompt]
    counts = list(dict.fromkeys(min(rendered, key=lambda n: abs(n - wanted)) for wanted in STRIP_COUNTS))
    pictures = torch.cat([sets.picture(methods[n].key, prompt, seed) for n in counts], dim=2)
    pixels = (pictures.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    strip = Image.fromarray(np.repeat(np.repeat(pixels, ENLARGED, 0), ENLARGED, 1))
    labelled = Image.new("RGB", (strip.width, strip.height + LABEL), "white")
    labelled.paste(strip, (0, LABEL))
    draw = ImageDraw.Draw(labelled)
    for place, count in enumerate(counts):
        draw.text((place * strip.width // len(counts) + 2, 1), f"{family} {count}", fill="black")
    return labelled
