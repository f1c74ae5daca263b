"""Part `stage_faults`: every stage of planning, probing, learning and remembering fails once in each way.

The stages come from the pack's code (stages.py). With each fault a graph runs in a genuine ComfyUI: the render has to
be made at a count that is said, the text has to name the stage where the plan suffered, and the next run, without the
fault, has to be what it was before.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from budgetfusion_nodes.predictor.network import CurvePredictor
from budgetfusion_nodes.predictor.planner_file import load_planner, save_planner
from research.in_process_host import HostRunError, HostSession
from research.options import WEIGHTS

from .in_host import node, pack_module, run_in_host
from .part import Finding, Part, Work
from .stages import Stage, entry, failing, stages_of

MAX_STEPS = 6
A_STAGE = r"\[[\w/]+\.py "
SIZE = 32
COUNTS = 4
"""Of the planner's grid."""


def _raising(error: Callable[[], BaseException]) -> Callable[[], Any]:
    def make() -> Any:
        raise error()

    return make


FAULTS: Mapping[str, Callable[[], Any]] = {
    "exception": _raising(lambda: RuntimeError("injected")),
    "out of memory": _raising(lambda: torch.OutOfMemoryError("CUDA out of memory. Injected.")),
    "timeout": _raising(lambda: TimeoutError("injected")),
    "NaN": lambda: float("nan"),
}


@dataclass(frozen=True)
class Trial:
    """One stage, one fault, one graph."""

    stage: str
    fault: str
    reached: bool
    problem: str
    """Empty where all is as it has to be."""


def run(work: Work) -> Sequence[Finding]:
    """Makes every stage fail."""
    return run_in_host(__name__, work)


def inside(session: HostSession, work: Work) -> Sequence[Finding]:
    """The same, in the process of the host."""
    bench = Bench(session)
    sampler, planner = ("nodes.adaptive_ksampler", "AdaptiveKSampler"), ("nodes.budget_planner", "BudgetPlanner")
    every = [
        ("planning", (sampler, planner), (bench.planned, bench.obeyed), bench.check_render),
        ("probing", (("nodes.metric_probe", "PerceptualMetricProbe"),), (bench.probed,), bench.check_goes_on),
        ("learning", (("nodes.learn", "Learn"),), (bench.learned,), bench.check_goes_on),
    ]
    rng, seen = random.Random(work.seed), set[str]()
    findings: list[Finding] = []
    for what, nodes, graphs, check in every:
        stages = {stage.told: stage for one in nodes for stage in _stages(*one) if stage.told not in seen}
        seen |= set(stages)
        trials: list[Trial] = []
        for stage in rng.sample(list(stages.values()), min(len(stages), work.count(quick=1, long=1000))):
            names = list(FAULTS) if work.amount == "long" else [rng.choice(list(FAULTS))]
            trials += [_tried(graphs, stage, name, check) for name in names]
        findings.append(_finding(what, len(stages), trials))
    return findings


def _stages(module: str, cls: str) -> list[Stage]:
    planner, memory = pack_module("predictor.planner").Planner, pack_module("predictor.memory").Memory
    cache, learner = pack_module("planning.memory").Cache, pack_module("calibration.learning").Learner
    renderer = pack_module("calibration.host_renderer").HostRenderer
    return stages_of(entry(module, cls), (planner, memory, cache, learner, renderer))


def _tried(graphs: Sequence[Callable[[], Any]], stage: Stage, fault: str, check: Callable[[Any, str], str]) -> Trial:
    """With the first of the graphs that reaches the stage."""
    problem, reached = "", False
    named = A_STAGE if fault == "NaN" else re.escape(stage.told)  # a wrong value fails where it is used
    for graph in graphs:
        made = graph()
        with failing(stage, FAULTS[fault]) as calls:
            problem = check(made, named)
        problem, reached = problem or check(graph(), "no fault any more"), bool(calls)
        if reached or problem:
            break
    return Trial(stage.told, fault, reached, problem)


def _finding(what: str, stages: int, trials: Sequence[Trial]) -> Finding:
    reached = [trial for trial in trials if trial.reached]
    bad = [trial for trial in trials if trial.problem]
    text = (
        f"{what}: {len(trials)} faults in {len({t.stage for t in trials})} of {stages} stages, {len(reached)} of them "
        f"reached; {len(bad)} stopped a render, went unsaid or spoiled the next run"
    )
    kinds = Counter(trial.fault for trial in reached)
    told = {f"bad {i}": f"{t.stage}, {t.fault}: {t.problem}" for i, t in enumerate(bad[:12])}
    unreached = ", ".join(sorted({t.stage for t in trials} - {t.stage for t in reached}))
    return Finding("goes_on", text, not bad, {"stages": stages, **kinds, **told, "not reached": unreached})


class Bench:
    """Graphs around a shipped model, with one remembered render."""

    def __init__(self, session: HostSession) -> None:
        self.session, self._seed = session, 0
        _save_short_planner(session)
        session.execute(self.learned())
        self.before = self._plan(session.execute(self.planned()))
        if self.before["fallback"] is not None:
            raise RuntimeError(f"no plan without a fault: {self.before['fallback']}")

    def _base(self) -> dict[str, Any]:
        self._seed += 1  # else the host answers from its cache
        return {
            "1": node("CheckpointLoaderSimple", ckpt_name="tiny_scenes.safetensors"),
            "2": node("CLIPTextEncode", text="two blue circles on a green background", clip=["1", 1]),
            "3": node("CLIPTextEncode", text="", clip=["1", 1]),
            "4": node("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=1),
        }

    def _inputs(self) -> dict[str, Any]:
        linked = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
        return {**linked, "seed": self._seed, "cfg": 3.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}

    def planned(self) -> dict[str, Any]:
        """An Adaptive KSampler that plans by itself."""
        sliders = {"quality": 0.5, "max_steps": MAX_STEPS}
        sampler = node("BudgetFusion_AdaptiveKSampler", **self._inputs_of_next(), **sliders)
        return {**self._base(), "5": sampler, "6": node("PreviewAny", source=["5", 1])}

    def _inputs_of_next(self) -> dict[str, Any]:
        return {**self._inputs(), "seed": self._seed + 1}

    def obeyed(self) -> dict[str, Any]:
        """One that is given a plan."""
        graph = self.planned()
        inputs = {key: value for key, value in self._inputs().items() if key not in ("negative", "seed")}
        changed = 0.5 + 0.0001 * (self._seed % 1000)
        graph["7"] = node("BudgetFusion_BudgetPlanner", **inputs, quality=changed, max_steps=MAX_STEPS)
        graph["5"]["inputs"]["plan"] = ["7", 0]
        return graph

    def probed(self) -> dict[str, Any]:
        """A Step Sweep into the Probe."""
        base = self._base()
        sweep = node("BudgetFusion_StepSweep", **self._inputs(), vae=["1", 2], step_counts="2 3 4")
        probe = node("BudgetFusion_PerceptualMetricProbe", images=["5", 0], step_counts=["5", 1])
        return {**base, "5": sweep, "6": probe}

    def learned(self) -> dict[str, Any]:
        """A Learn of the render."""
        base = self._base()
        return {**base, "6": node("BudgetFusion_Learn", **self._inputs(), vae=["1", 2])}

    def _plan(self, run: Any) -> dict[str, Any]:
        return run.ui["5"]["budget_plan"][0]

    def check_render(self, graph: dict[str, Any], named: str) -> str:
        """Empty, or what is wrong with the run. named: pattern of what is said of the stage where the plan suffered."""
        try:
            run = self.session.execute(graph)
        except HostRunError as error:
            return f"the render was stopped: {error}"
        steps, text = run.outputs["5"][1], run.ui["5"]["text"][0]
        if not (
            1 <= steps <= MAX_STEPS and str(steps) in text and torch.isfinite(run.outputs["5"][0]["samples"]).all()
        ):
            return f"{steps} steps, and said is: {text}"
        shown = run.ui["5"].get("budget_plan")
        same = shown is not None and self._is_as_before(shown[0])
        if not same and not re.search(named, text) and not _is_explained(shown):
            return f"the stage is not named: {text}"
        return ""

    def _is_as_before(self, plan: Mapping[str, Any]) -> bool:
        """Whether nothing was lost: a plan without a fallback, from the same planner."""
        return plan["fallback"] is None and plan["planner"] == self.before["planner"]

    def check_goes_on(self, graph: dict[str, Any], named: str) -> str:
        """Empty where the graph ends with a sentence or with an error that the host tells, and a render works then."""
        try:
            self.session.execute(graph)
        except HostRunError as error:
            if not str(error).strip():
                return "no reason was given"
        del named  # the host names the node
        return self.check_render(self.planned(), "no fault any more")


def _save_short_planner(session: HostSession) -> None:
    """The shipped planner on its first counts: learning is cheap then. `auto` takes it, it comes first by name."""
    shipped = load_planner(WEIGHTS / "planners" / "tiny_scenes_dpmpp_2m_nested.safetensors")
    networks = []
    for network in shipped.networks:
        short = CurvePredictor(network.size, shipped.grid[:COUNTS], shipped.metrics)
        state = network.state_dict()
        short.load_state_dict({**state, "baseline": state["baseline"][:COUNTS]})
        networks.append(short.eval())
    folder = session.base_dir / "models" / "budgetfusion"
    folder.mkdir(parents=True, exist_ok=True)
    save_planner(folder / "a_short.safetensors", replace(shipped, grid=shipped.grid[:COUNTS], networks=tuple(networks)))


def _is_explained(shown: Any) -> bool:
    """Whether the plan says in a sentence of its own why it has no curve: the fault looked like bad input."""
    return bool(shown) and shown[0]["fallback"] is not None and shown[0]["fallback"]["code"] != "unforeseen"


PART = Part("stage_faults", "A fault in every stage", run)
