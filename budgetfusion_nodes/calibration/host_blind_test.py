"""The Blind Test inside the host: its one session, its pictures as the host's own previews, and answers of the page."""

from __future__ import annotations

import io
import secrets
from functools import cache
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from torch import Tensor

from ..core.plan import Plan
from ..core.schedule import NESTED, STOCK
from ..planning.service import as_plan
from .blind_test import BETTER, NEARER, BlindTest, Condition, Pair
from .choices import ChoiceStore
from .host_job import store_path

MOST_LETTERS = 80
"""Of a label."""


class Answer(BaseModel):
    """What the page may send, and nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True)
    pair: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
    choice: Literal["left", "right", "same"]


@cache
def session() -> BlindTest:
    """The one of this process."""
    return BlindTest(store_path())


def ask(
    planned: Tensor, full: Tensor, reference: Tensor | None, label: str, quality: float, plan: object
) -> dict[str, Any]:
    """What the page is sent: {"run", "pairs": [{"id", "key", "question", "left", "right", "reference"}], "messages"}.
    Pictures are as the host names its previews, and `run` is another token each time.

    A connected plan says the quality, and names the test where the label is empty. InputError where the pictures do
    not fit, PlannerFileError where `plan` is none.
    """
    facts: dict[str, Any] = {}
    if plan is not None:
        known = as_plan(plan)
        quality, facts = known.quality, _facts(known)
    label = " ".join(label.split())[:MOST_LETTERS] or facts.get("setting", "")
    condition = Condition(label, BETTER if reference is None else NEARER, round(float(quality), 3), facts)
    asked = session().ask(planned, full, reference, condition)
    files = _save([picture for pair in asked.pairs for picture in _in_order(pair, planned, full)])
    beside = _references(asked.pairs, reference)
    pairs = [
        {
            "id": pair.token,
            "key": pair.key,
            "question": condition.question,
            "left": files[2 * i],
            "right": files[2 * i + 1],
            "reference": beside[i],
        }
        for i, pair in enumerate(asked.pairs)
    ]
    return {"run": secrets.token_hex(8), "pairs": pairs, "messages": [one.to_dict() for one in asked.messages]}


def answer(body: bytes) -> tuple[int, dict[str, Any]]:
    """(HTTP status, JSON) for what the page sent."""
    try:
        given = Answer.model_validate_json(body)
    except ValidationError as error:
        return 400, {"error": f"expected a pair and a choice: {error.error_count()} fields are wrong"}
    reply = session().answer(given.pair, given.choice)
    return 200, {"state": reply.state, "messages": [one.to_dict() for one in reply.messages]}


def as_csv() -> str:
    """All choices. StoreError where they cannot be read."""
    text = io.StringIO(newline="")
    ChoiceStore(store_path()).write_csv(text)
    return text.getvalue()


def _facts(plan: Plan) -> dict[str, Any]:
    kind = STOCK if plan.schedule == STOCK else NESTED
    setting = "" if plan.setting is None else f"{plan.setting.describe()}, {kind}"
    return {"steps": plan.steps, "max_steps": plan.max_steps, "schedule": plan.schedule, "setting": setting}


def _in_order(pair: Pair, planned: Tensor, full: Tensor) -> tuple[Tensor, Tensor]:
    """[H, W, C] each, from left to right."""
    one, other = planned[pair.index], full[pair.index]
    return (other, one) if pair.full_left else (one, other)


def _references(pairs: tuple[Pair, ...], reference: Tensor | None) -> list[dict[str, Any] | None]:
    if reference is None or not pairs:
        return [None] * len(pairs)
    if len(reference) == 1:
        return _save([reference[0]]) * len(pairs)
    return list(_save([reference[pair.index] for pair in pairs]))


def _save(pictures: list[Tensor]) -> list[Any]:
    """As the host's own previews in its temp folder, without the graph inside; numbered as they stand."""
    from comfy_api.latest import ui

    return ui.PreviewImage(torch.stack(pictures)).as_dict()["images"] if pictures else []
