"""Cost at equal quality, the goals and the gallery, on numbers with known answers (the host part is in tests/host)."""

from __future__ import annotations

import json

import numpy as np
import pytest

from research.bench.goals import combined_ratios, goals, slowest_ratios
from research.bench.peers import JUDGED, OURS, OURS_CACHED, Variant, summarise, variants
from research.statistics.frontier import cost_at_distance


def test_a_power_law_is_read_exactly():
    """distance = 1 / cost: at distance 1 / 15 the cost is 15, whatever the settings."""
    cost = np.array([10.0, 20.0, 50.0])
    found = cost_at_distance(cost, 1 / cost, 1 / 15)
    assert found.cost == pytest.approx(15.0) and found.bound == "at"
    assert cost_at_distance(cost, 1 / cost**2, 1 / 30**2).cost == pytest.approx(30.0)


def test_ends_and_detours_of_a_family():
    cost, distance = np.array([10.0, 20.0, 30.0]), np.array([0.4, 0.5, 0.1])
    assert cost_at_distance(cost, distance, 0.05) == cost_at_distance(cost[::-1], distance[::-1], 0.05)
    assert cost_at_distance(cost, distance, 0.05).bound == "never"
    assert (
        cost_at_distance(cost, distance, 0.9).bound == "at most" and cost_at_distance(cost, distance, 0.9).cost == 10.0
    )
    assert cost_at_distance(cost, distance, 0.1).cost == pytest.approx(30.0)
    between = cost_at_distance(cost, distance, 0.2).cost
    assert between is not None and 10 < between < 30  # the worse and dearer setting of 20 is passed over
    assert cost_at_distance(cost[:2], np.array([0.1, 0.0]), 0.0).cost == pytest.approx(20.0)
    assert cost_at_distance(cost[:2], np.array([0.1, 0.05]), 0.0).bound == "never"
    assert between == pytest.approx(cost_at_distance(cost[[0, 2]], distance[[0, 2]], 0.2).cost)


CHOSEN = (
    Variant("stock KSampler", "20", "steps", 20),
    Variant("stock KSampler", "50", "steps", 50),
    Variant("stock KSampler", "60", "steps", 60),
    Variant("EasyCache", "0.2 at 50", "steps", 50, cache="EasyCache", threshold=0.2),
    Variant(OURS, "q 0.8", "plan", threshold=0.8),
    Variant(OURS, "q 0.9", "plan", threshold=0.9),
    Variant(OURS_CACHED, "q 0.9", "plan", threshold=0.9, cache="EasyCache"),
)


@pytest.fixture(scope="module")
def summary():
    """Distances are 1 / nfe for all, but ours needs half and EasyCache twice the evaluations for it."""
    rng = np.random.default_rng(0)
    nfe = {"stock KSampler 20": 20, "stock KSampler 50": 50, "stock KSampler 60": 60, "EasyCache 0.2 at 50": 40}
    nfe |= {f"{OURS} q 0.8": 10, f"{OURS} q 0.9": 15, f"{OURS_CACHED} q 0.9": 12}
    worth = {"EasyCache": 0.5, OURS: 2.0, OURS_CACHED: 2.5}
    results = []
    for _ in range(30):
        luck = np.exp(0.2 * rng.normal())
        rows = {}
        for variant in CHOSEN:
            count = nfe[variant.name]
            distance = luck / (count * worth.get(variant.family, 1.0))
            rows[variant.name] = {
                "nfe": count,
                "seconds": 0.1 * count,
                "quality": 0.9,
                **dict.fromkeys(JUDGED, distance),
            }
        results.append({"variants": rows})
    return summarise(results, CHOSEN, 0, 0.9)


def test_ratios_of_a_known_world(summary):
    ours = {(r["ours"], r["peer"]): r for r in summary["at_our_quality"] if r["cost"] == "seconds"}
    assert ours[(OURS, "stock KSampler")]["ratio"] == pytest.approx(0.5)  # 15 evaluations are worth 30 of its
    assert ours[(OURS, "EasyCache")]["bound"] == "never" and ours[(OURS, "EasyCache")]["ratio"] is None
    assert ours[(OURS_CACHED, OURS)]["ratio"] == pytest.approx(12 / 15)
    theirs = {r["peer"]: r for r in summary["at_their_quality"] if r["cost"] == "nfe" and r["ours"] == OURS}
    assert theirs["stock KSampler 20"]["ratio"] == pytest.approx(0.5)
    assert theirs["stock KSampler 50"]["bound"] == "never"
    assert theirs["EasyCache 0.2 at 50"]["ratio"] == pytest.approx(10 / 40)
    row = theirs["stock KSampler 20"]
    assert row["low"] <= row["ratio"] + 1e-9 and row["ratio"] <= row["high"] + 1e-9
    assert summary["variants"]["stock KSampler 20"]["seconds"]["value"] == pytest.approx(2.0)
    json.dumps(summary, allow_nan=False)


def test_goals_of_the_known_world(summary):
    assert slowest_ratios(summary["at_their_quality"]) == {
        "stock KSampler 20": pytest.approx(0.5),
        "stock KSampler 50": None,
        "stock KSampler 60": None,
        "EasyCache 0.2 at 50": pytest.approx(0.25),
    }
    assert combined_ratios(summary["at_our_quality"])[OURS] == pytest.approx(0.8)
    found = {goal.name: goal for goal in goals(None, summary, 0.1)}
    peers = found["time at equal judged quality, each peer"]
    assert peers.reached is False and peers.found.startswith("2 of 3")  # 50 is out of reach, 60 is no peer of the issue
    assert "stock KSampler 50, not reached" in peers.note
    combined = found["ours with EasyCache against either alone"].found
    assert combined.startswith("0.80 (") and combined.endswith(
        "to 0.80) of ours alone, EasyCache alone never comes that near"
    )
    assert found["ours with EasyCache against either alone"].reached is True


def test_a_goal_needs_seconds_and_evaluations(summary):
    """The machine was busy while EasyCache alone ran: evaluations say what seconds hide."""
    rows = [dict(row) for row in summary["at_our_quality"]]
    for row in rows:
        if row["cost"] == "nfe" and row["ours"] == OURS_CACHED and row["peer"] == OURS:
            row["ratio"] = 1.1
    found = {goal.name: goal for goal in goals(None, {**summary, "at_our_quality": rows}, 0.1)}
    assert found["ours with EasyCache against either alone"].reached is False


def test_a_bound_shows_nothing_about_the_combination(summary):
    """The crudest setting of ours alone is nearer already: the ratio that was read is only a lower bound."""
    rows = [
        {**row, "bound": "at most"} if (row["ours"], row["peer"]) == (OURS_CACHED, OURS) else row
        for row in summary["at_our_quality"]
    ]
    assert combined_ratios(rows)[OURS] is None
    goal = goals(None, {**summary, "at_our_quality": rows}, 0.1)[-1]
    assert goal.reached is None and "ours alone is nearer already" in goal.found


def test_the_hardest_peer_is_named_with_its_interval(summary):
    rows = [
        {**row, "ratio": 0.7, "low": 0.6, "high": None} if row["ratio"] is None else row
        for row in summary["at_their_quality"]
    ]
    goal = goals(None, {**summary, "at_their_quality": rows}, 0.1)[1]
    assert goal.reached is True and goal.note.endswith("0.70 (0.60 to not reached)")


def test_few_prompts_have_a_figure_and_no_verdict(summary):
    found = goals(None, {**summary, "prompts": 5}, 0.1)[1:]
    assert [goal.verdict for goal in found] == ["not measured"] * 2
    assert found[0].found.startswith("2 of 3") and "5 prompts are too few" in found[0].note


@pytest.mark.parametrize("prompts", [300, 40])
@pytest.mark.parametrize("better", [True, False])
def test_each_goal_of_the_held_out_figures(better, prompts):
    def around(value):
        return {"value": value, "low": value - 0.02, "high": value + 0.02}

    gains = {
        "prompts": prompts,
        "mean_steps": around(15.0),
        "target": 50,
        "saved": around(0.70 if better else 0.60),
        "violation_controlled": around(0.11 if better else 0.15),
        "gain_per_step": {
            "of_means": around(0.12 if better else 0.08),
            "ceiling_of_means": 0.2,
            "mean_of_ratios": around(0.3),
            "mean_of_ratios_permuted": around(0.1),
        },
        "fixed": {
            "fewer_steps": 0.3 if better else 0.2,
            "fewer_steps_interval": around(0.3),
            "count_at_our_violation": 21,
        },
        "gap_to_oracle_b": {
            "misses_at_our_cost": around(0.7 if better else 0.5),
            "steps_at_our_violation": None,
            "worst_tenth_at_our_cost": around(0.4),
        },
        "worst_tenth": {"ratio": around(0.45 if better else 0.6), "ratio_oracle_b": around(0.3)},
    }
    found = goals(gains, None, 0.1)
    enough = prompts == 300
    assert [goal.reached for goal in found] == [better if enough else None] * 6 + [None, None]
    assert found[1].verdict == ("not measured" if not enough else "reached" if better else "missed")
    assert "oracle B reaches 0.30 (0.28 to 0.32)" in found[5].note
    assert "no gap" in found[4].note and ("40 prompts are too few" in found[4].note) == (not enough)
    assert found[4].found == ("70% (68% to 72%)" if better else "50% (48% to 52%)")
    gains["worst_tenth"]["ratio"] = {"value": None, "low": 0.1, "high": None}  # not finite: JSON has no such number
    unknown = goals(gains, None, 0.1)[5]
    assert unknown.reached is None and unknown.found == "n/a"
    json.dumps([goal.to_dict() for goal in found], allow_nan=False)


@pytest.mark.parametrize("quick", [True, False])
def test_every_peer_of_the_issue_is_compared(quick):
    chosen = variants(50, quick, "karras")
    names = [variant.name for variant in chosen]
    assert len(set(names)) == len(names)
    families = {variant.family for variant in chosen}
    assert {"stock KSampler", "EasyCache", "LazyCache", "dpm_adaptive", OURS, OURS_CACHED} <= families
    assert {"stock KSampler 20", "stock KSampler 30", "stock KSampler 50"} <= set(names)
    assert "schedule beta" in families and "schedule karras" not in families
