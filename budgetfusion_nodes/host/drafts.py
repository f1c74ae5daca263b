"""The finished pictures of the last trajectories, as the sampler left them: who measures a prompt and seed at several
counts need not render again what the artist has rendered already.

A trajectory is known by prefix_cache.run_key of its render (model, conditioning, latent, seed, sampler, cfg, prefix)
and by its setting, which has the scheduler and the schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..core.recent import Recent
from ..core.setting import Setting
from .prefix_cache import AROUND_EVALUATIONS

LIMIT_BYTES = 64 * 2**20
TRAJECTORIES = 64
"""Who learns comes soon after the render; of small pictures the bytes alone would allow thousands."""


@dataclass
class Drafts:
    """Trajectories that were rendered longest ago go first."""

    limit: int = LIMIT_BYTES
    most: int = TRAJECTORIES
    _kept: Recent[str, dict[int, Tensor]] = field(init=False)

    def __post_init__(self) -> None:
        self._kept = Recent(self.most, _bytes, self.limit)

    def keep(self, trajectory: str | None, steps: int, samples: Tensor) -> None:
        """samples: [1, C, ...] of a finished render of `steps` steps; on the CPU, where the host leaves them, else not
        kept."""
        if trajectory is None or samples.device.type != "cpu" or samples.nbytes > self.limit:
            return
        self._kept[trajectory] = {**self._kept.get(trajectory, {}), steps: samples}

    def of(self, trajectory: str | None) -> Mapping[int, Tensor]:
        """Steps -> samples of one trajectory."""
        return {} if trajectory is None else dict(self._kept.get(trajectory, {}))


def _bytes(counts: Mapping[int, Tensor]) -> int:
    return sum(samples.nbytes for samples in counts.values())


def trajectory_of(key: str | None, model: Any, setting: Setting) -> str | None:
    """key: a `run_key`. None where functions run around the evaluations (RescaleCFG, APG): a replay runs them again and
    needs no key of theirs, but they make another picture."""
    if key is None or AROUND_EVALUATIONS & model.model_options.keys():
        return None
    return f"{key} {setting}"


FINISHED = Drafts()
"""Of this process."""
