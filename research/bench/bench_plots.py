"""The benchmark's plots, each drawn from its part of bench.json alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from research.statistics.variance import telling

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODEL = "Tiny Scenes"
QUALITY = "0.90"


def draw_all(parts: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Name -> file of every plot whose part is there."""
    found = {}
    plots: dict[str, tuple[str, Callable[[Any], Figure | None]]] = {
        "variance": ("variance", variance),
        "rules": ("rules", rules),
        "risk": ("risk", risk),
        "peers": ("peers", peers),
        "learning_curve": ("ablations", learning_curve),
    }
    for name, (part, draw) in plots.items():
        figure = draw(parts[part]) if part in parts else None
        if figure is not None:
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(folder / f"{name}.png", dpi=110)
            found[name] = f"{name}.png"
    return found


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def variance(part: Mapping[str, Any]) -> Figure | None:
    report = telling(part)
    bars = [
        (f"{metric}\nq {q}", row)
        for q, rows in report["by_quality"].items()
        for metric, row in rows.items()
        if row["prompt"] is not None
    ]
    if not bars:
        return None
    figure = _figure(9, 3.4)
    axis = figure.subplots()
    places = np.arange(len(bars))
    base = np.zeros(len(bars))
    split = bars[0][1]["seed"] is not None
    for key in ("prompt", "seed", "rest") if split else ("prompt", "seed_and_rest"):
        values = np.array([max(row[key], 0.0) for _, row in bars])
        axis.bar(places, values, bottom=base, label=key.replace("_", " "))
        base = base + values
    axis.set_xticks(places, [name for name, _ in bars], fontsize=6)
    axis.set_ylabel("share of the variance of log t*")
    axis.set_title(f"{MODEL}: what decides how many steps a render needs")
    axis.legend()
    return figure


def rules(part: Mapping[str, Any]) -> Figure:
    table = part["by_quality"][QUALITY]["equal_cost"]
    figure = _figure(9, 4.2)
    axes = figure.subplots(1, 2, sharey=True)
    names = list(table["rules"])
    places = np.arange(len(names))[::-1]
    for axis, key, label in (
        (axes[0], "violation_controlled", "misses"),
        (axes[1], "worst_tenth", "shortfall of the worst tenth"),
    ):
        for place, name in zip(places, names, strict=True):
            row = table["rules"][name][key]
            colour = "C3" if name == "ours" else "0.45" if name.startswith("oracle") else "C0"
            axis.plot([row["low"], row["high"]], [place, place], color=colour)
            axis.plot(row["value"], place, "o", color=colour)
        axis.set_xlabel(label)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(places, names, fontsize=8)
    figure.suptitle(
        f"{MODEL}, quality {QUALITY}: every rule at {table['mean_steps']:.1f} mean steps (95 % intervals)", fontsize=10
    )
    return figure


def risk(part: Mapping[str, Any]) -> Figure:
    figure = _figure(5, 4)
    axis = figure.subplots()
    qualities = sorted({row["quality"] for row in part["rows"]})
    for number, q in enumerate(qualities):
        rows = [row for row in part["rows"] if row["quality"] == q]
        at = np.array([row["risk"] for row in rows]) * (1 + 0.06 * (number - 1))
        value = np.array([row["missed"]["value"] for row in rows])
        low, high = (np.array([row["missed"][key] for row in rows]) for key in ("low", "high"))
        axis.errorbar(at, value, (value - low, high - value), fmt="o", capsize=3, label=f"quality {q:g}")
    top = max(row["risk"] for row in part["rows"]) * 1.4
    axis.plot([0, top], [0, top], color="0.6", lw=1)
    axis.set_xlabel("promised: at most")
    axis.set_ylabel("observed misses (95 % intervals)")
    axis.set_title(f"{MODEL}: the promise on held-out prompts", fontsize=10)
    axis.legend()
    return figure


def peers(part: Mapping[str, Any]) -> Figure:
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = _figure(9, 4.4)
    axes = figure.subplots(1, 2, sharey=True)
    families: dict[str, list[Mapping[str, Any]]] = {}
    for row in part["variants"].values():
        families.setdefault(row["family"], []).append(row)
    for axis, cost, label in ((axes[0], "nfe", "denoiser evaluations"), (axes[1], "seconds", "seconds an image")):
        for family, rows in families.items():
            points = sorted((row[cost]["value"], max(row["ms_ssim to limit"]["value"], 1e-6)) for row in rows)
            bold = family.startswith("ours")
            axis.plot(*zip(*points, strict=True), "o-" if bold else ".--", lw=1.8 if bold else 0.9, label=family)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(label)
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("1 - MS-SSIM to the limit image")
    axes[1].legend(fontsize=7)
    figure.suptitle(f"{MODEL}: cost and judged distance ({part['prompts']} prompts)", fontsize=10)
    return figure


def learning_curve(part: Mapping[str, Any]) -> Figure | None:
    rows = part["groups"].get("training prompts")
    if not rows:
        return None
    figure = _figure(5.5, 3.6)
    axis = figure.subplots()
    counts = [int(name) for name in rows]
    axis.plot(counts, [row["at_our_promise"]["mean_steps"] for row in rows.values()], "o-")
    axis.set_xscale("log")
    axis.set_xticks(counts, [str(n) for n in counts])
    axis.minorticks_off()
    axis.set_xlabel("training prompts")
    axis.set_ylabel("mean steps for the promise")
    axis.set_title(f"{MODEL}, quality {QUALITY}: how long to calibrate", fontsize=10)
    return figure
