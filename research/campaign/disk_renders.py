"""Planned renders in a genuine host beside every kind of bad store: each is made, and the next one works."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from budgetfusion_nodes.calibration.store import Store
from research.in_process_host import PACK_ROOT, HostSession, start_host

from .bad_disks import fill_up, set_writable, small_disk
from .calibrating import Tally
from .part import Finding, NotRunError, Work

log = logging.getLogger(__name__)

CHECKPOINT, STEPS = "tiny_scenes.safetensors", 12
DISK = 2 * 1024**2


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def _graph(seed: int) -> dict[str, Any]:
    """A planned render, and a sweep that is measured and remembered."""
    sampling = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": seed}
    sampling |= {"cfg": 3.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
    planning = {"quality": 0.9, "max_steps": STEPS, "min_steps": 2, "risk": 0.1, "denoise": 1.0, "planner": "auto"}
    return {
        "1": _node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "2": _node("CLIPTextEncode", text="two large blue circles on a green background", clip=["1", 1]),
        "3": _node("CLIPTextEncode", text="", clip=["1", 1]),
        "4": _node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "5": _node("BudgetFusion_AdaptiveKSampler", **sampling, **planning),
        "6": _node("PreviewAny", source=["5", 1]),
        "7": _node("BudgetFusion_StepSweep", **sampling, vae=["1", 2], step_counts="2 4"),
        "8": _node(
            "BudgetFusion_PerceptualMetricProbe", images=["7", 0], step_counts=["7", 1], d_sim_backend="haarpsi"
        ),
    }


def _zeroed(store: Path) -> None:
    content = bytearray(store.read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
    store.write_bytes(content)


def _newer(store: Path) -> None:
    with sqlite3.connect(store) as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()


def _folder(store: Path) -> None:
    store.unlink()
    store.mkdir()


SPOILT: dict[str, Callable[[Path], object]] = {
    "zeros in the middle": _zeroed,
    "zeros": lambda store: store.write_bytes(bytes(8192)),
    "a newer version": _newer,
    "a folder of its name": _folder,
}


@contextmanager
def _on_disk(store: Path, good: Path, spoil: Callable[[Path], object]) -> Iterator[None]:
    """The store's folder is a disk of its own, with a good store, and then spoilt."""
    with small_disk(store.parent, DISK) as disk:
        shutil.copyfile(good, store)
        spoil(disk)
        yield


def _rendered(session: HostSession, seed: int, kind: str, tally: Tally) -> str:
    """What the plan said of the store, if anything."""
    run = session.execute(_graph(seed))
    (plan,) = run.ui["5"]["budget_plan"]
    steps = run.outputs["5"][1]
    tally.expect(bool(run.outputs["5"][0]["samples"].isfinite().all()), f"{kind}: the picture was not finite")
    tally.expect(1 <= steps == plan["steps"] <= STEPS, f"{kind}: {steps} steps")
    tally.expect(bool(run.ui["8"]["probe"][0]["d_sim"]), f"{kind}: nothing was measured")
    return " ".join(str(note["code"]) for note in (*plan["warnings"], *run.ui["8"]["probe"][0]["notes"]))


def renders(work: Work) -> Finding:
    """NotRunError without a host."""
    if work.host is None:
        raise NotRunError("Renders beside a bad store need a ComfyUI, and there is none.")
    base, good, tally, seed = work.folder / "base", work.folder / "good.sqlite3", Tally(), work.seed
    session = start_host(work.host, base, [PACK_ROOT])
    store = base / "user" / "budgetfusion" / "calibration.sqlite3"
    _rendered(session, seed, "a good store", tally)
    with Store.at(store) as opened:
        opened.export(good)
    said: dict[str, str] = {}
    for kind, spoil in SPOILT.items():
        shutil.rmtree(store.parent)
        store.parent.mkdir()
        shutil.copyfile(good, store)
        spoil(store)
        for _ in range(2):
            seed += 1
            said[kind] = said.get(kind, "") + _rendered(session, seed, kind, tally)
    shutil.rmtree(store.parent)
    for kind, full in (("a full disk", True), ("a read-only disk", False)):
        spoil_disk: Callable[[Path], object] = (
            (lambda disk: fill_up(disk, 0)) if full else (lambda disk: set_writable(disk, False))
        )
        with _on_disk(store, good, spoil_disk):
            seed += 1
            said[kind] = _rendered(session, seed, kind, tally)
        store.parent.rmdir()
    quiet = [
        kind
        for kind, notes in said.items()
        if not ("memory_unavailable" in notes or "not_remembered" in notes or "store" in notes)
    ]
    log.info("disks: %s", said)
    text = f"Beside {len(said)} kinds of bad store every render and measurement was made ({', '.join(said)})."
    return tally.finding("goes_on", text, renders=seed - work.seed + 1, kinds_that_said_nothing=len(quiet))
