"""What the pack would do at a sampler node, asked from its own code."""

from __future__ import annotations

from dataclasses import dataclass

from budgetfusion_nodes.core.distilled import few_steps, looks_distilled
from budgetfusion_nodes.core.errors import UnsupportedError
from budgetfusion_nodes.core.setting import Setting
from budgetfusion_nodes.host.sampling import check_sampler
from budgetfusion_nodes.planning.service import AUTO, choose_planner

from .families import AUDIO, SOLID, family_of
from .uses import Use

PLAN, CALIBRATE, DISTILLED, REFUSE = "plan", "calibrate first", "distilled", "refuse"


@dataclass(frozen=True)
class Decision:
    """One of PLAN, CALIBRATE, DISTILLED, REFUSE."""

    kind: str
    why: str = ""

    def words(self) -> str:
        return f"{self.kind}: {self.why}" if self.why else self.kind


def decide(use: Use, schedulers: tuple[str, ...]) -> Decision:
    """`schedulers`: the host's own list. Call it while a host runs: planners lie in its folders."""
    cfg = 100.0 if use.cfg is None else use.cfg
    if few_steps((use.model_file, *use.loras)) or (use.steps is not None and looks_distilled(cfg, use.steps)):
        return Decision(DISTILLED, "keep the graph's count" if use.steps is None else f"keep {use.steps}")
    try:
        check_sampler(use.sampler_name)
    except UnsupportedError:
        return Decision(REFUSE, f"sampler {use.sampler_name}")
    if use.schedule not in schedulers:
        return Decision(REFUSE, f"sigmas of {use.schedule}")
    if family_of(use.model_file).makes in (AUDIO, SOLID):
        return Decision(REFUSE, "no picture to compare")
    setting = Setting(
        model=f"file {use.model_file}",
        sampler_name=use.sampler_name,
        scheduler=use.schedule,
        cfg=cfg,
        width=None,
        height=None,
        model_name=use.model_file,
    )
    try:
        return Decision(PLAN, f"by {choose_planner(AUTO, setting, []).name}")
    except UnsupportedError:
        return Decision(CALIBRATE)
