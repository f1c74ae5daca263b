"""Names of backends: `family`, `family:model` or `family:model#digest`. Imports nothing, so that a node can list them.

Numbers compare only with numbers of the same name. The digest is the first 8 hex digits of a SHA-256. It is that of the
weight file in "st_lpips:alex#...", "tiny_scenes:<file>#...", "open_clip:<file>#..." and
"open_clip:<architecture>:<file>#..."; where weights come from several files or from the host, it is that of the
parameters: "lpips:alex#...", "dreamsim:ensemble#...", "clip_vision:ViT-H-14-224#...". "haarpsi" has no weights.
"""

from __future__ import annotations

from dataclasses import dataclass

D_SIM_ORDER = ("dreamsim", "st_lpips", "lpips", "haarpsi")
"""What "auto" tries, the best first; why in docs/metrics.md. "tiny_scenes" is not among them: it knows no other
pictures."""
D_SIM_CHOICES = ("auto", *D_SIM_ORDER, "tiny_scenes")
"""What can be set on a node or in a command."""

UNREAD = "unread"
"""Digest of weights that could not be read: equal to no other, itself included."""


@dataclass(frozen=True)
class BackendName:
    family: str
    model: str
    """May hold colons; empty where the family has only one."""
    digest: str
    """Empty where there are no weights, or in a name of an earlier version."""

    @classmethod
    def parse(cls, name: str) -> BackendName:
        head, _, digest = name.partition("#")
        family, _, model = head.partition(":")
        return cls(family, model, digest)

    def __str__(self) -> str:
        head = f"{self.family}:{self.model}" if self.model else self.family
        return f"{head}#{self.digest}" if self.digest else head


def is_same(wanted: str, there: str) -> bool:
    """Whether numbers of these two backends compare."""
    return wanted == there and BackendName.parse(there).digest != UNREAD
