"""The quick amounts of the campaign's parts that need a ComfyUI, and that each would notice a fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from research.campaign import hostile_page, long_run, stage_faults, stages, upgrade
from research.campaign.part import QUICK, Work
from research.campaign.watch import Watch
from research.in_process_host import HostSession

pytestmark = pytest.mark.one_host


@pytest.fixture
def work(tmp_path: Path, session: HostSession, pack: Callable[[str], Any]) -> Any:
    """What a part is given; its planner and its store are gone afterwards."""
    session.clear_cache()
    yield Work(tmp_path, session.host_dir, QUICK, seed=1)
    for file in ("a_short", "campaign_stock"):
        (session.base_dir / "models" / "budgetfusion" / f"{file}.safetensors").unlink(missing_ok=True)
    pack("planning.memory").CACHE._entries.clear()
    store = pack("host.paths").store_path()
    for companion in ("", "-wal", "-shm"):
        store.with_name(store.name + companion).unlink(missing_ok=True)


def test_a_fault_in_a_stage_stops_no_render(session: HostSession, work: Work) -> None:
    for finding in stage_faults.inside(session, work):
        assert finding.held, finding


def test_stages_are_read_from_the_code(session: HostSession) -> None:
    del session
    execute = stages.entry("nodes.adaptive_ksampler", "AdaptiveKSampler")
    found = {stage.told for stage in stages.stages_of(execute, stage_faults.planning_methods())}
    wanted = {"host/identity.py read_identity", "predictor/planner.py plan", "host/prefix_cache.py run_key"}
    assert found >= wanted | {"predictor/memory.py recall", "planning/nested.py plan_sigmas"}
    assert not {stage.rpartition(" ")[2] for stage in found} & set(stages.NO_STAGES)


def test_hostile_pages_and_workflows(session: HostSession, work: Work) -> None:
    for finding in [*hostile_page.inside(session, work), hostile_page.page_files()]:
        assert finding.held, finding


def test_an_access_outside_is_noticed(tmp_path: Path) -> None:
    with Watch() as watch:
        (tmp_path / "x").write_text("written")
        (tmp_path / "x").read_text()
    assert watch.beside((tmp_path / "elsewhere",)) == watch.below(tmp_path) == [str(tmp_path / "x")]
    assert watch.beside((tmp_path,)) == []


def test_markup_in_a_page_file_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "bad.js").write_text("place.innerHTML = text;")
    assert not hostile_page.page_files(tmp_path).held


def test_earlier_workflows_are_valid(session: HostSession) -> None:
    finding = upgrade.workflows(session)
    assert finding.held, finding


def test_renders_with_changing_inputs(session: HostSession, work: Work) -> None:
    memory, seconds, files, cache = long_run.inside(session, work)
    assert files.held and cache.held, (files, cache)
    assert float(memory.figures["level"]) > 0 and float(seconds.figures["level"]) > 0


def test_a_leak_is_noticed() -> None:
    """2 MB of noise on a leak of 10 kB a render; and on none."""
    rng = np.random.default_rng(0)
    noise = 800.0 + rng.normal(0.0, 2.0, 1400)
    at = np.arange(1400)
    assert not long_run._line("memory", "MB", 2000, (noise + 0.01 * at).tolist(), 2.0).held
    assert long_run._line("memory", "MB", 2000, noise.tolist(), 2.0).held
