"""What a full memory costs: the store's size, the first look-up, every later one."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sqlalchemy import insert

from budgetfusion_nodes.calibration import schema as t
from budgetfusion_nodes.calibration.memory_file import FOLDER
from budgetfusion_nodes.calibration.memory_reader import Wanted
from budgetfusion_nodes.calibration.records import Encoded, Measurement, Subject
from budgetfusion_nodes.calibration.store import Store, put_backends, put_measurement, put_prompt, put_setting
from budgetfusion_nodes.calibration.store_memory import Remembered, remember
from budgetfusion_nodes.planning.memory import Cache
from budgetfusion_nodes.planning.origin import predicted_bytes
from budgetfusion_nodes.predictor.memory_space import signature
from budgetfusion_nodes.predictor.planner import Planner
from budgetfusion_nodes.predictor.planner_file import load_planner
from research.options import WEIGHTS

PER_PROMPT = 2
PLANS = 50


def costs(path: Path, renders: int) -> str:
    """Fills a store with `renders` made-up renders at the shipped planner's setting, two of each prompt; times it."""
    planner = load_planner(WEIGHTS / "planners" / "tiny_scenes_dpmpp_2m.safetensors")
    encoded = _fill(path, planner, renders)
    wanted, cache = Wanted(planner, planner.setting, {}), Cache()
    planned = partial(_plan, cache, path, wanted, encoded)
    planned()
    fitting, _ = _seconds(cache.wait, time.perf_counter)
    rows = []
    for _ in range(PLANS):
        again = Cache()
        rows.append([_seconds(partial(_plan, again, path, wanted, encoded))[0]])  # from the file
        _remember_one(path, planner, len(rows))
        rows[-1].append(_seconds(partial(_plan, again, path, wanted, encoded))[0])
        refit, _ = _seconds(again.wait, time.perf_counter)
        rows[-1] += [_seconds(partial(_plan, again, path, wanted, encoded))[0], refit]
        rows[-1].append(_seconds(lambda: planner.plan(encoded.tokens, encoded.pooled))[0])
    median, worst = np.median(rows, axis=0), np.max(rows, axis=0)
    beside = sum(file.stat().st_size for file in path.with_name(FOLDER).iterdir())
    stored = f"store {path.stat().st_size / 1e6:.0f} MB and {beside / 1e6:.0f} MB fitted"
    names = ("the first plan of a session", "the first after a new memory", "later ones")
    each = (f"{name} {1e3 * m:.1f} ({1e3 * w:.1f}) ms" for name, m, w in zip(names, median, worst, strict=False))
    return (
        f"{renders} renders: {stored}; one core, median (worst of {PLANS}): {', '.join(each)}, without memory "
        f"{1e3 * median[4]:.1f} ms; in a thread beside: reading and fitting all {fitting:.2f} s, thresholds after "
        f"a new memory {median[3]:.2f} s"
    )


def _plan(cache: Cache, path: Path, wanted: Wanted, encoded: Encoded) -> object:
    loaded = cache.memory(path, wanted)
    memory = None if loaded is None else loaded.ready.memory
    place = signature(encoded.tokens, encoded.pooled)
    recall = None if memory is None else lambda prediction: memory.recall(prediction, place, 0.1)
    return wanted.planner.plan(encoded.tokens, encoded.pooled, recall=recall)


def _seconds(call: Callable[[], object], clock: Callable[[], float] = time.thread_time) -> tuple[float, object]:
    """Of this thread, by default."""
    started = clock()
    found = call()
    return clock() - started, found


def _remember_one(path: Path, planner: Planner, number: int) -> None:
    """A render of a new prompt."""
    encoded = _prompt(planner, 1_000_000 + number)
    curves = planner.predict(encoded.tokens, encoded.pooled)
    levels, scales = curves.normalised.max(axis=1)[:, 1], dict(zip(planner.metrics, planner.scale, strict=True))
    measured = [
        Measurement(n, {metric: level * scale for metric, scale in scales.items()}, 9.0, n, 0.1, 0.1)
        for n, level in zip(planner.grid, levels.tolist(), strict=True)
    ]
    subject = Subject(planner.setting, planner.target_steps)
    found = Remembered(
        subject, encoded, 5, planner.backends, measured, "learn", planner.fingerprint, predicted_bytes(curves)
    )
    with Store.at(path) as store:
        remember(store, found)


def _fill(path: Path, planner: Planner, renders: int) -> Encoded:
    """The last prompt's conditioning."""
    rng = np.random.default_rng(0)
    scales = dict(zip(planner.metrics, planner.scale, strict=True))
    encoded, curves, prompt, predicted = _prompt(planner, 0), np.zeros(0), 0, b""
    with Store.at(path) as store, store.transaction() as connection:
        setting = put_setting(connection, Subject(planner.setting, planner.target_steps))
        backends = put_backends(connection, planner.backends)
        for number in range(renders):
            if number % PER_PROMPT == 0:
                encoded = _prompt(planner, number)
                prompt = put_prompt(connection, encoded, "learn", None, with_features=False)
                said = planner.predict(encoded.tokens, encoded.pooled)
                curves, predicted = said.normalised.max(axis=1), predicted_bytes(said)
            key = {"setting_id": setting, "prompt_id": prompt, "seed": number}
            row = connection.execute(insert(t.trajectories).values(key)).inserted_primary_key
            assert row is not None
            levels = curves[:, 1] * np.exp(0.4 * rng.normal())
            for steps, level in zip(planner.grid, levels.tolist(), strict=True):
                distances = {metric: level * scale for metric, scale in scales.items()}
                put_measurement(connection, row[0], backends, Measurement(steps, distances, 9.0, steps, 0.1, 0.1))
            of_planner = {"predictor": planner.fingerprint, "predicted": predicted}
            connection.execute(
                insert(t.memories).values(trajectory_id=row[0], at=float(number), source="learn", **of_planner)
            )
    return encoded


def _prompt(planner: Planner, seed: int) -> Encoded:
    width, pooled = len(planner.projection.token_mean), len(planner.projection.pooled_mean)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(48, width, generator=generator) + torch.randn(width, generator=generator)
    return Encoded.of(tokens, torch.randn(pooled, generator=generator) if pooled else None)
