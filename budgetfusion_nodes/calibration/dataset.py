"""From what the store holds to what a planner is fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.setting import Setting
from ..predictor.dataset import ABSENT, SweepDataset
from .records import Encoded
from .store import Store
from .trajectory import filled


def build_dataset(
    store: Store,
    setting_id: int,
    backends_id: int,
    prompt_ids: Sequence[int],
    splits: Sequence[str],
    grid: Sequence[int],
    setting: Setting,
    backends: Mapping[str, str],
) -> SweepDataset | None:
    """These prompts, each with its split, as far as at least one of their trajectories is whole on `grid`; None where
    there are none. Counts that were left out are filled by the bounds that decided them. The data carry no text."""
    found = store.measured(setting_id, backends_id, prompt_ids)
    rows: dict[int, list[tuple[int, NDArray[Any], NDArray[Any]]]] = {}
    for (prompt_id, seed), known in found.items():
        if grid[0] in known and grid[-1] in known:
            rows.setdefault(prompt_id, []).append((seed, *filled(grid, known, tuple(backends))))
    kept = [(p, split) for p, split in zip(prompt_ids, splits, strict=True) if p in rows]
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
