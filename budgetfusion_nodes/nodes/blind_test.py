"""Blind Test: shows two pictures unlabelled, and counts which one the artist chooses."""

from __future__ import annotations

import secrets
from typing import Any

from comfy_api.latest import io

from ..core.plan import DEFAULT_QUALITY, QUALITY_RANGE
from . import schema as s


class BlindTest(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        low, high = QUALITY_RANGE
        return s.schema(
            "BlindTest",
            display_name="Blind Test",
            description="Shows two pictures of the same seed side by side, unlabelled and in random order, and asks "
            "which is the better one. After each choice it says how many pairs you told apart, and at which quality "
            "your eyes stop telling.",
            search_aliases=["a/b test", "2afc", "forced choice", "compare images", "blind", "budgetfusion"],
            is_output_node=True,
            hidden=s.HIDDEN,
            inputs=[
                io.Image.Input("planned", tooltip="The pictures with the planned steps. Each is shown beside its own."),
                io.Image.Input(
                    "full",
                    tooltip="The pictures of the same seeds with all steps. Any two ways can be compared: nested "
                    "pictures in planned, stock ones here.",
                ),
                io.Float.Input(
                    "quality",
                    default=DEFAULT_QUALITY,
                    min=low,
                    max=high,
                    step=0.01,
                    round=0.001,
                    display_mode=io.NumberDisplay.slider,
                    optional=True,
                    tooltip="Where the quality slider stood for the planned pictures. A connected plan overrides it.",
                ),
                io.String.Input(
                    "label",
                    default="",
                    optional=True,
                    tooltip="Choices under one label are counted together. Empty: the setting of the connected plan.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="Optional: shown beside both; the question is then which of them is nearer to it. One "
                    "picture, or one for each pair.",
                ),
                s.BudgetPlan.Input("plan", optional=True, tooltip="Optional: says quality, steps and setting."),
            ],
            outputs=[],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        """Never the same (math.nan would be: one object equals itself): pairs that were not judged are asked again."""
        return secrets.token_hex(8)

    @classmethod
    def execute(
        cls,
        planned: Any,
        full: Any,
        quality: float = DEFAULT_QUALITY,
        label: str = "",
        reference: Any = None,
        plan: Any = None,
    ) -> io.NodeOutput:
        # on use: the database library would add to the start of every host
        from ..calibration.host_blind_test import ask
        from ..planning.pairs import remember_pair

        asked = ask(planned, full, reference, label, quality, plan)
        kept = remember_pair(cls.hidden, planned, full)
        if kept is not None:
            asked["messages"].append(kept.to_dict())
        return io.NodeOutput(ui={"blind_test": [asked]})
