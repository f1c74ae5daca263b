"""Perceptual Metric Probe: how far each image is from a reference, in the units that plans are made in."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..host.stopped import naming_the_stage
from ..metrics.names import D_SIM_CHOICES
from . import schema as s


class PerceptualMetricProbe(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return s.schema(
            "PerceptualMetricProbe",
            display_name="Perceptual Metric Probe",
            description="Measures how far each image is from the reference: fine detail (L-SNR), shapes and layout "
            "(D-SIM) and meaning (I-CLIP). 0 is the same as the reference.",
            search_aliases=[
                "LPIPS",
                "DreamSim",
                "CLIP score",
                "sharpness",
                "image quality",
                "metric",
                "budgetfusion",
            ],
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="Images of one size, usually one for each step count."),
                io.String.Input(
                    "step_counts",
                    default="",
                    optional=True,
                    tooltip="The step count of each image, in increasing order. Empty: the images are only numbered.",
                ),
                io.Combo.Input(
                    "d_sim_backend",
                    options=list(D_SIM_CHOICES),
                    default=D_SIM_CHOICES[0],
                    optional=True,
                    tooltip="What measures D-SIM. auto takes the one that the connected plan was made with, else the "
                    "first one that is installed with its weights; haarpsi needs none, tiny_scenes is for Tiny Scenes "
                    "pictures only. Numbers of different backends cannot be compared.",
                ),
                io.Image.Input(
                    "reference",
                    optional=True,
                    tooltip="What they are compared with: one image, or one for each. Without it: the last of images.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="What measures I-CLIP. Without it: the small encoder made for Tiny Scenes pictures.",
                ),
                s.BudgetPlan.Input(
                    "plan", optional=True, tooltip="Optional: compares the measured quality with the predicted one."
                ),
            ],
            outputs=[
                io.String.Output("curves", tooltip="All distances as JSON."),
                io.Float.Output(
                    "l_snr", tooltip="L-SNR distance in dB of the first image from the reference; 0 is equal."
                ),
                io.Float.Output("d_sim", tooltip="D-SIM distance of the first image from the reference; 0 is equal."),
                io.Float.Output("i_clip", tooltip="I-CLIP distance of the first image from the reference; 0 is equal."),
                io.Image.Output("plot", tooltip="The curves as a picture."),
                io.String.Output("text", tooltip="The numbers as a table."),
            ],
        )

    @classmethod
    @naming_the_stage("Perceptual Metric Probe")
    def execute(
        cls,
        images: Any,
        step_counts: str = "",
        d_sim_backend: str = D_SIM_CHOICES[0],
        reference: Any = None,
        clip_vision: Any = None,
        plan: Any = None,
    ) -> io.NodeOutput:
        # on use: the metrics would add to the start of every host, and most runs measure nothing
        from ..planning.probe import probe
        from .plot import draw

        result = probe(images, reference, step_counts, d_sim_backend, clip_vision, plan)
        plot = draw(result, plan)
        shown = {**ui.PreviewImage(plot, cls=cls).as_dict(), "text": [result.text()], "probe": [result.to_dict()]}
        if hasattr(plan, "to_dict"):  # the node draws the measured points over its curve
            shown["budget_plan"] = [plan.to_dict()]
        return io.NodeOutput(result.to_json(), *result.first(), plot, result.text(), ui=shown)
