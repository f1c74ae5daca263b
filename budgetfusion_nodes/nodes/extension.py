"""What the pack's entry point hands to the host, and what the host must know before it lists the nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from ..host.paths import register_folders
from .adaptive_ksampler import AdaptiveKSampler
from .blind_test import BlindTest
from .budget_planner import BudgetPlanner
from .calibrate import Calibrate
from .learn import Learn
from .metric_probe import PerceptualMetricProbe
from .routes import register_routes
from .step_sweep import StepSweep

NODES: list[type[io.ComfyNode]] = [
    BudgetPlanner,
    AdaptiveKSampler,
    StepSweep,
    PerceptualMetricProbe,
    Calibrate,
    BlindTest,
    Learn,
]


class BudgetFusionExtension(ComfyExtension):
    """What the entry point hands to the host."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


def prepare_host() -> None:
    """Model folders, the Tiny Scenes architecture and the page's routes, before anything can be loaded."""
    from ..tiny_scenes.host_model import register

    register_folders()
    register()
    register_routes()
