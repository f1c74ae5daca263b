"""From what the store holds to what a planner is fitted on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.setting import Setting
from ..predictor.dataset import ABSENT, SweepDataset
from .records import Encoded
from .store import Store
from .trajectory import filled, next_count


def build_dataset(
    store: Store,
    setting_id: int,
    backends_id: int,
    prompts: Sequence[tuple[int, str, Collection[int]]],
    grid: Sequence[int],
    tolerance: float,
    setting: Setting,
    backends: Mapping[str, str],
) -> SweepDataset | None:
    """prompts: (id, split, seeds) of each, once. Those with a finished trajectory; None where there are none.

    A trajectory counts when nothing of it is open on `grid` at `tolerance`; counts that were left out are filled by the
    bounds that decided them. The data carry no text."""
    wanted = {prompt_id: seeds for prompt_id, _, seeds in prompts}
    found = store.measured(setting_id, backends_id, tuple(wanted))
    rows: dict[int, list[tuple[int, NDArray[Any], NDArray[Any]]]] = {}
    for (prompt_id, seed), known in found.items():
        if seed in wanted[prompt_id] and next_count(grid, known, tolerance) is None:
            rows.setdefault(prompt_id, []).append((seed, *filled(grid, known, tuple(backends))))
    kept = [(prompt_id, split) for prompt_id, split, _ in prompts if prompt_id in rows]
    if not kept:
        return None
    encoded = store.encoded([p for p, _ in kept])
    seeds = max(len(rows[p]) for p, _ in kept)
    shape = (len(kept), seeds, len(grid))
    noise = np.full(shape[:2], ABSENT, np.int64)
    shortfall = np.full((*shape, len(backends)), np.nan, np.float32)
    l_snr = np.full(shape, np.nan, np.float32)
    for row, (prompt_id, _) in enumerate(kept):
        for column, (seed, distances, decibel) in enumerate(rows[prompt_id]):
            noise[row, column], shortfall[row, column], l_snr[row, column] = seed, distances, decibel
    tokens, lengths, pooled = _features([encoded[p] for p, _ in kept])
    return SweepDataset(
        prompts=tuple(f"prompt {p}" for p, _ in kept),
        split=tuple(split for _, split in kept),
        tokens=tokens,
        lengths=lengths,
        pooled=pooled,
        seeds=noise,
        shortfall=shortfall,
        l_snr=l_snr,
        grid=tuple(grid),
        setting=setting,
        backends=dict(backends),
        metrics=tuple(backends),
    )


def _features(encoded: Sequence[Encoded]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """tokens [N, L, D] float32, lengths [N], pooled [N, P] float32; P = 0 where a prompt has none."""
    lengths = np.array([len(e.tokens) for e in encoded], np.int64)
    tokens = np.zeros((len(encoded), int(lengths.max()), encoded[0].tokens.shape[1]), np.float32)
    for row, one in enumerate(encoded):
        tokens[row, : lengths[row]] = one.tokens.float().numpy()
    pooled = [e.pooled.float().numpy() for e in encoded if e.pooled is not None]
    whole = len(pooled) == len(encoded)
    return tokens, lengths, np.stack(pooled) if whole else np.zeros((len(encoded), 0), np.float32)
