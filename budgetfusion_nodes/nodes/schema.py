"""Inputs that several nodes share, and the one place that knows which keywords an older host lacks.

What every node has required since its first release stays so (tests/cases/first_inputs.json). Everything else is
optional with a default, so that old graphs and API prompts go on working, and stands behind it, because saved graphs
hold the values of widgets by their order, in which the page shows required inputs first.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable
from typing import Any

from comfy_api.latest import io

from ..core.graph import files_above
from ..core.plan import DEFAULT_MAX_STEPS, DEFAULT_MIN_STEPS, DEFAULT_QUALITY, DEFAULT_RISK, QUALITY_RANGE
from ..core.risk import ALPHAS
from ..core.schedule import NESTED, STOCK
from ..host.model_name import learn_name
from ..host.paths import list_planners
from ..planning.choice import AUTO

log = logging.getLogger(__name__)

CATEGORY = "BudgetFusion"
MAX_STEPS = 1000
RISK_RANGE = (ALPHAS[0], ALPHAS[-1])  # what a planner tabulates

BudgetPlan = io.Custom("BUDGET_PLAN")


NEWER_KEYWORDS = ("advanced", "search_aliases")
"""Keywords of inputs and schemas that not every supported host has; without them a node works all the same."""


def known(factory: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls `factory`, without those of NEWER_KEYWORDS that this host's version of it lacks."""
    parameters = inspect.signature(factory).parameters
    lacking = {key for key in NEWER_KEYWORDS if key not in parameters}
    return factory(*args, **{key: value for key, value in kwargs.items() if key not in lacking})


def model_files(model: Any, hidden: Any) -> tuple[str, ...]:
    """Names of the model files above the node that holds `hidden` and takes the MODEL; empty where the host hands it no
    graph, or one that cannot be read. What `model` is called there is kept."""
    prompt, node_id = getattr(hidden, "prompt", None), getattr(hidden, "unique_id", None)
    try:
        learn_name(model, prompt, node_id)
        return files_above(prompt, node_id)
    except Exception:  # names are for display and hints: no reason to stop a render
        log.warning("BudgetFusion cannot read the graph above its node", exc_info=True)
        return ()


def schema(node_id: str, **kwargs: Any) -> io.Schema:
    """A Schema in this pack's category; ids are frozen once released."""
    return known(io.Schema, node_id=f"BudgetFusion_{node_id}", category=CATEGORY, **kwargs)


def sampler_names() -> list[str]:
    return list(importlib.import_module("comfy.samplers").KSampler.SAMPLERS)


def scheduler_names() -> list[str]:
    return list(importlib.import_module("comfy.samplers").KSampler.SCHEDULERS)


HIDDEN = [io.Hidden.prompt, io.Hidden.unique_id]
"""For nodes that see in the graph which files, LoRAs included, the model above them comes from."""


def model_input() -> io.Input:
    return io.Model.Input("model", tooltip="The model that denoises the latent.")


def positive_input(tooltip: str) -> io.Input:
    return io.Conditioning.Input("positive", tooltip=tooltip)


def negative_input() -> io.Input:
    return io.Conditioning.Input("negative", tooltip="What the image should not show. It does not change the plan.")


def seed_input() -> io.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip="The random seed of the noise.",
    )


def cfg_input() -> io.Input:
    return io.Float.Input(
        "cfg",
        default=8.0,
        min=0.0,
        max=100.0,
        step=0.1,
        round=0.01,
        tooltip="Classifier-free guidance scale. A plan is most reliable at the cfg its planner was calibrated for.",
    )


def sampler_input(
    consequence: str = "can be planned: ancestral ones and dpm_adaptive render all max_steps, and the node says so.",
) -> io.Input:
    return io.Combo.Input(
        "sampler_name",
        options=sampler_names(),
        default="dpmpp_2m",
        tooltip=f"The sampling algorithm. Only samplers that approach one picture {consequence}",
    )


def scheduler_input() -> io.Input:
    return io.Combo.Input(
        "scheduler",
        options=scheduler_names(),
        default="karras",
        tooltip="How the noise levels are spread over the steps.",
    )


def quality_input(**more: Any) -> io.Input:
    low, high = QUALITY_RANGE
    return io.Float.Input(
        "quality",
        default=DEFAULT_QUALITY,
        min=low,
        max=high,
        step=0.01,
        round=0.001,
        display_mode=io.NumberDisplay.slider,
        tooltip="How close to the full-step image the result must come: 1 is that image, 0 is as rough as the crudest "
        "render of the calibration. Higher takes more steps.",
        **more,
    )


def max_steps_input(**more: Any) -> io.Input:
    return known(
        io.Int.Input,
        "max_steps",
        default=DEFAULT_MAX_STEPS,
        min=1,
        max=MAX_STEPS,
        tooltip="The step count you would have used. Never more steps than this, and exactly this many where no plan "
        "can be made.",
        **more,
    )


def split_input() -> io.Input:
    return known(
        io.Int.Input,
        "split_at",
        default=0,
        min=0,
        max=MAX_STEPS,
        optional=True,
        advanced=True,
        tooltip="For graphs that change the model or the sampler on the way: the step of max_steps at which they do. "
        "split_step then gives the planned step with the same noise level. 0: no split.",
    )


def min_steps_input() -> io.Input:
    return known(
        io.Int.Input,
        "min_steps",
        default=DEFAULT_MIN_STEPS,
        min=1,
        max=MAX_STEPS,
        advanced=True,
        tooltip="Never fewer steps than this. It must not be above max_steps.",
        optional=True,
    )


def risk_input() -> io.Input:
    low, high = RISK_RANGE
    return known(
        io.Float.Input,
        "risk",
        default=DEFAULT_RISK,
        min=low,
        max=high,
        step=0.01,
        round=0.001,
        advanced=True,
        tooltip="The share of new prompts that may end below the wanted quality. Lower takes more steps.",
        optional=True,
    )


def schedule_input() -> io.Input:
    return known(
        io.Combo.Input,
        "schedule",
        options=[AUTO, NESTED, STOCK],
        default=AUTO,
        optional=True,
        tooltip="nested: every step count begins with the same steps, so that the quality slider refines one picture "
        "instead of changing it. auto: nested where the planner was calibrated for it. stock: the scheduler's own "
        "steps, as KSampler has them.",
    )


def memory_input() -> io.Input:
    return known(
        io.Boolean.Input,
        "memory",
        default=True,
        optional=True,
        advanced=True,
        tooltip="Whether measured renders of this prompt, and of prompts like it, may correct the plan. They come from "
        "Calibrate, from Step Sweep with the Probe, and from what was learned from your renders.",
    )


def planner_input() -> io.Input:
    return known(
        io.Combo.Input,
        "planner",
        options=[AUTO, *list_planners()],
        default=AUTO,
        advanced=True,
        tooltip="auto takes the planner that was calibrated for the connected model. Put your own planner files into "
        "the folder models/budgetfusion.",
        optional=True,
    )
