"""Choosing a D-SIM backend by its name. Nothing here downloads.

The libraries (piq, lpips, dreamsim) are imported when a backend is loaded, and a backend whose package or weight files
are missing raises BackendMissingError, which says what to install and where.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass

from ..core.errors import BackendMissingError, BudgetFusionError, InputError
from .d_sim_dreamsim import find_dreamsim, load_dreamsim
from .d_sim_haarpsi import HaarPsiBackend
from .d_sim_lpips import LPIPS_TRUNKS, find_lpips_trunk, load_lpips
from .d_sim_st_lpips import NETS, PACKAGE, find_st_lpips, load_st_lpips
from .d_sim_tiny_scenes import load_tiny_scenes
from .interfaces import DSimBackend
from .names import D_SIM_CHOICES, D_SIM_ORDER, BackendName, is_same
from .weights import has_package

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Family:
    is_there: Callable[[], bool]
    """Whether package and weights are on disk; imports nothing."""
    load: Callable[[str | None], DSimBackend]
    """Of one model of the family, or of the best one that is there."""
    has_models: bool = True


_FAMILIES = {
    "dreamsim": _Family(lambda: has_package("dreamsim") and find_dreamsim() is not None, load_dreamsim),
    "st_lpips": _Family(lambda: has_package(PACKAGE) and any(map(find_st_lpips, NETS)), load_st_lpips),
    "lpips": _Family(lambda: has_package("lpips") and any(map(find_lpips_trunk, LPIPS_TRUNKS)), load_lpips),
    "haarpsi": _Family(lambda: has_package("piq"), lambda _: HaarPsiBackend(), has_models=False),
    "tiny_scenes": _Family(lambda: True, lambda _: load_tiny_scenes()),
}


def available_d_sim_backends() -> tuple[str, ...]:
    """Those of `D_SIM_ORDER` whose package is installed and whose weights are on disk. Imports none of them."""
    return tuple(name for name in D_SIM_ORDER if _FAMILIES[name].is_there())


def load_d_sim(name: str = "auto") -> DSimBackend:
    """The backend of this name, kept for the next call; "auto" is the first of `D_SIM_ORDER` that can be loaded.

    A name with a digest is only that of the very weights. The result's `.name` says which one it is. Raises
    BackendMissingError or InputError, never substitutes for a name.
    """
    if name != "auto":
        return _load_named(name)
    for candidate in available_d_sim_backends():
        try:
            return _load_named(candidate)
        except BudgetFusionError as error:
            _log.warning("d_sim: %s is on disk but cannot be used; trying the next backend. %s", candidate, error)
    raise BackendMissingError(
        f"d_sim: none of {', '.join(D_SIM_ORDER)} can be loaded. Install the pack's requirements.txt; it contains piq, "
        "which brings haarpsi and needs no weights."
    )


@functools.lru_cache(maxsize=4)
def _load_named(name: str) -> DSimBackend:
    wanted = BackendName.parse(name)
    family = _FAMILIES.get(wanted.family)
    if family is None or (wanted.model and not family.has_models):
        raise InputError(f"d_sim: unknown backend {name!r}. Choose {', '.join(D_SIM_CHOICES)}.")
    backend = family.load(wanted.model or None)
    if wanted.digest and not is_same(name, backend.name):
        raise BackendMissingError(
            f"d_sim: {name} is not there; the weights of that kind here are {backend.name}. Get the weights that these "
            "numbers were made with, or measure again."
        )
    return backend
