"""Planner folders that cannot be read cost their planners and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from budgetfusion_nodes.core.schedule import NestedSchedule
from budgetfusion_nodes.predictor.planner import Planner
from budgetfusion_nodes.predictor.planner_file import save_planner
from tests.fixtures.said import code, codes

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path.name for path in (ROOT / "weights" / "planners").glob("*.safetensors"))


@pytest.fixture
def folders(session: Any) -> Iterator[Any]:
    """`folders(path)`: one more planner folder, as an entry of extra_model_paths.yaml makes it."""
    host = sys.modules["folder_paths"]
    known = list(host.folder_names_and_paths["budgetfusion"][0])

    def add(path: Path) -> Path:
        host.folder_names_and_paths["budgetfusion"][0].insert(0, str(path))
        return path

    yield add
    host.folder_names_and_paths["budgetfusion"][0][:] = known


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`forbidden(path)`: from now on nobody may enter it. Root, as tests may run, is not stopped by permissions."""
    closed: list[str] = []
    scandir, stat = os.scandir, os.stat

    def check(path: Any) -> None:
        named = os.fspath(path) if isinstance(path, (str, os.PathLike)) else ""
        if any(named == one or named.startswith(one + os.sep) for one in closed):
            raise PermissionError(13, "Permission denied", named)

    def closed_scandir(path: Any = ".") -> Any:
        check(path)
        return scandir(path)

    def closed_stat(path: Any, *args: Any, **kwargs: Any) -> Any:
        if os.fspath(path) not in closed if isinstance(path, (str, os.PathLike)) else False:
            check(path)
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "scandir", closed_scandir)
    monkeypatch.setattr(os, "stat", closed_stat)
    return lambda path: closed.append(os.fspath(path))


def names(session: Any) -> list[str]:
    info = session.object_info("BudgetFusion_BudgetPlanner")["BudgetFusion_BudgetPlanner"]
    return info["input"]["optional"]["planner"][1]["options"]


def test_an_entry_below_a_folder_that_may_not_be_entered(
    bench: Any, session: Any, folders: Any, forbidden: Any, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    folders(closed / "inside").mkdir(parents=True)
    forbidden(closed)
    assert "random_planner.safetensors" in names(session) and "tiny_scenes_dpmpp_2m.safetensors" in names(session)
    plan = bench.plan()
    assert plan.planner == "random planner"
    assert codes(plan.warnings) == ["folder_unreadable"]
    assert plan.warnings[0].values["folder"] == str(closed / "inside")


def test_the_artists_own_folder_unreadable(bench: Any, session: Any, forbidden: Any) -> None:
    own = session.base_dir / "models" / "budgetfusion"
    forbidden(own)
    assert names(session) == ["auto", *SHIPPED], "the shipped ones stay"
    plan = bench.plan(max_steps=9)
    assert (plan.steps, code(plan.fallback)) == (9, "no_planner")
    assert codes(plan.warnings) == ["folder_unreadable"]
    assert code(bench.plan(planner="random_planner.safetensors").fallback) == "planner_absent"


def test_an_unreadable_subfolder_leaves_the_rest(
    bench: Any, planner_file: Path, forbidden: Any, save_variant: Any
) -> None:
    inner = planner_file.parent / "of a friend"
    inner.mkdir()
    try:
        forbidden(inner)
        plan = bench.plan()
        assert (plan.planner, codes(plan.warnings)) == ("random planner", ["folder_unreadable"])
    finally:
        inner.rmdir()


@pytest.mark.parametrize("kind", ["file", "missing", "dangling", "loop"])
def test_what_stands_where_a_folder_is_expected(
    bench: Any, session: Any, folders: Any, tmp_path: Path, kind: str
) -> None:
    place = folders(tmp_path / "place")
    if kind == "file":
        place.write_text("a note")
    elif kind == "dangling":
        place.symlink_to(tmp_path / "nowhere")
    elif kind == "loop":
        place.mkdir()
        (place / "again").symlink_to(place)
    plan = bench.plan()
    assert plan.planner == "random planner"
    assert codes(plan.warnings) == (["folder_unreadable"] if kind == "file" else [])
    assert names(session).count("random_planner.safetensors") == 1


def test_files_in_every_state(bench: Any, session: Any, folders: Any, planner_file: Path, tmp_path: Path) -> None:
    folder = folders(tmp_path / "place")
    (folder / "deep" / ".git").mkdir(parents=True)
    (folder / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    (folder / "linked.safetensors").symlink_to(planner_file)
    (folder / "deep" / "UPPER.SAFETENSORS").write_bytes(planner_file.read_bytes())
    (folder / "deep" / ".git" / "object.safetensors").write_bytes(b"")
    (folder / "half.safetensors.123.part").write_bytes(b"")
    (folder / "folder.safetensors").mkdir()
    (folder / "notes.txt").write_text("x")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.safetensors")).write_bytes(b"")
    ours = set(names(session)) - {"auto", "random_planner.safetensors", *SHIPPED}
    assert ours == {"linked.safetensors", "deep/UPPER.SAFETENSORS"}
    for name in ours:
        assert bench.plan(planner=name).fallback is None, name
    json.dumps(names(session)).encode("utf-8")


@pytest.fixture
def shipped(folders: Any, planner: Planner, pack: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`shipped(name, ...)`: a planner of the pack's own, for the model that the artist has one for."""
    monkeypatch.setattr(pack("host.paths"), "PLANNERS", folders(tmp_path / "shipped"))

    def save(name: str, **changes: Any) -> None:
        (tmp_path / "shipped").mkdir(exist_ok=True)
        made = replace(planner, name=name, setting=replace(planner.setting, **changes))
        save_planner(tmp_path / "shipped" / f"{name}.safetensors", made, {})

    return save


def test_an_artists_own_planner_goes_before_a_shipped_one(bench: Any, shipped: Any) -> None:
    shipped("nested", schedule=NestedSchedule(5, 1.0).to_text())
    shipped("stock")
    plan = bench.plan()
    assert (plan.planner, codes(plan.warnings)) == ("random planner", ["planner_own"])
    assert plan.warnings[0].values["planner"] == "random planner", "which was taken"
    assert plan.warnings[0].values["other"] in ("nested.safetensors", "stock.safetensors"), "and which is there too"
    assert bench.plan(schedule="nested").planner == "nested", "the schedule was asked for"
    assert bench.plan(schedule="stock").planner == "random planner"
    assert bench.plan(planner="nested.safetensors").warnings == ()


def test_a_shipped_planner_of_the_very_setting_goes_before_an_own_of_another(bench: Any, shipped: Any) -> None:
    shipped("cfg five", cfg=5.0)
    assert bench.plan(cfg=5.0).planner == "cfg five"
    plan = bench.plan(cfg=3.0)
    assert (plan.planner, plan.warnings) == ("random planner", ()), "the other one is no alternative"


def test_the_pack_loads_whatever_the_folders_are(session: Any, folders: Any, forbidden: Any, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    folders(closed / "inside").mkdir(parents=True)
    forbidden(closed)
    for name in ("BudgetPlanner", "AdaptiveKSampler", "StepSweep", "PerceptualMetricProbe"):
        assert session.object_info(f"BudgetFusion_{name}")[f"BudgetFusion_{name}"]["input"]


AS_NOBODY = """
    import os, sys
    sys.path.insert(0, sys.argv[1])
    from budgetfusion_nodes.host import paths
    from budgetfusion_nodes.core.messages import english_words
    english_words()
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    paths.planner_folders = lambda: tuple(map(paths.Path, sys.argv[2:]))
    found = paths.search_planners()
    print(sorted(found.files), [note.code for note in found.notes], bool(found.fingerprint()))
"""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to become somebody else")
def test_with_real_permissions(tmp_path: Path, planner_file: Path) -> None:
    """In a process that is not root: a folder that may not be listed, one that may not be entered, a closed file."""
    part = tmp_path
    while part.parent.name and not part.name.startswith("pytest-of-"):
        part.chmod(0o755)
        part = part.parent
    part.chmod(0o755)
    for name, mode in (("unlisted", 0o300), ("unentered", 0o644), ("open", 0o755), ("above", 0o700)):
        folder = tmp_path / name
        (folder / "inside").mkdir(parents=True)
        (folder / f"{name}.safetensors").write_bytes(planner_file.read_bytes())
        folder.chmod(mode)
    tried = [tmp_path / "unlisted", tmp_path / "unentered", tmp_path / "open", tmp_path / "above" / "inside"]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(AS_NOBODY), str(ROOT), *map(str, tried)],
        capture_output=True, text=True, timeout=120, check=False, cwd="/",
    )  # fmt: skip
    assert done.stdout.split("]")[0] == "['open.safetensors'", done.stderr[-2000:]
    assert done.stdout.count("folder_unreadable") + done.stdout.count("planner_file") >= 3
