"""Adaptive KSampler: a KSampler that decides its own number of steps before it starts."""

from __future__ import annotations

from functools import partial
from typing import Any

from comfy_api.latest import io

from ..core.graph import spaced_elsewhere
from ..core.plan import DEFAULT_MIN_STEPS, DEFAULT_RISK
from ..host.sampling import check_latent, render
from ..planning.choice import AUTO, planners_state
from ..planning.memory import only_seed, render_facts
from ..planning.receipt import shown
from ..planning.service import Request, obey, plan_render, with_sigmas
from . import schema as s

COUNT = 1
"""Place of the output steps."""


class AdaptiveKSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return s.schema(
            "AdaptiveKSampler",
            display_name="Adaptive KSampler",
            description="A KSampler whose steps became quality and max_steps: it plans the number of steps from the "
            "prompt, renders with ComfyUI's own sampler, and says what that saved.",
            search_aliases=[
                "ksampler",
                "sampler",
                "adaptive steps",
                "auto steps",
                "fewer steps",
                "early stop",
                "quality slider",
                "budgetfusion",
            ],
            inputs=[
                s.model_input(),
                s.seed_input(),
                s.quality_input(),
                s.max_steps_input(),
                s.cfg_input(),
                s.sampler_input(),
                s.scheduler_input(),
                s.positive_input("What the image should show. The plan is made from it."),
                s.negative_input(),
                io.Latent.Input("latent_image", tooltip="The latent to denoise."),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of the picture is made anew. Below 1 the plan counts the steps that really run, "
                    "at least 4: those that lie in this part of a full render.",
                    optional=True,
                ),
                s.min_steps_input(),
                s.risk_input(),
                s.planner_input(),
                s.BudgetPlan.Input(
                    "plan",
                    optional=True,
                    tooltip="Optional: a plan from Budget Planner. It overrides quality, the step limits, risk and "
                    "planner of this node.",
                ),
                s.schedule_input(),
                s.memory_input(),
            ],
            hidden=s.HIDDEN,
            outputs=[
                io.Latent.Output("latent", tooltip="The denoised latent, as KSampler gives it with this many steps."),
                io.Int.Output("steps", tooltip="The decided number of steps."),
                io.String.Output("receipt", tooltip="The plan's reasons, the time it took and what was saved."),
            ],
        )

    @classmethod
    def validate_inputs(cls, planner: str = AUTO) -> bool:
        """A planner file that is not there must not refuse the graph: the node says so and renders `max_steps`."""
        del planner
        return True

    @classmethod
    def fingerprint_inputs(cls, planner: str | None = AUTO, **inputs: Any) -> str:
        """A planner file that is saved, refitted or deleted is another input, unless a connected plan decides."""
        return "" if "plan" in inputs else planners_state(planner)

    @classmethod
    def execute(
        cls,
        model: Any,
        seed: int,
        quality: float,
        max_steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Any,
        negative: Any,
        latent_image: Any,
        denoise: float = 1.0,
        min_steps: int = DEFAULT_MIN_STEPS,
        risk: float = DEFAULT_RISK,
        planner: str = AUTO,
        plan: Any = None,
        schedule: str = AUTO,
        memory: bool = True,
    ) -> io.NodeOutput:
        check_latent(latent_image)
        request = Request(
            sampler_name,
            scheduler,
            cfg,
            quality,
            min_steps,
            max_steps,
            risk,
            planner,
            denoise,
            schedule,
            s.model_files(model, cls.hidden),
            memory,
            lambda: render_facts(negative, latent_image),
            only_seed(seed, latent_image),
        )
        rest = (model, positive, request, latent_image)
        decided = plan_render(*rest) if plan is None else obey(plan, *rest)
        elsewhere = partial(spaced_elsewhere, cls.hidden.prompt, cls.hidden.unique_id, (COUNT,))
        decided, sigmas = with_sigmas(decided, model, request, elsewhere)
        inputs = (sampler_name, scheduler, positive, negative, latent_image, denoise)
        along = {"sigmas": sigmas, "prefix_steps": decided.prefix_steps}
        done = render(model, seed, decided.steps, cfg, *inputs, **along)
        if memory:
            from ..planning.pairs import keep_for_memory  # on use: the host's start need not pay for it

            keep_for_memory(decided, done, cls.hidden, request, seed, (model, positive, negative, latent_image))
        text, ui = shown(decided, done, sampler_name)
        return io.NodeOutput(done.latent, decided.steps, text, ui=ui)
