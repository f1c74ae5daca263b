"""The finished pictures of the last trajectories, as the sampler left them: who measures a prompt and seed at several
counts need not render again what the artist has rendered already.

A trajectory is known by prefix_cache.run_key of its render (model, conditioning, latent, seed, sampler, cfg, prefix)
and by its setting, which has the scheduler and the schedule.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..core.setting import Setting
from .prefix_cache import AROUND_EVALUATIONS

LIMIT_BYTES = 64 * 2**20
TRAJECTORIES = 64
"""Who learns comes soon after the render; of small pictures the bytes alone would allow thousands."""


@dataclass
class Drafts:
    """Least recently used trajectories go first."""

    limit: int = LIMIT_BYTES
    most: int = TRAJECTORIES
    _kept: OrderedDict[str, dict[int, Tensor]] = field(default_factory=OrderedDict)

    def keep(self, trajectory: str | None, steps: int, samples: Tensor) -> None:
        """samples: [1, C, ...] of a finished render of `steps` steps; on the CPU, where the host leaves them, else not
        kept."""
        if trajectory is None or samples.device.type != "cpu" or samples.nbytes > self.limit:
            return
        self._kept.setdefault(trajectory, {})[steps] = samples
        self._kept.move_to_end(trajectory)
        while len(self._kept) > self.most or self._bytes() > self.limit:
            self._kept.popitem(last=False)

    def _bytes(self) -> int:
        return sum(samples.nbytes for counts in self._kept.values() for samples in counts.values())

    def of(self, trajectory: str | None) -> Mapping[int, Tensor]:
        """Steps -> samples of one trajectory."""
        return {} if trajectory is None else dict(self._kept.get(trajectory, {}))


def trajectory_of(key: str | None, model: Any, setting: Setting) -> str | None:
    """key: a `run_key`. None where functions run around the evaluations (RescaleCFG, APG): a replay runs them again and
    needs no key of theirs, but they make another picture."""
    if key is None or AROUND_EVALUATIONS & model.model_options.keys():
        return None
    return f"{key} {setting}"


FINISHED = Drafts()
"""Of this process."""
