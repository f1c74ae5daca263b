"""Step Sweep: one prompt and seed, rendered with several step counts."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from comfy_api.latest import io

from ..core.curves import DEFAULT_GRID, parse_grid
from ..core.errors import BudgetFusionError
from ..core.schedule import STOCK, NestedSchedule
from ..host.sampling import check_pictures, check_sampler, decode, sweep
from ..host.schedule import shared_sigmas
from ..planning.origin import mark, origin_of
from ..planning.service import Request, as_plan
from ..planning.special import check_path
from . import schema as s

DEFAULT_COUNTS = " ".join(map(str, DEFAULT_GRID))


class StepSweep(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return s.schema(
            "StepSweep",
            display_name="Step Sweep",
            description="Renders one prompt and seed once for each step count, always from the same noise, so that you "
            "can see what each count gives. Connect images and step_counts to Perceptual Metric Probe.",
            search_aliases=["steps", "step count", "xy plot", "compare steps", "budgetfusion"],
            inputs=[
                s.model_input(),
                s.positive_input("What the image should show."),
                s.negative_input(),
                io.Latent.Input(
                    "latent_image",
                    tooltip="The latent to start from. Of a batch or a video every picture and frame is rendered and "
                    "decoded; the Probe then gives the mean over them.",
                ),
                io.Vae.Input("vae", tooltip="Decodes the finished latents."),
                s.seed_input(),
                s.cfg_input(),
                s.sampler_input("can be swept: ancestral ones and dpm_adaptive are refused."),
                s.scheduler_input(),
                io.String.Input(
                    "step_counts",
                    default=DEFAULT_COUNTS,
                    optional=True,
                    tooltip="Step counts in increasing order. The last one is the full-step image that the others are "
                    "compared with.",
                ),
                s.BudgetPlan.Input(
                    "plan",
                    optional=True,
                    tooltip="Optional: a plan from Budget Planner. The sweep then runs along the schedule of this "
                    "plan: with a nested one all counts begin with the same steps, which are rendered once.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "images",
                    tooltip="One image for each step count, in their order; of a batch or a video all its pictures, "
                    "count by count.",
                ),
                io.String.Output("step_counts_text", display_name="step_counts", tooltip="The step counts as text."),
                io.Int.Output("counts", tooltip="The step counts as a list.", is_output_list=True),
            ],
        )

    @classmethod
    def validate_inputs(cls, step_counts: str | None = None, sampler_name: str | None = None) -> bool | str:
        """Refuses a bad grid or sampler before anything is rendered. None: the value comes from another node."""
        try:
            if step_counts is not None:
                parse_grid(step_counts)
            if sampler_name is not None:
                check_sampler(sampler_name)
        except BudgetFusionError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        latent_image: Any,
        vae: Any,
        seed: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        step_counts: str = DEFAULT_COUNTS,
        plan: Any = None,
    ) -> io.NodeOutput:
        counts = parse_grid(step_counts)
        check_sampler(sampler_name)
        check_path(model, sampler_name, scheduler)
        check_pictures(latent_image)
        schedule = STOCK if plan is None else as_plan(plan).schedule
        sigmas_of = partial(shared_sigmas, model, sampler_name, scheduler, NestedSchedule.from_text(schedule))
        inputs = (positive, negative, latent_image)
        renders = sweep(model, seed, counts, cfg, sampler_name, scheduler, *inputs, sigmas_of)
        images = torch.cat([decode(vae, done.latent) for done in renders])
        request = Request(sampler_name, scheduler, cfg)
        mark(images, origin_of(model, *inputs, request, seed, schedule), counts)
        return io.NodeOutput(images, " ".join(map(str, counts)), list(counts))
