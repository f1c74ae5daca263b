"""The finished pictures of the last trajectories, as the sampler left them: who measures a prompt and seed at several
counts need not render again what the artist has rendered already.

A trajectory is known by prefix_cache.run_key of its render: model, conditioning, latent, seed, sampler, cfg, prefix.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

LIMIT_BYTES = 64 * 2**20


@dataclass
class Drafts:
    """Least recently used trajectories go first."""

    limit: int = LIMIT_BYTES
    _kept: OrderedDict[tuple[str, str], dict[int, Tensor]] = field(default_factory=OrderedDict)

    def keep(self, key: str, schedule: str, steps: int, samples: Tensor) -> None:
        """samples: [1, C, ...] of a finished render of `steps` steps along a schedule; on the CPU, where the host
        leaves them, else not kept."""
        if samples.device.type != "cpu" or samples.nbytes > self.limit:
            return
        self._kept.setdefault((key, schedule), {})[steps] = samples
        self._kept.move_to_end((key, schedule))
        while sum(s.nbytes for counts in self._kept.values() for s in counts.values()) > self.limit:
            self._kept.popitem(last=False)

    def of(self, key: str | None, schedule: str) -> Mapping[int, Tensor]:
        """Steps -> samples of one trajectory."""
        return {} if key is None else dict(self._kept.get((key, schedule), {}))


FINISHED = Drafts()
"""Of this process."""
