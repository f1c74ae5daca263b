"""A memory as it was fitted, beside the store, so that no plan waits for reading and fitting 10,000 renders.

The store alone holds what was measured; these files can be deleted at any time and are made anew. One file for each
planner and render setting, safetensors, named by a digest of both. A damaged file, or one of another make, is none.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from ..core.errors import BudgetFusionError
from ..core.files import in_one_piece
from ..core.risk import RiskTable
from ..predictor.memory import OF_RENDERS, Curves, Memory
from ..predictor.memory_space import Kernel, Space
from .memory_reader import Seen, Wanted

log = logging.getLogger(__name__)

FORMAT = "budgetfusion.memory 1"
FOLDER = "memory"
MOST = 16
"""Files that are kept; those written longest ago go first."""
TABLES = ("own", "near", "new")
DTYPES = {name: np.dtype(word) for name, word in {"F64": "<f8", "F32": "<f4", "I64": "<i8", "U8": "u1"}.items()}
"""As safetensors calls them."""


@dataclass(frozen=True)
class Ready:
    """A memory and which of the store's renders it was made from."""

    memory: Memory | None
    """None where none of them is of use."""
    seen: Seen
    stamp: tuple[Any, ...] | None = None
    """Of the database's files when it was fitted; while they are the same, the database need not be asked."""


def key_of(wanted: Wanted) -> str:
    """Digest of everything that a memory depends on besides the store."""
    planner, setting = wanted.planner, {**wanted.setting.to_dict(), "model_name": ""}
    whole = [FORMAT, planner.fingerprint, vars(planner.risk_table), setting, sorted(wanted.facts.items())]
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:32]


def write_ready(store: Path, key: str, ready: Ready) -> None:
    """OSError where the folder cannot be written to; then the next process fits again."""
    folder = store.with_name(FOLDER)
    folder.mkdir(exist_ok=True)
    with in_one_piece(folder / f"{key}.safetensors") as partial:
        partial.write_bytes(_to_bytes(ready))
    written = sorted(folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
    for old in written[:-MOST]:
        old.unlink(missing_ok=True)


def read_ready(store: Path, key: str) -> Ready | None:
    """What was written last; None where there is nothing of use."""
    try:
        return _from_bytes((store.with_name(FOLDER) / f"{key}.safetensors").read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, BudgetFusionError, ValueError, KeyError, TypeError, IndexError) as error:
        log.warning("BudgetFusion fits its memory anew: %s", error)
        return None


def forget_ready(store: Path) -> None:
    """Deletes all files: what is forgotten in the store must not stay in them."""
    for path in store.with_name(FOLDER).glob("*.safetensors"):
        path.unlink(missing_ok=True)


def _to_bytes(ready: Ready) -> bytes:
    arrays: dict[str, Any] = {"seen_rows": ready.seen.rows, "seen_at": ready.seen.at}
    about: dict[str, Any] = {"format": FORMAT, "stamp": ready.stamp}
    memory = ready.memory
    if memory is not None:
        curves, space = memory.curves, memory.space
        arrays |= {name: getattr(curves, name) for name in OF_RENDERS}
        arrays["keys"] = np.frombuffer(curves.keys.astype("S64").tobytes(), np.uint8)
        arrays |= {"centre": space.centre, "scale": space.scale, "places": space.places, "norms": space.norms}
        tables = {name: None if (t := getattr(memory, name)) is None else asdict(t) for name in TABLES}
        about |= {"grid": curves.grid, "kernel": asdict(memory.kernel), "fitted": memory.fitted, "tables": tables}
    packed = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return save(packed, {"about": json.dumps(about)})


def _from_bytes(content: bytes) -> Ready:
    length = int.from_bytes(content[:8], "little")
    header = dict(json.loads(content[8 : 8 + length]))
    about = json.loads(header.pop("__metadata__")["about"])
    if about["format"] != FORMAT:
        raise ValueError("another make")
    arrays = {name: _array(content, 8 + length, **entry) for name, entry in header.items()}
    seen, stamp = Seen(arrays["seen_rows"], arrays["seen_at"]), about["stamp"]
    stamp = None if stamp is None else tuple(None if one is None else tuple(one) for one in stamp)
    if "kernel" not in about:
        return Ready(None, seen, stamp)
    of_renders = {name: arrays[name] for name in OF_RENDERS}
    keys = np.frombuffer(arrays["keys"].tobytes(), "S64")
    curves = Curves(grid=tuple(about["grid"]), keys=keys, **of_renders)
    space = Space(arrays["centre"], arrays["scale"], arrays["places"])
    _check(curves, space, arrays["norms"])
    space.__dict__["norms"] = arrays["norms"]
    tables = {name: None if table is None else _table(table) for name, table in about["tables"].items()}
    memory = Memory(curves, space, Kernel(**about["kernel"]), fitted=int(about["fitted"]), **tables)
    return Ready(memory, seen, stamp)


def _array(content: bytes, start: int, dtype: str, shape: list[int], data_offsets: tuple[int, int]) -> NDArray[Any]:
    """A view, which cannot be written to: safetensors' own reader copies, which took most of a session's first plan."""
    first, end = data_offsets
    whole = np.frombuffer(content, DTYPES[dtype], (end - first) // DTYPES[dtype].itemsize, start + first)
    return whole.reshape(shape)


def _table(data: dict[str, Any]) -> RiskTable:
    theta = tuple(tuple(map(float, row)) for row in data["theta"])
    return RiskTable(tuple(data["alphas"]), tuple(data["qualities"]), theta, int(data["prompts"]))


def _check(curves: Curves, space: Space, norms: Any) -> None:
    """ValueError where the arrays do not fit together."""
    renders, prompts = len(curves), len(curves.keys)
    shapes = [getattr(curves, name).shape == (renders, len(curves.grid)) for name in ("level", "median", "high")]
    shapes += [getattr(curves, name).shape == (renders,) for name in ("rows", "seeds", "distance")]
    shapes += [space.places.shape[0] == prompts, norms.shape == (prompts,), space.places.shape[1:] == space.scale.shape]
    inside = not renders or (curves.prompts.min() >= 0 and curves.prompts.max() < prompts)
    if not (all(shapes) and inside):
        raise ValueError("its parts do not fit together")
