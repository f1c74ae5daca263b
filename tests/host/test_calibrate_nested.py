"""Calibrate along nested schedules in the genuine host: looked for, cut off, failing, in today's families."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from research.in_process_host import HostInterrupted, HostSession, interrupted_after
from tests.fixtures.calibrating import CAPTIONS, TinyClip, TinyVae, calibrate_family, graph, rendering
from tests.fixtures.tiny_models import VIDEO

TEXTS = [*CAPTIONS, *(f"{caption} with a small red star" for caption in CAPTIONS)]
STEPS = 13
"""The fewest for which a schedule is looked for: below, counts are few enough to measure each (spec.FEW_STEPS)."""


@pytest.mark.parametrize("sampler_name", ["dpmpp_2m", "heun"])
def test_every_count_of_a_nested_trajectory_is_a_run_from_scratch_and_the_prefix_is_paid_once(
    session: HostSession, pack: Any, loaded: Any, sampler_name: str
) -> None:
    del session
    nested = pack("core.schedule").NestedSchedule(3, 1.0)
    calls: list[float] = []
    kinds = sys.modules["comfy.patcher_extension"].WrappersMP

    def count(executor: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(float(args[1][0]))
        return executor(*args, **kwargs)

    model = loaded.model.clone()
    model.add_wrapper_with_key(kinds.APPLY_MODEL, "budgetfusion_count", count)
    renderer = pack("calibration.host_renderer")
    backends, metrics = pack("metrics.measure").Backends.from_values("tiny_scenes", "shipped"), ("l_snr", "d_sim")
    negative = loaded.encode("")
    with torch.inference_mode():
        graph = renderer.Graph.connected(
            model, loaded.clip, loaded.vae, negative, sampler_name, "karras", 3.0, width=64, height=64
        )
        made = renderer.HostRenderer(graph, backends, metrics, lambda steps, given: given, nested)
        told = [made.reference(CAPTIONS[1], 7, 9, None, False)]
        counts = (2, 4, 5, 7)
        found = [told[0].found, *(made.measure(told[0], CAPTIONS[1], 7, n, False) for n in counts)]
        spent = len(calls)
        nfe = pack("host.sampling").nfe
        shared = 3 * (2 if sampler_name == "heun" else 1) + 1
        expected = [nfe(sampler_name, n) for n in (9, *counts)]
        assert [one.evaluations for one in found] == expected[:2] + [whole - shared for whole in expected[2:]]
        assert spent == sum(one.evaluations for one in found)
        for n in (9, *counts):
            assert torch.equal(
                made._sample(told[0].shared, CAPTIONS[1], 7, n)[0],
                made._sample(pack("host.prefix_cache").PrefixCache(), CAPTIONS[1], 7, n)[0],
            )


def test_a_model_that_nobody_can_read_is_calibrated_without_sharing(pack: Any, loaded: Any) -> None:
    """A wrapper of another pack may keep state from one evaluation to the next."""
    kinds = sys.modules["comfy.patcher_extension"].WrappersMP
    model = loaded.model.clone()
    model.add_wrapper_with_key(
        kinds.APPLY_MODEL, "another_pack", lambda executor, *args, **more: executor(*args, **more)
    )
    renderer = pack("calibration.host_renderer")
    with torch.inference_mode():
        graph = renderer.Graph.connected(
            model, loaded.clip, loaded.vae, loaded.encode(""), "euler", "karras", 3.0, width=64, height=64
        )
        made = renderer.HostRenderer(graph, None, (), lambda steps, given: given)
        shared = pack("host.prefix_cache").PrefixCache()
        assert [made._sample(shared, CAPTIONS[1], 7, n)[1] for n in (3, 2)] == [3, 2]


def test_a_known_nested_schedule_is_calibrated(
    session: HostSession, pack: Any, store: Path, planners: Path, foreign: str
) -> None:
    run = session.execute(graph(foreign, name="", schedule="nested 2@1.0", max_steps=5))
    assert run.outputs["5"][0] == "foreign dpmpp_2m karras nested.safetensors"
    planner = pack("predictor.planner_file").load_planner(planners / run.outputs["5"][0])
    assert planner.setting.schedule == "nested 2@1.0"
    assert planner.grid == (2, 3, 4, 5)
    with pack("calibration.store").Store.at(store) as opened:
        (own,) = opened.contents()
    assert own.schedule["prefix_steps"] == 2


def test_a_nested_schedule_is_looked_for_calibrated_and_rendered_along(
    session: HostSession,
    pack: Any,
    store: Path,
    planners: Path,
    foreign: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A small search: one candidate for the commit point, two prefixes, 8 prompts beside the calibration's."""
    spec, stage, search = (pack(f"calibration.{name}") for name in ("spec", "search_stage", "schedule_search"))
    monkeypatch.setitem(spec.SEARCHES, "quick", (8, 1))
    monkeypatch.setitem(spec.AMOUNTS, "quick", spec.Amount(9, 1, 4, 0.08, 28, False))
    monkeypatch.setattr(stage, "commit_candidates", lambda quantile: search.commit_candidates(quantile, (0.75,)))
    monkeypatch.setattr(stage, "PREFIXES", (2, 3))
    monkeypatch.setattr(stage, "TARGET_TAIL", 6)
    for name in ("L_SNR_TOLERANCE", "ENCODER_TOLERANCE", "PLAIN_TOLERANCE", "CLIP_TOLERANCE"):
        monkeypatch.setattr(stage, name, 1e9)  # so few pictures show of no prefix that it is good
    whole = graph(foreign, name="", prompt_text="\n".join(TEXTS), max_steps=STEPS)
    with interrupted_after(60), pytest.raises(HostInterrupted):
        session.execute(whole)
    run = session.execute(whole)
    (shown,) = run.ui["5"]["calibration"]
    codes = [one["code"] for one in shown["messages"]]
    assert "calibrate_search_found" in codes, run.outputs["5"][1]
    planner = pack("predictor.planner_file").load_planner(planners / run.outputs["5"][0])
    nested = pack("core.schedule").NestedSchedule.from_text(planner.setting.schedule)
    assert nested is not None and nested.prefix_steps == 3
    tables = planner.provenance["calibration"]["search"]
    assert tables["prompts"] == 8 and tables["prefixes"][-1]["accepted"]
    assert "CLIP score" in tables["prefixes"][-1]["worsening"], "the shipped encoder compares picture and prompt"
    assert run.outputs["5"][2].shape[0] == 2, "the curves, and the pairs of pictures"
    events = [data for event, data in run.messages if event == "budgetfusion.calibration"]
    assert events[0]["messages"][0]["code"] == "calibrate_search"

    rendered = session.execute({**{k: whole[k] for k in "1234"}, **rendering()})
    (receipt,) = rendered.ui["6"]["receipt"]
    assert receipt["fallback"] is None
    assert receipt["prefix_steps"] == nested.prefix_steps < receipt["steps"]


# --------------------------------------------------------------------------------------------- the search, in families


@pytest.fixture
def small_search(pack: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A search of seconds that takes whatever it sees: 8 prompts, one commit point, two prefixes, short tails."""
    spec, stage, search = (pack(f"calibration.{name}") for name in ("spec", "search_stage", "schedule_search"))
    monkeypatch.setitem(spec.SEARCHES, "quick", (8, 1))
    monkeypatch.setitem(spec.AMOUNTS, "quick", spec.Amount(9, 1, 4, 0.08, 28, False))
    monkeypatch.setattr(stage, "commit_candidates", lambda quantile: search.commit_candidates(quantile, (0.75,)))
    for name, value in {"PREFIXES": (2, 3), "TARGET_TAIL": 3, "QUALITY": -1e9}.items():
        monkeypatch.setattr(stage, name, value)
    for name in ("L_SNR_TOLERANCE", "ENCODER_TOLERANCE", "PLAIN_TOLERANCE", "CLIP_TOLERANCE"):
        monkeypatch.setattr(stage, name, 1e9)


def searched(pack: Callable[[str], Any], vae: Any) -> Any:
    return calibrate_family(pack, "flux", STEPS, TEXTS, vae, "nested")


def content(path: Path) -> tuple[Any, dict[str, bytes]]:
    """Description and tensors; the file may hold them in another order."""
    with safe_open(path, framework="numpy") as opened:
        return opened.metadata(), {key: opened.get_tensor(key).tobytes() for key in opened.keys()}  # noqa: SIM118


@pytest.mark.one_host
@pytest.mark.usefixtures("small_search")
@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux", *VIDEO])
def test_a_nested_schedule_is_looked_for_and_calibrated_in_todays_families(
    family: str, session: HostSession, pack: Any, store: Path, planners: Path
) -> None:
    del session
    result = calibrate_family(pack, family, STEPS, TEXTS, schedule="nested")
    planner = pack("predictor.planner_file").load_planner(planners / result.name)
    nested = pack("core.schedule").NestedSchedule.from_text(planner.setting.schedule)
    assert nested is not None and nested.prefix_steps == 3, result.text
    assert planner.grid[0] == 2 and planner.grid[-1] == STEPS
    assert planner.provenance["calibration"]["search"]["prompts"] == 8


@pytest.mark.one_host
@pytest.mark.usefixtures("small_search")
def test_a_search_that_was_cancelled_goes_on_and_ends_the_same_to_the_bit(
    session: HostSession, pack: Any, store: Path, planners: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also each prompt is encoded once for search and calibration together."""
    del session
    encoded: list[str] = []
    encode = TinyClip.encode_from_tokens_scheduled
    monkeypatch.setattr(
        TinyClip, "encode_from_tokens_scheduled", lambda self, text, **_: encoded.append(text) or encode(self, text)
    )
    whole = content(planners / searched(pack, TinyVae()).name)
    assert sorted(text for text in encoded if text) == sorted(TEXTS), "the empty one is the graph's own"
    (planners / "tiny.safetensors").unlink()
    monkeypatch.setattr(pack("calibration.host_job"), "store_path", lambda: store.with_name("again.sqlite3"))

    class Cancelling(TinyVae):
        left = 11

        def decode(self, samples: torch.Tensor) -> torch.Tensor:
            self.left -= 1
            if not self.left:
                raise sys.modules["comfy.model_management"].InterruptProcessingException
            return super().decode(samples)

    with pytest.raises(sys.modules["comfy.model_management"].InterruptProcessingException):
        searched(pack, Cancelling())
    assert content(planners / searched(pack, TinyVae()).name) == whole


class Failing(TinyVae):
    """Fails at some of its pictures, counted from 1."""

    def __init__(self, reasons: dict[int, str]) -> None:
        self.reasons, self.turn = reasons, 0

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        self.turn += 1
        pictures, reason = super().decode(samples), self.reasons.get(self.turn)
        if reason == "out of memory":
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 byte")
        return pictures * {None: 1.0, "no numbers": torch.nan, "one colour": 0.0}[reason]


@pytest.mark.one_host
@pytest.mark.usefixtures("small_search")
def test_a_render_that_fails_in_the_search_is_made_again_then_left_out_and_said(
    session: HostSession, pack: Any, store: Path, planners: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three pictures a prompt: the first prompt's second fails once, one of each of the next three twice."""
    del session
    monkeypatch.setattr(pack("calibration.search_stage"), "LEAST_PROMPTS", 5)
    twice = {5: "no numbers", 8: "one colour", 12: "out of memory"}
    reasons = {2: "out of memory"} | twice | {turn + 1: reason for turn, reason in twice.items()}
    result = searched(pack, Failing(reasons))
    planner = pack("predictor.planner_file").load_planner(planners / result.name)
    search = planner.provenance["calibration"]["search"]
    assert search["prompts"] == 8 - len(twice)
    assert list(search["left_out"].values()) == [1, 1, 1]
    for said, reason in zip(search["left_out"], twice.values(), strict=True):
        assert reason in said and said in result.text


@pytest.mark.one_host
@pytest.mark.usefixtures("small_search")
def test_a_feature_of_no_number_is_said_and_not_kept(
    session: HostSession, pack: Any, store: Path, planners: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be compared with in every later search."""
    del session
    search = pack("calibration.host_search")
    with monkeypatch.context() as patched:
        patched.setattr(search, "low_pass", lambda x: torch.full((len(x), 4), torch.nan))
        with pytest.raises(pack("core.errors").InputError, match="low-pass"):
            searched(pack, TinyVae())
    assert searched(pack, TinyVae()).name
