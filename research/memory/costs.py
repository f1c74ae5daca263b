"""What a full memory costs: the store's size, the first look-up, every later one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sqlalchemy import insert

from budgetfusion_nodes.calibration import schema as t
from budgetfusion_nodes.calibration.memory_reader import Wanted, matching_settings, read_curves, reading
from budgetfusion_nodes.calibration.records import Encoded, Measurement, Subject
from budgetfusion_nodes.calibration.store import Store, put_backends, put_measurement, put_prompt, put_setting
from budgetfusion_nodes.predictor.memory_fit import fit_memory
from budgetfusion_nodes.predictor.memory_space import signature
from budgetfusion_nodes.predictor.planner import Planner
from budgetfusion_nodes.predictor.planner_file import load_planner
from research.options import WEIGHTS

PER_PROMPT = 2
PLANS = 30


def costs(path: Path, renders: int) -> str:
    """Fills a store with `renders` made-up renders at the shipped planner's setting, two of each prompt; times it."""
    planner = load_planner(WEIGHTS / "planners" / "tiny_scenes_dpmpp_2m.safetensors")
    encoded = _fill(path, planner, renders)
    started = time.process_time()
    wanted = Wanted(planner, planner.setting, {})
    with reading(path) as connection:
        remembered = read_curves(connection, wanted, matching_settings(connection, wanted))
    assert remembered is not None
    read = time.process_time()
    memory = fit_memory(remembered, planner.risk_table)
    fitted = time.process_time()

    def recalled() -> object:
        place = signature(encoded.tokens, encoded.pooled)
        return planner.plan(encoded.tokens, encoded.pooled, recall=lambda p: memory.recall(p, place, 0.1))

    with_memory, plain = _median(recalled), _median(lambda: planner.plan(encoded.tokens, encoded.pooled))
    return (
        f"{len(remembered)} renders: store {path.stat().st_size / 1e6:.0f} MB; read {read - started:.2f} s and fitted "
        f"{fitted - read:.2f} s, once after a change; a plan {1e3 * with_memory:.1f} ms of one core, without memory "
        f"{1e3 * plain:.1f} ms"
    )


def _fill(path: Path, planner: Planner, renders: int) -> Encoded:
    """The last prompt's conditioning."""
    rng = np.random.default_rng(0)
    scales = dict(zip(planner.metrics, planner.scale, strict=True))
    encoded, curves, prompt = _prompt(planner, 0), np.zeros(0), 0
    with Store.at(path) as store, store.transaction() as connection:
        setting = put_setting(connection, Subject(planner.setting, planner.target_steps))
        backends = put_backends(connection, planner.backends)
        for number in range(renders):
            if number % PER_PROMPT == 0:
                encoded = _prompt(planner, number)
                prompt = put_prompt(connection, encoded, "learn", None, with_features=False)
                curves = planner.predict(encoded.tokens, encoded.pooled).normalised.max(axis=1)
            key = {"setting_id": setting, "prompt_id": prompt, "seed": number}
            row = connection.execute(insert(t.trajectories).values(key)).inserted_primary_key
            assert row is not None
            levels = curves[:, 1] * np.exp(0.4 * rng.normal())
            for steps, level in zip(planner.grid, levels.tolist(), strict=True):
                distances = {metric: level * scale for metric, scale in scales.items()}
                put_measurement(connection, row[0], backends, Measurement(steps, distances, 9.0, steps, 0.1, 0.1))
            predicted = np.ascontiguousarray(curves[:, 1:].T, np.float32).tobytes()
            said = {"predictor": planner.fingerprint, "predicted": predicted}
            connection.execute(
                insert(t.memories).values(trajectory_id=row[0], at=float(number), source="learn", **said)
            )
    return encoded


def _prompt(planner: Planner, seed: int) -> Encoded:
    width, pooled = len(planner.projection.token_mean), len(planner.projection.pooled_mean)
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(48, width, generator=generator) + torch.randn(width, generator=generator)
    return Encoded.of(tokens, torch.randn(pooled, generator=generator) if pooled else None)


def _median(plan: Callable[[], object]) -> float:
    """Seconds of one core."""
    found = []
    for _ in range(PLANS):
        started = time.process_time()
        plan()
        found.append(time.process_time() - started)
    return statistics.median(found)
