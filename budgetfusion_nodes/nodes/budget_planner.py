"""Budget Planner: a prompt becomes a step count, with the predicted curve on the node."""

from __future__ import annotations

from functools import partial
from typing import Any

from comfy_api.latest import io

from ..core.graph import spaced_elsewhere
from ..core.plan import DEFAULT_MAX_STEPS, DEFAULT_MIN_STEPS, DEFAULT_QUALITY, DEFAULT_RISK
from ..host.queue import running_prompt
from ..planning.choice import AUTO, planners_state
from ..planning.service import Request, plan_render, with_sigmas, with_split
from . import schema as s

COUNTS = (1, 3)
"""Places of the outputs steps and split_step."""


class BudgetPlanner(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return s.schema(
            "BudgetPlanner",
            display_name="Budget Planner",
            description="Decides before sampling how many steps this prompt needs for the wanted quality, and shows "
            "the predicted curve. Connect plan to Adaptive KSampler, steps to any KSampler, or sigmas to a "
            "custom sampler.",
            search_aliases=[
                "steps",
                "step count",
                "auto steps",
                "fewer steps",
                "budget",
                "quality",
                "quality slider",
                "budgetfusion",
            ],
            is_output_node=True,  # so that a plan can be looked at before anything is rendered
            inputs=[
                s.model_input(),
                s.positive_input("The prompt that is planned."),
                s.sampler_input(),
                s.scheduler_input(),
                s.cfg_input(),
                s.quality_input(optional=True),
                s.min_steps_input(),
                s.max_steps_input(advanced=True, optional=True),
                s.risk_input(),
                s.planner_input(),
                io.Latent.Input(
                    "latent_image",
                    optional=True,
                    tooltip="Optional: lets the planner check that the image size is the one it was calibrated for.",
                ),
                s.schedule_input(),
                s.split_input(),
                s.memory_input(),
            ],
            hidden=s.HIDDEN,
            outputs=[
                s.BudgetPlan.Output(
                    "plan", tooltip="The decision and its reasons, for Adaptive KSampler or the Probe."
                ),
                io.Int.Output(
                    "steps",
                    tooltip="The planned number of steps, for any sampler node. Where it goes to an input called "
                    "steps, auto plans the stock schedule, which that node has.",
                ),
                io.Sigmas.Output("sigmas", tooltip="The noise levels of these steps, for a custom sampler."),
                io.Int.Output(
                    "split_step",
                    tooltip="The planned step at the noise level of split_at, for end_at_step and start_at_step of two "
                    "KSampler (Advanced) or for SplitSigmas; 0 without a split.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, planner: str = AUTO) -> bool:
        """A planner file that is not there must not refuse the graph: the node says so and plans `max_steps`."""
        del planner
        return True

    @classmethod
    def fingerprint_inputs(cls, planner: str | None = AUTO, **_inputs: Any) -> str:
        """A planner file that is saved, refitted or deleted is another input; so is where steps goes."""
        elsewhere = spaced_elsewhere(running_prompt(), cls.hidden.unique_id, COUNTS)
        return f"{planners_state(planner)} {elsewhere}"

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        sampler_name: str,
        scheduler: str,
        cfg: float,
        quality: float = DEFAULT_QUALITY,
        min_steps: int = DEFAULT_MIN_STEPS,
        max_steps: int = DEFAULT_MAX_STEPS,
        risk: float = DEFAULT_RISK,
        planner: str = AUTO,
        latent_image: Any = None,
        schedule: str = AUTO,
        split_at: int = 0,
        memory: bool = True,
    ) -> io.NodeOutput:
        files = s.model_files(model, cls.hidden)
        request = Request(
            sampler_name,
            scheduler,
            cfg,
            quality,
            min_steps,
            max_steps,
            risk,
            planner,
            schedule=schedule,
            elsewhere=partial(spaced_elsewhere, cls.hidden.prompt, cls.hidden.unique_id, COUNTS),
            files=files,
            memory=memory,
        )
        plan, sigmas = with_sigmas(plan_render(model, positive, request, latent_image), model, request)
        plan, sigmas, split, said = with_split(plan, sigmas, model, request, split_at)
        text = "\n".join([plan.summary(), *(note.text() for note in said)])
        return io.NodeOutput(plan, plan.steps, sigmas, split, ui={"text": [text], "budget_plan": [plan.to_dict()]})
