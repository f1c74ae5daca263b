"""What the numbers of rows stand for. SQLite gives the number of a deleted row to the next one, so after `store forget`
in another process a number that this one still holds may be another setting's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select

from ..core.messages import message
from . import schema as t
from .store_file import StoreError

_Key = tuple[int, int, int]
"""(setting, prompt, seed)"""


@dataclass
class Rows:
    """Numbers that one Store gave out. Each check is a look by primary key, inside the transaction that it is for."""

    settings: dict[int, str] = field(default_factory=dict)
    """Number -> digest."""
    prompts: dict[int, str] = field(default_factory=dict)
    trajectories: dict[int, _Key] = field(default_factory=dict)

    def check_setting(self, connection: Connection, setting_id: int) -> None:
        """StoreError where the setting was deleted since; numbers of which this Store knows nothing pass."""
        _check(connection, t.settings, setting_id, self.settings.get(setting_id))

    def check_prompt(self, connection: Connection, prompt_id: int) -> None:
        """See `check_setting`."""
        _check(connection, t.prompts, prompt_id, self.prompts.get(prompt_id))

    def check_trajectory(self, connection: Connection, trajectory_id: int) -> None:
        """See `check_setting`; its setting and its prompt too."""
        key = self.trajectories.get(trajectory_id)
        if key is None:
            return
        own = t.trajectories.c
        query = select(own.setting_id, own.prompt_id, own.seed).where(own.id == trajectory_id)
        if (found := connection.execute(query).first()) is None or tuple(found) != key:
            raise forgotten()
        self.check_setting(connection, key[0])
        self.check_prompt(connection, key[1])


def forgotten() -> StoreError:
    """What this process works on was deleted by another."""
    return StoreError(message("store_forgotten"))


def _check(connection: Connection, table: Any, row: int, digest: str | None) -> None:
    if digest is None:
        return
    if connection.execute(select(table.c.digest).where(table.c.id == row)).scalar_one_or_none() != digest:
        raise forgotten()
