"""Learn: measures a render at several step counts, so that the next plans know."""

from __future__ import annotations

import secrets
from typing import Any

from comfy_api.latest import io

from ..host.stopped import naming_the_stage
from ..planning.choice import AUTO
from ..planning.service import Request
from . import schema as s


class Learn(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return s.schema(
            "Learn",
            display_name="Learn from this Picture",
            description="Renders the same picture again at the step counts that its planner knows, measures them, and "
            "remembers the curve for later plans. It stops as soon as something else is queued.",
            search_aliases=["learn", "memory", "remember", "measure", "budgetfusion"],
            is_output_node=True,
            hidden=s.HIDDEN,
            inputs=[
                s.model_input(),
                s.positive_input("What the image shows."),
                s.negative_input(),
                io.Latent.Input("latent_image", tooltip="The latent that the picture was rendered from."),
                io.Vae.Input("vae", tooltip="Decodes the pictures that are measured."),
                s.seed_input(),
                s.cfg_input(),
                s.sampler_input(),
                s.scheduler_input(),
                s.planner_input(),
                s.schedule_input(),
                io.ClipVision.Input(
                    "clip_vision", optional=True, tooltip="The one that the planner was calibrated with, if any."
                ),
                io.Int.Input(
                    "per_hour",
                    default=0,
                    min=0,
                    max=3600,
                    optional=True,
                    tooltip="Pictures that are learned from in an hour, at most. 0: no limit.",
                ),
            ],
            outputs=[io.String.Output("text", tooltip="What was learned, or why nothing.")],
        )

    @classmethod
    def validate_inputs(cls, planner: str = AUTO) -> bool:
        """A planner file that is not there is said by the node."""
        del planner
        return True

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        """Never the same: what is left to measure is told by the store, the hour and the queue."""
        return secrets.token_hex(8)

    @classmethod
    @naming_the_stage("Learn from this Picture")
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
        planner: str = AUTO,
        schedule: str = AUTO,
        clip_vision: Any = None,
        per_hour: int = 0,
    ) -> io.NodeOutput:
        from ..calibration.learning import learner  # on use: the database library would add to the host's start

        request = Request(
            sampler_name, scheduler, cfg, planner=planner, schedule=schedule, files=s.model_files(model, cls.hidden)
        )
        said = learner(model, positive, negative, latent_image, vae, request, seed, clip_vision, per_hour).run()
        text = "\n".join(one.text() for one in said)
        return io.NodeOutput(text, ui={"text": [text]})
