"""Writes benchmark.md and bench.json from the parts of a run. Every number in the text comes from the parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.statistics.variance import telling

from . import bench_plots
from .goals import Goal, goals, slowest_ratios
from .wording import number, share

SEED_DOMINATES = 0.5
JUDGE_WORDS = {
    "latent_rmse": "latent RMSE",
    "mdsi": "MDSI",
    "ms_ssim": "1 - MS-SSIM",
    "scene_wrong": "scene classifier wrong",
}
QUALITY, ALPHA = "0.90", 0.10
NOTES_FILE = "benchmark_notes.md"
"""Beside benchmark.md: what people write about missed goals and the remedies they tried. Copied below the goals, so
that a new run does not lose it."""


def report_folder(out: Path, *, full: bool) -> Path:
    """`out`, and for a quick run `quick` in it where a full run's report lies already: that one took hours."""
    try:
        mode = json.loads((out / "bench.json").read_text(encoding="utf-8"))["mode"]
    except (OSError, ValueError, KeyError, TypeError):
        return out
    return out / "quick" if mode == "full" and not full else out


def write(parts: Mapping[str, Any], provenance: Mapping[str, Any], command: str, out: Path, images: Path) -> list[Goal]:
    """benchmark.md, bench.json and the plots. Gives the table of goals."""
    gains = parts["rules"]["by_quality"][QUALITY]["gains"] if "rules" in parts else None
    table = goals(gains, parts.get("peers"), ALPHA)
    plots = bench_plots.draw_all(parts, images)
    content = {
        "format": "budgetfusion.bench",
        "version": 1,
        "command": command,
        **provenance,
        "goals": [goal.to_dict() for goal in table],
        "parts": dict(parts),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    notes = out / NOTES_FILE
    written = notes.read_text(encoding="utf-8") if notes.is_file() else ""
    (out / "benchmark.md").write_text(markdown(parts, provenance, command, table, plots, written), encoding="utf-8")
    return table


def markdown(
    parts: Mapping[str, Any],
    provenance: Mapping[str, Any],
    command: str,
    table: Sequence[Goal],
    plots: Mapping[str, str],
    notes: str = "",
) -> str:
    sections = [
        _head(parts, provenance, command),
        _goals(table),
        *([notes] if notes.strip() else []),
        *(
            writer(parts[name], plots)
            for name, writer in (
                ("variance", _variance),
                ("rules", _rules),
                ("risk", _risk),
                ("shift", _shift),
                ("peers", _peers),
                ("ablations", _ablations),
                ("grid", _grid),
                ("profile", _profile),
                ("gallery", _gallery),
            )
            if name in parts
        ),
        _method(provenance),
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


# ------------------------------------------------------------------------------------------------------------- pieces


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(["", *head, ""]).strip(), "|" + "---|" * len(head)]
    return "\n".join([*lines, *(" | ".join(["", *row, ""]).strip() for row in rows)])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _picture(plots: Mapping[str, str], name: str, text: str) -> str:
    return f"![{text}](images/benchmark/{plots[name]})\n\n" if name in plots else ""


# ----------------------------------------------------------------------------------------------------------- sections


def _head(parts: Mapping[str, Any], provenance: Mapping[str, Any], command: str) -> str:
    prompts, seeds = provenance["sweep"]["prompts"], provenance["sweep"]["trajectories"]
    counts = ", ".join(f"{prompts[s]} {s} prompts ({seeds[s]} renders at each count)" for s in prompts)
    setting = provenance["setting"]
    text = [
        "# Benchmark",
        "All figures are for **Tiny Scenes**, the small 64 x 64 model of this repository, with "
        f"{setting['sampler_name']} / "
        f"{setting['scheduler']}, cfg {setting['cfg']:g}, ComfyUI {provenance['host']}. They say nothing about other "
        "models.",
        f"Made by `{command}` ({provenance['mode']} run). Sweep: {counts}; step counts "
        f"{' '.join(str(n) for n in provenance['grid'])}. Intervals in brackets are 95 % bootstrap intervals over "
        "prompts. "
        "Words: a render *misses* the quality q if its measured quality, there or at a later count, is below q; "
        "*shortfall* is 1 - quality before clipping.",
    ]
    warning = seed_warning(parts.get("variance"))
    return "\n\n".join([*text, warning] if warning else text)


def seed_warning(part: Mapping[str, Any] | None) -> str:
    """Said at the top where the seed, not the prompt, decides most of what a render needs."""
    if part is None:
        return ""
    figures = telling(part)["by_quality"][QUALITY]["all metrics"]
    prompt = figures["prompt"]
    if prompt is None:
        return "**Each prompt has one seed here, so nothing can be said about what the seed does.**"
    if prompt >= SEED_DOMINATES:
        return ""
    return (
        f"**The seed dominates: the prompt explains {prompt:.0%} of the variance of log t* at quality {QUALITY}.** "
        "No rule "
        "that sees the prompt alone can be better than oracle B below. What the rest is made of is under "
        '"Is there anything to predict?".'
    )


def _goals(table: Sequence[Goal]) -> str:
    rows = [[g.name, g.wanted, g.found, f"**{g.verdict}**", g.note] for g in table]
    return f"## Goals at quality {QUALITY}, risk {ALPHA:g}\n\n" + _rows(["goal", "wanted", "found", "", "note"], rows)


def _variance(part: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    text = ["## Is there anything to predict?", _picture(plots, "variance", "Shares of the variance of log t*").strip()]
    for key, words in (
        ("crossed", "the same noise seeds for every prompt"),
        ("sweep", "the test prompts of the sweep"),
    ):
        if key not in part:
            continue
        report = part[key]
        rows = []
        for q, by_metric in report["by_quality"].items():
            for metric, row in by_metric.items():
                rest = [share(row["seed"]), share(row["rest"])] if row["seed"] is not None else ["", ""]
                rows.append(
                    [
                        q,
                        metric,
                        share(row["prompt"]),
                        share(row["seed_and_rest"]),
                        *rest,
                        f"{row['median']:.0f} ({row['tenth']:.0f} to {row['nine_tenths']:.0f})",
                        f"{row['at_the_smallest_count']:.0%} / {row['at_the_target']:.0%}",
                    ]
                )
        other = (
            ""
            if report.get("dtype") == part["sweep"].get("dtype")
            else f", rendered in {report['dtype'] or 'unknown precision'}"
        )
        text.append(
            f"Variance of log t*(q), {report['prompts']} prompts x {_count(report['seeds'], 'seed')}, {words}{other}:"
        )
        text.append(
            _rows(
                [
                    "quality",
                    "metric",
                    "prompt",
                    "seed and rest",
                    "seed",
                    "rest",
                    "t*, median (80 % of renders)",
                    "at the ends",
                ],
                rows,
            )
        )
    checks = telling(part)["checks"]
    text.append(
        "What a seed's share could be made of instead: the distance still left at the last count before the target, "
        "over "
        "the strictest tolerance (near 1, t* is a matter of luck); renders whose crudest image lies beyond the scale; "
        "steps of the grid at which the distance rises; and how often a metric is the worst of the three."
    )
    rows = [
        [m, f"{c['last_step']:.2f}", f"{c['saturated']:.0%}", f"{c['rises']:.1%}", f"{c['sets_the_budget']:.0%}"]
        for m, c in checks.items()
    ]
    text.append(_rows(["metric", "left at the last count", "beyond the scale", "rises", "sets the budget"], rows))
    return "\n\n".join(piece for piece in text if piece)


def _rules(part: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    text = ["## Rules at equal mean cost", _picture(plots, "rules", "Misses of each rule at equal mean cost").strip()]
    text.append(
        "Held-out prompts; every rule is put at the mean steps of our plans. Rules that learn saw "
        f"{part['training_prompts']} training prompts of this sweep and are calibrated on its "
        f"{part['calibration_prompts']}; the planner itself was made from {_made_from(part['planner'])}. Oracles "
        "know the truth of the very renders they are judged on. Judges "
        "took "
        "no part in any choice."
    )
    for q, figures in part["by_quality"].items():
        cost = figures["equal_cost"]
        judges = list(next(iter(cost["rules"].values()))["judges"])
        rows = [
            [
                name,
                share(row["violation_controlled"]),
                number(row["shortfall"]),
                number(row["worst_tenth"]),
                *(number(row["judges"][judge], ".4f") for judge in judges),
                share(row["ours_minus_it"]["violation_controlled"]) if name != "ours" else "",
            ]
            for name, row in cost["rules"].items()
        ]
        head = [
            "rule",
            "misses",
            "shortfall",
            "worst tenth",
            *(JUDGE_WORDS.get(j, j) for j in judges),
            "misses, ours - it",
        ]
        text.append(f"### Quality {q}: {cost['mean_steps']:.1f} mean steps\n\n" + _rows(head, rows))
        knee = cost["knee_at_its_own_cost"]
        text.append(
            "The knee finder on our predicted medians (as the paper's rule, with no slider) costs "
            f"{knee['mean_steps']:.1f} "
            f"steps and misses {share(knee['violation_controlled'])}; UNIFORM at that cost misses "
            f"{share(knee['uniform_violation_controlled'])}."
        )
        rows = [
            [name, number(row["steps"], ".1f"), share(row["violation_controlled"]), number(row["shortfall"])]
            for name, row in figures["equal_risk"].items()
        ]
        text.append(
            f"The same promise (risk {ALPHA:g}) with every rule, each calibrated on this sweep's calibration "
            "prompts:\n\n" + _rows(["rule", "mean steps", "misses", "shortfall"], rows)
        )
        text.append(_gains(figures["gains"]))
    return "\n\n".join(piece for piece in text if piece)


def _made_from(counts: Mapping[str, int | None]) -> str:
    train, calibration = counts["train"], counts["calibration"]
    if train is None or calibration is None:
        return "prompts that its file does not count"
    return f"{train} training and {calibration} calibration prompts"


def _gains(gains: Mapping[str, Any]) -> str:
    fixed, oracle = gains["fixed"], gains["oracle_mean_steps"]
    return (
        f"Ours with the shipped thresholds: {number(gains['mean_steps'], '.1f')} of {gains['target']} steps, "
        f"{share(gains['saved'])} saved; misses {share(gains['violation_controlled'])}. The best single count with "
        "as few "
        f"misses is {fixed['count_at_our_violation']} (ours: {share(fixed['fewer_steps_interval'])} fewer); a mix of "
        "two "
        f"counts {fixed['mix_at_our_violation']:.1f}; oracle B {oracle['b_at_our_violation']:.1f}; oracle A "
        f"{oracle['a']:.1f} without any miss."
    )


def _risk(part: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    again = {(row["risk"], row["quality"]): row for row in part["redealt"]}
    dealt = [again[row["risk"], row["quality"]] for row in part["rows"]]
    rows = [
        [
            *row,
            share(deal["missed"]),
            f"{deal['mean_steps']:.1f}",
            share(deal["other"]["missed"]),
            f"{deal['other']['mean_steps']:.1f}",
            _difference(deal["more_steps"], "+.1f"),
        ]
        for row, deal in zip(_risk_rows(part["rows"]), dealt, strict=True)
    ]
    head = ["risk", "quality", "misses", "", "mean steps", "one deal"]
    return "\n\n".join(
        [
            "## Risk",
            _picture(plots, "risk", "Promised and observed misses").strip(),
            f"Misses on held-out prompts with the shipped thresholds ({part['calibration_prompts']} calibration "
            "prompts). *One deal* is the standard deviation that one draw of calibration prompts alone gives. "
            f"*Re-dealt* are means over {dealt[0]['deals']} deals of calibration and test prompts, without the luck of "
            "one deal: the misses are what the guarantee bounds. *One count* is the same risk control on the curve "
            "that nine tenths of all training renders stay below, the same for every prompt; it can only take whole "
            "counts, so it misses less than it may. The last column is the difference in steps and how far single "
            "deals spread around it.",
            _rows(
                [
                    *head,
                    "re-dealt misses",
                    "re-dealt steps",
                    "one count: misses",
                    "one count: steps",
                    "steps of ours more",
                ],
                rows,
            ),
        ]
    )


def _risk_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            f"{row['risk']:g}",
            f"{row['quality']:.2f}",
            share(row["missed"]),
            "holds" if row["holds"] else "**exceeded**",
            f"{row['mean_steps']:.1f}",
            f"{row['expected_spread']:.1%}",
        ]
        for row in rows
    ]


def _shift(part: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    seen = part["noticed"]
    exceeded = sum(not row["holds"] for row in part["rows"])
    return "\n\n".join(
        [
            "### On busier scenes than any in training",
            f"{part['prompts']} prompts with four groups of objects. The guarantee is for prompts like the "
            "calibration set and "
            f"does not cover these: it is exceeded in {exceeded} of {len(part['rows'])} rows.",
            _rows(["risk", "quality", "misses", "", "mean steps", "one deal"], _risk_rows(part["rows"])),
            f"The node warns (distance above 1) on {share(seen['shifted']['share_warned'])} of them and on "
            f"{share(seen['test']['share_warned'])} of the ordinary test prompts; median distance "
            f"{seen['shifted']['median_distance']:.2f} against {seen['test']['median_distance']:.2f}.",
        ]
    )


def _peers(part: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    variants = part["variants"]
    rows = [
        [
            name,
            number(row["nfe"]["value"], ".1f"),
            number(row["seconds"]["value"], ".2f"),
            number(row["quality"]["value"]),
            *(number(row[f"{judge} to limit"], ".4f") for judge in ("latent_rmse", "mdsi", "ms_ssim")),
            share(row["scene_wrong"]["value"]),
        ]
        for name, row in variants.items()
    ]
    text = [
        "## Peers in the same host",
        _picture(plots, "peers", "Cost and distance of each setting").strip(),
        f"{part['prompts']} test prompts, one picture at a time, {part['threads']} CPU threads. Distances are to a "
        "render of "
        f"{part['limit_steps']} steps, the limit that all these solvers approach; quality is to our full-step image. "
        "dpm_adaptive ends at the smallest sigma and leaves that noise in the picture, as it does in the host.",
        _rows(
            [
                "setting",
                "evaluations",
                "seconds",
                "quality",
                "latent RMSE",
                "MDSI",
                "1 - MS-SSIM",
                "scene classifier wrong",
            ],
            rows,
        ),
        "### Time at equal judged quality\n\nThe time that ours needs for each setting's distance, over that "
        "setting's time; "
        "the median over the three judges.",
        _rows(
            ["peer", "seconds", "evaluations"],
            [
                [peer, _reached(ratio), _reached(by_count.get(peer))]
                for by_count in [slowest_ratios(part["at_their_quality"], cost="nfe")]
                for peer, ratio in slowest_ratios(part["at_their_quality"]).items()
            ],
        ),
        "The other way round, at the distance of our plans for quality 0.90, judge by judge (below 1: ours is "
        "cheaper):",
        _rows(
            ["ours", "peer", "judge", "seconds", "evaluations"],
            [
                [
                    row["ours"],
                    row["peer"],
                    row["judge"].removesuffix(" to limit"),
                    _bounded(row),
                    _bounded(other),
                ]
                for row, other in _pairs(part["at_our_quality"])
            ],
        ),
    ]
    text += [f"Left out: {reason}" for reason in part["left_out"].values()]
    return "\n\n".join(piece for piece in text if piece)


def _pairs(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    by_count = {(r["ours"], r["peer"], r["judge"]): r for r in rows if r["cost"] == "nfe"}
    return [(r, by_count[(r["ours"], r["peer"], r["judge"])]) for r in rows if r["cost"] == "seconds"]


def _reached(ratio: float | None) -> str:
    return "ours does not come that near" if ratio is None else f"{ratio:.2f}"


def _bounded(row: Mapping[str, Any]) -> str:
    if row["ratio"] is None:
        return "it never comes that near"
    interval = f"{row['ratio']:.2f}" + (
        "" if row["low"] is None or row["high"] is None else f" ({row['low']:.2f} to {row['high']:.2f})"
    )
    return f"at least {interval}" if row["bound"] == "at most" else interval


def _ablations(part: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    text = ["## Ablations", _picture(plots, "learning_curve", "Misses against training prompts").strip()]
    reference = part["groups"].get("reference", {})
    if reference:
        values = [row["at_our_cost"]["missed"] for row in reference.values()]
        text.append(
            f"Trained variants have one network. The reference, ours trained the same way with {len(values)} seeds, "
            "misses "
            f"{np.mean(values):.1%} at our cost, from {min(values):.1%} to {max(values):.1%}: smaller differences "
            "are chance."
        )
    rows = [
        [
            group,
            name,
            share(row["at_our_cost"]["missed"]),
            number(row["at_our_cost"]["worst_tenth"]),
            number(row["at_our_promise"]["mean_steps"], ".1f"),
            share(row["at_our_promise"]["missed"]),
        ]
        for group, variants in part["groups"].items()
        for name, row in variants.items()
    ]
    text.append(
        _rows(["group", "variant", "misses at our cost", "worst tenth", "steps for our promise", "misses then"], rows)
    )
    rows = [
        [metric, f"{row['mean_steps']:.1f}", share(row["whole_promise_missed"])]
        for metric, row in part["promise_by_metric"].items()
    ]
    text.append(
        "If the promise were about one metric alone:\n\n"
        + _rows(["metric", "mean steps", "whole promise missed"], rows)
    )
    return "\n\n".join(piece for piece in text if piece)


def _grid(part: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    del plots
    prompts, own = part["prompts"], part["own"]
    rows = []
    for row in part["grids"]:
        promise, itself = row["at_our_promise"], len(row["grid"]) == own
        low, high = promise["steps_of_networks"]
        rows.append(
            [
                f"{len(row['grid'])}: {' '.join(str(count) for count in row['grid'])}",
                str(row["rendered_steps"]),
                f"{row['needed']['mean']:.1f}",
                f"{row['needed']['mean_difference']:.2f}",
                share(row["needed"]["too_early"]),
                f"{promise['mean_steps']:.1f} ({low:.1f} - {high:.1f})",
                "" if itself else _difference(promise["more_steps"], "+.1f"),
                share(promise["missed"]),
                "" if itself else _difference(promise["more_misses"], "+.1%"),
            ]
        )
    head = ["counts", "steps rendered for a seed", "mean t*", "t* off by", "t* too early", "steps for our promise"]
    return "\n\n".join(
        [
            "## How dense a grid?",
            f"A sweep of {prompts['train']} training, {prompts['calibration']} calibration and {prompts['test']} test "
            f"prompts at {len(part['grids'][-1]['grid'])} step counts, and the same sweep thinned out. Networks and "
            f"thresholds come from the thinned data alone (quality {QUALITY}, risk {ALPHA:g}); everything is judged by "
            "all counts, so the densest grid agrees with itself by construction. Means over "
            f"{part['networks']} networks (of steps also the least - most) and {part['deals']} deals of calibration "
            "and test prompts, the same for every grid. "
            f"The differences are from the planner's own {own} counts, ± how far single deals spread.",
            _rows([*head, "steps more", "misses then", "misses more"], rows),
        ]
    )


def _difference(row: Mapping[str, float], form: str) -> str:
    return f"{row['mean']:{form}} ± {row['spread']:{form.removeprefix('+')}}"


def _profile(part: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    whole = part["end_to_end"]
    rows = [
        [stage, f"{seconds * 1000:.1f}", share(whole["share"].get(stage)) if stage in whole["share"] else ""]
        for stage, seconds in whole["seconds"].items()
    ]
    sizes = sorted({row["size"] for row in part["metrics"]})
    cells = {(row["metric"], row["batch"], row["size"]): row["seconds"] for row in part["metrics"]}
    kinds = sorted({(row["metric"], row["batch"]) for row in part["metrics"]})
    text = [
        "## Time",
        f"One image of {whole['mean_steps']:.1f} planned steps on average, {whole['images']} images: "
        f"{whole['seconds_of_an_image']:.2f} s against {whole['seconds_at_all_steps']:.2f} s at all steps. `metrics` "
        "is the "
        "Probe's work, which no render needs.",
        _rows(["stage", "median, ms", "share of a render"], rows),
        "Seconds of each metric (median of three), square pictures:",
        _rows(
            ["metric", "batch", *(f"{size} px" for size in sizes)],
            [
                [
                    metric,
                    str(batch),
                    *("" if (s := cells.get((metric, batch, size))) is None else f"{s:.3f}" for size in sizes),
                ]
                for metric, batch in kinds
            ],
        ),
        "The predictor on synthetic curves whose plateaus are known (risk 0.1, so plans lean to the safe side):",
        _rows(
            [
                "training prompts",
                "spread of seeds",
                "planned",
                "known",
                "median ratio",
                "typical factor",
                "correlation",
                "too few",
            ],
            [
                [
                    str(r["train_prompts"]),
                    f"{r['seed_noise']:g}",
                    f"{r['mean_planned']:.1f}",
                    f"{r['mean_known']:.1f}",
                    f"{r['median_ratio']:.2f}",
                    f"{r['typical_factor']:.2f}",
                    f"{r['correlation']:.2f}",
                    f"{r['too_few']:.0%}",
                ]
                for r in part["known_plateaus"]
            ],
        ),
        _gpu(part["gpu"]),
    ]
    return "\n\n".join(text)


def _gpu(part: Mapping[str, Any]) -> str:
    if not part["measured"]:
        return f"UNet of Stable Diffusion 2.1's size on a GPU: not measured ({part['reason']})."
    rows = [
        [name, str(part["steps"][name]), f"{part[name]['seconds']:.2f}", number(part[name]["joules"], ".0f")]
        for name in ("all", "planned")
    ]
    return (
        f"A randomly initialised UNet of Stable Diffusion 2.1's size ({part['parameters']:,} parameters), "
        f"{part['pixels']} "
        f"pixels, on {part['device']}:\n\n" + _rows(["", "steps", "seconds", "joules"], rows)
    )


def _gallery(part: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    del plots
    text = ["## The worst plans"]
    for kind, reason in part["reasons"].items():
        if not reason["count"]:
            text.append(f"No render had {kind}.")
            continue
        if kind in part["pictures"]:
            text.append(f"![Ten worst: {kind}](images/benchmark/{part['pictures'][kind]})")
        metrics = ", ".join(f"{metric} in {n}" for metric, n in reason["by_metric"].items())
        seeds = (
            f" In {reason['of_the_seed']} of the {reason['with_several_seeds']} with several seeds, another seed of "
            "the same prompt was served by the plan: no rule that sees the prompt alone could have got both right."
            if reason["with_several_seeds"]
            else ""
        )
        text.append(
            f"**{kind.capitalize()}** ({reason['count']} shown).{seeds} {reason['unlike_calibration']} are unlike the "
            f"planner's own prompts by the node's distance. The worst metric at the planned count: {metrics}. The "
            f"scenes have {reason['mean_groups']:.1f} groups of objects on average."
        )
    return "\n\n".join(text)


def _method(provenance: Mapping[str, Any]) -> str:
    backends = ", ".join(f"{metric}: {name}" for metric, name in provenance["backends"].items())
    scale = ", ".join(f"{metric} {value:.4g}" for metric, value in provenance["scale"].items())
    return (
        "## How it was measured\n\n"
        "Every prompt and seed was rendered at every step count from the same noise by the genuine host; counts "
        "between are "
        "interpolated in log n. At equal cost, a rule's threshold is chosen for its mean steps on the test prompts' "
        "predictions, never on their truth; where two neighbouring thresholds lie around the cost, it is their mix. "
        "The gap that is closed can be read in several units; the table of goals names which. Intervals hold the "
        "sampling "
        "error of the test prompts, not that of calibration or training.\n\n"
        f"Backends: {backends}. Scale: {scale}. Planner {provenance['planner']['name']} "
        f"(sha256 {provenance['planner']['sha256'][:12]}), model file sha256 "
        f"{(provenance['checkpoint']['sha256'] or 'unknown')[:12]}, sweep sha256 {provenance['sweep']['sha256'][:12]}, "
        f"{provenance['sweep']['precision'] or 'unknown precision'}, torch {provenance['torch']}. Everything is in "
        "`bench.json`."
    )
