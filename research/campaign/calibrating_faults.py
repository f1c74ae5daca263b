"""Faults in the stages of a calibration: the search, renders, measures, the fit, the store, the planner, the report.

A whole calibration is made once. Before each fault the store is put back to that one with a little of everything
missing (one prompt of the search and what it found, one trajectory, the planner), so that every stage has work to do.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from budgetfusion_nodes.core.schedule import NESTED, STOCK
from research.in_process_host import HostRunError, HostSession

from .calibrating import Content, content
from .in_host import node, pack_module
from .part import Work
from .saying import Named, explained, says

PROMPTS, SEARCHED = 10, 8
"""The least that a planner can be guaranteed with, and one more; the least that a search takes."""
PARTS = ("shape", "circle", "square", "star", "cross", "ring")
COLOURS = ("red", "green", "blue")
SIZE = 32
STEPS = {STOCK: 4, NESTED: 13}
"""Schedule that is asked for -> target; a search needs more steps than a distilled model has."""


class CalibratingBench:
    """Calibrate on a shipped model, small enough for hundreds of runs."""

    def __init__(self, session: HostSession, work: Work, kind: str) -> None:
        """kind: along the stock schedule, which is cheap, or with a search for a nested one; a key of STEPS."""
        self.session, self.kind = session, kind
        self.store: Path = pack_module("host.paths").store_path()
        self.folder = session.base_dir / "models" / "budgetfusion"
        self.planner = self.folder / f"campaign_{kind}.safetensors"
        self._kept = work.folder / f"{kind}.sqlite3"
        self._whole: Content | None = None
        self._runs = 0

    @staticmethod
    def methods() -> tuple[type, ...]:
        """Classes whose methods are stages."""
        names = {
            "calibration.job": ("Job",),
            "calibration.store": ("Store",),
            "calibration.claims": ("Claims",),
            "calibration.executors": ("InlineExecutor",),
            "calibration.host_job": ("Teller",),
            "calibration.host_renderer": ("Graph", "HostRenderer"),
            "calibration.host_search": ("HostLooker",),
            "calibration.search_stage": ("ScheduleSearch",),
            "calibration.search_store": ("SearchStore",),
            "calibration.records": ("Encoded",),
            "metrics.measure": ("Backends", "Series"),
        }
        return tuple(getattr(pack_module(module), cls) for module, listed in names.items() for cls in listed)

    @contextmanager
    def amounts(self) -> Iterator[None]:
        """Inside, `standard` is small."""
        spec = pack_module("calibration.spec")
        few = spec.Amount(prompts=PROMPTS, seeds=1, counts=3, tolerance=0.05, alone=PROMPTS, may_stop=False)
        with (
            mock.patch.dict(spec.AMOUNTS, {"standard": few}),
            mock.patch.dict(spec.SEARCHES, {"standard": (SEARCHED, 1)}),
        ):
            yield

    def graph(self) -> dict[str, Any]:
        """Calibrate; each one runs anew."""
        self._runs += 1
        count = PROMPTS if self.kind == STOCK else PROMPTS + SEARCHED
        texts = [f"a {colour} {part} on black" for part in PARTS for colour in COLOURS][:count]
        text = "\n".join(texts) + "\n" * self._runs  # else the host answers from its cache
        sampled = {"sampler_name": "dpmpp_2m", "scheduler": "karras", "cfg": 3.0, "max_steps": STEPS[self.kind]}
        prompts = {"prompts": "text, one a line", "prompt_text": text, "name": self.planner.stem}
        linked = {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "negative": ["3", 0]}
        how = {"thoroughness": "standard", "schedule": self.kind, "width": SIZE, "height": SIZE}
        return {
            "1": node("CheckpointLoaderSimple", ckpt_name="tiny_scenes.safetensors"),
            "3": node("CLIPTextEncode", text="", clip=["1", 1]),
            "5": node("BudgetFusion_Calibrate", **linked, **sampled, **prompts, **how),
        }

    def prepare(self) -> None:
        """The undisturbed calibration, and what each trial begins with."""
        self.session.execute(self.graph())
        self._whole = content(self.planner)
        with closing(sqlite3.connect(self.store)) as store, closing(sqlite3.connect(self._kept)) as kept:
            store.backup(kept)
            for (setting,) in kept.execute("SELECT id FROM settings").fetchall():
                newest = "IN (SELECT max(id) FROM trajectories WHERE setting_id = ?)"
                kept.execute(f"DELETE FROM measurements WHERE trajectory_id {newest}", (setting,))
            kept.execute("DELETE FROM search_looks WHERE prompt_id = (SELECT max(prompt_id) FROM search_looks)")
            kept.execute("DELETE FROM found_schedules")
            kept.commit()

    def begin(self) -> None:
        """Puts the store back, and takes the planner away."""
        with closing(sqlite3.connect(self._kept)) as kept, closing(sqlite3.connect(self.store)) as store:
            kept.backup(store)
        for file in self.folder.glob(f"{self.planner.stem}*"):
            file.unlink()

    def check(self, graph: dict[str, Any], named: Named | None) -> str:
        """Empty, or what is wrong with the run."""
        before = self._rows()
        try:
            run, error = self.session.execute(graph), None
        except HostRunError as found:
            run, error = None, found
        if lost := before - self._rows():
            return f"{len(lost)} measurements were lost"
        if bad := [
            row.error for row in pack_module("calibration.planner_folder").list_folder(self.folder) if row.error
        ]:
            return f"a planner that cannot be read lies there: {bad[0]}"
        if error is not None:
            return "" if named and says(error, named) else f"the stage is not named: {error}"
        assert run is not None
        name, text = run.outputs["5"][:2]
        return self._check_end(self.folder / name, text, named)

    def _check_end(self, made: Path, text: str, named: Named | None) -> str:
        """A run that ended made the undisturbed planner, or says what it has left out. made: its file; beside a planner
        of the other schedule, which a search may end with whose renders failed, it has a name of its own."""
        if made.is_file() and content(made) == self._whole:
            return ""
        if named is None:  # a trajectory that failed twice in the run before stays left out
            told = made.is_file() and self._left_out() and (Named(None).inside(text) or explained(text))
            return "" if told else f"another planner, and said is: {text}"
        return "" if named.inside(text) or explained(text) else f"nothing is said of the fault: {text}"

    def _left_out(self) -> bool:
        with closing(sqlite3.connect(self.store)) as store:
            return bool(store.execute("SELECT count(*) FROM set_aside").fetchone()[0])

    def _rows(self) -> set[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.store)) as store:
            measured = store.execute("SELECT trajectory_id, steps, distances, l_snr FROM measurements").fetchall()
            seen = store.execute("SELECT prompt_id, seed, run, distances FROM search_looks").fetchall()
        return {*measured, *seen}
