"""Calibrate: fits a planner to the very model in the graph."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..core.errors import BudgetFusionError
from ..core.schedule import NESTED, STOCK, NestedSchedule
from ..host.sampling import check_has_count
from ..host.stopped import naming_the_stage
from ..planning.choice import planners_state
from . import schema as s

THOROUGHNESS = ("quick", "standard", "thorough")
"""As in calibration/spec.py."""
SOURCES = ("built-in", "text, one a line", "file in the input folder")
"""As in calibration/host_job.py, which would import the database library at start."""


def _how() -> list[io.Input]:
    """How much is rendered, of what, and where it goes."""
    return [
        io.Combo.Input(
            "thoroughness",
            options=list(THOROUGHNESS),
            default=THOROUGHNESS[0],
            tooltip="How many prompts are rendered: quick 28 (56 for a sampler that does not settle), standard up "
            "to 90, thorough 240 with two seeds each. Each goes on from the one before; standard ends by itself when "
            "more prompts change no count.",
        ),
        io.Combo.Input(
            "prompts",
            options=list(SOURCES),
            default=SOURCES[0],
            tooltip="Which prompts are rendered: the pack's own list, the text below, or a file. Prompts like "
            "those that you render give the best planner.",
        ),
        io.String.Input(
            "prompt_text",
            default="",
            multiline=True,
            tooltip="With 'text, one a line': your prompts. With 'file in the input folder': the name of a "
            "txt, tsv, json or png file there, or the word output for the prompts of your PNG files in the "
            "output folder.",
        ),
        io.String.Input(
            "name",
            default="",
            tooltip="Name of the planner file in models/budgetfusion. Empty: made from model, sampler and scheduler.",
        ),
        io.Int.Input("width", default=512, min=16, max=16384, step=8, tooltip="Of the pictures, in pixels."),
        io.Int.Input("height", default=512, min=16, max=16384, step=8, tooltip="Of the pictures, in pixels."),
    ]


def _optional() -> list[io.Input]:
    """What a graph may connect beside."""
    return [
        io.Conditioning.Input(
            "positive",
            optional=True,
            tooltip="Optional: what this conditioning carries beside its text (Flux guidance, SDXL sizes, "
            "reference latents) is laid on every calibration prompt.",
        ),
        io.Latent.Input(
            "latent_image",
            optional=True,
            tooltip="Optional: the latent that you render from. It sets size, channels and frames in place of "
            "width and height.",
        ),
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip="Optional: measures the meaning of the pictures (I-CLIP) too. Without it a planner goes by "
            "fine detail and shapes.",
        ),
        io.Boolean.Input(
            "keep_text",
            default=False,
            tooltip="Whether the prompts' texts are kept in the store. They are never in a planner.",
            optional=True,
        ),
        io.Combo.Input(
            "schedule",
            options=[NESTED, STOCK],
            default=NESTED,
            optional=True,
            tooltip="nested: looks for a noise level from which on the composition is settled, and plans the steps "
            "after it, so that the quality slider refines one picture. Where there is none, and with quick, the stock "
            "schedule is calibrated, and the report says so. stock: the scheduler's own steps, as KSampler has them.",
        ),
    ]


class Calibrate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return s.schema(
            "Calibrate",
            display_name="Calibrate",
            description="Makes a planner for the connected model: renders calibration prompts at several step counts, "
            "measures how far each is from the full-step picture, and saves what it learned. Cancel at any time; queue "
            "again to go on.",
            search_aliases=["calibrate", "train planner", "fit planner", "own model", "step count", "budgetfusion"],
            is_output_node=True,
            hidden=s.HIDDEN,
            inputs=[
                s.model_input(),
                io.Clip.Input("clip", tooltip="The text encoder of this model, for the calibration prompts."),
                io.Vae.Input("vae", tooltip="Decodes the calibration pictures."),
                s.negative_input(),
                s.sampler_input(
                    "get a planner by prompt and quality; others, such as ancestral ones, get one count for all "
                    "prompts where the measurements show one. dpm_adaptive is refused."
                ),
                s.scheduler_input(),
                s.cfg_input(),
                s.max_steps_input(),
                *_how(),
                *_optional(),
            ],
            outputs=[
                io.String.Output("planner", tooltip="The planner's file name."),
                io.String.Output("report", tooltip="What was measured and what the planner is good for."),
                io.Image.Output("curves", tooltip="Predicted quality over the step count."),
            ],
        )

    @classmethod
    def validate_inputs(cls, sampler_name: str | None = None, schedule: str | None = None) -> bool | str:
        """Refuses a sampler without a step count before anything is rendered. schedule: a graph of the API may name a
        nested schedule that is known already, as `nested 5@1.0`."""
        try:
            if sampler_name is not None:
                check_has_count(sampler_name)
            if schedule not in (None, NESTED):
                NestedSchedule.from_text(schedule)
        except BudgetFusionError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> str:
        """Runs again when planner files were added or taken away: a finished calibration then only fits anew."""
        return planners_state(None)

    @classmethod
    @naming_the_stage("Calibrate")
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        negative: Any,
        sampler_name: str,
        scheduler: str,
        cfg: float,
        max_steps: int,
        thoroughness: str,
        prompts: str,
        prompt_text: str,
        name: str,
        width: int,
        height: int,
        positive: Any = None,
        latent_image: Any = None,
        clip_vision: Any = None,
        keep_text: bool = False,
        schedule: str = NESTED,
    ) -> io.NodeOutput:
        # on use: the database library and the metrics would add to the start of every host
        from ..calibration.host_job import Asked, calibrate_graph, read_prompts
        from ..calibration.host_renderer import Graph
        from ..calibration.host_task import answer_task, task_of
        from ..calibration.spec import Spec

        s.model_files(model, cls.hidden)
        spec, texts = Spec(max_steps, thoroughness, keep_text), read_prompts(prompts, prompt_text, prompt_text)
        asked = Asked(spec, name, texts, schedule)
        graph = Graph.connected(
            model,
            clip,
            vae,
            negative,
            sampler_name,
            scheduler,
            cfg,
            positive=positive,
            latent_image=latent_image,
            width=width,
            height=height,
        )
        if (task := task_of(cls.hidden)) is not None:  # of a calibration on many machines
            answer_task(task, graph, asked, clip_vision)
            return io.NodeOutput("", "", None)
        done = calibrate_graph(graph, asked, clip_vision, cls.hidden.unique_id)
        return io.NodeOutput(done.name, done.text, done.picture, ui={"text": [done.text], "calibration": [done.shown]})
