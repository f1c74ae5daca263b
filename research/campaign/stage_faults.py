"""Part `stage_faults`: every stage of planning, probing, learning, remembering and calibrating fails in each way.

The stages come from the pack's code (stages.py). With each fault a graph runs in a genuine ComfyUI: the render has to
be made at a count that is said, the text has to name the stage where the plan suffered, and the next run, without the
fault, has to be what it was before. A node without a render (Calibrate, Probe, Learn) has to name the stage, and to go
on at the next queue.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from budgetfusion_nodes.core.schedule import NESTED, STOCK
from budgetfusion_nodes.predictor.network import CurvePredictor
from budgetfusion_nodes.predictor.planner_file import load_planner, save_planner
from research.in_process_host import HostRunError, HostSession
from research.options import WEIGHTS

from .calibrating_faults import CalibratingBench
from .in_host import node, pack_module, run_in_host
from .part import Finding, Part, Work
from .saying import Named, says
from .stages import Stage, entry, failing, stages_of

MAX_STEPS = 6
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


Check = Callable[[Any, Named | None], str]
"""(a graph, how the failing stage is named; None: without a fault) -> what is wrong, or nothing."""


@dataclass(frozen=True)
class Subject:
    """One kind of work, whose stages fail."""

    what: str
    nodes: tuple[tuple[str, str], ...]
    """(module, class) whose `execute` is walked."""
    graphs: tuple[Callable[[], Any], ...]
    check: Check
    methods: tuple[type, ...]
    """Classes whose methods are stages."""
    begin: Callable[[], None] = lambda: None
    """Before each fault."""


def inside(session: HostSession, work: Work) -> Sequence[Finding]:
    """The same, in the process of the host."""
    rng, reached = random.Random(work.seed), set[str]()
    findings: list[Finding] = []
    subjects = _subjects(session, work)
    kinds = work.count(quick=4, long=5)
    for left, subject in zip(range(kinds, 0, -1), subjects, strict=True):
        listed = (stage for one in subject.nodes for stage in stages_of(entry(*one), subject.methods))
        stages = {stage.told: stage for stage in listed if stage.told not in reached}
        now = time.time()
        own = replace(work, until=now + (work.until - now) / left)
        trials = list(_trials(subject, list(stages.values()), own, rng))
        reached |= {trial.stage for trial in trials if trial.reached}
        findings.append(_finding(subject.what, len(stages), trials))
    return findings


def _trials(subject: Subject, stages: Sequence[Stage], work: Work, rng: random.Random) -> Iterator[Trial]:
    """Every stage with one of the faults, then all with the next: where the time ends, every stage was tried."""
    chosen = rng.sample(stages, min(len(stages), work.count(quick=1, long=1000)))
    faults = [rng.sample(list(FAULTS), len(FAULTS)) for _ in chosen]
    unreached = set[str]()
    for place in range(work.count(quick=1, long=len(FAULTS))):
        for stage, own in zip(chosen, faults, strict=True):
            if work.is_over():
                return
            if stage.told not in unreached:
                trial = _tried(subject, stage, own[place])
                if not trial.reached:
                    unreached.add(stage.told)
                yield trial


def _subjects(session: HostSession, work: Work) -> Iterator[Subject]:
    """A bench is made when its turn comes."""
    bench, methods = Bench(session), planning_methods()
    planners = (("nodes.adaptive_ksampler", "AdaptiveKSampler"), ("nodes.budget_planner", "BudgetPlanner"))
    probe, learn = ("nodes.metric_probe", "PerceptualMetricProbe"), ("nodes.learn", "Learn")
    plans = (bench.planned, bench.obeyed)
    yield Subject("planning", planners, plans, bench.check_render, methods, bench.forget)
    yield Subject("probing", (probe,), (bench.probed,), bench.check_goes_on, methods)
    yield Subject("learning", (learn,), (bench.learned,), bench.check_goes_on, methods)
    calibrate = ("nodes.calibrate", "Calibrate")
    for what, kind in (("calibrating", STOCK), ("searching", NESTED))[: work.count(quick=1, long=2)]:
        own = CalibratingBench(session, work, kind)
        with own.amounts():
            own.prepare()
            yield Subject(what, (calibrate,), (own.graph,), own.check, own.methods(), own.begin)


def planning_methods() -> tuple[type, ...]:
    """Classes whose methods plan, remember and learn."""
    planner, memory = pack_module("predictor.planner").Planner, pack_module("predictor.memory").Memory
    cache, learner = pack_module("planning.memory").Cache, pack_module("calibration.learning").Learner
    return (planner, memory, cache, learner, pack_module("calibration.host_renderer").HostRenderer)


def _tried(subject: Subject, stage: Stage, fault: str) -> Trial:
    """With the first of the graphs that reaches the stage."""
    problem, reached = "", False
    named = Named(None if fault == "NaN" else stage.told)  # a wrong value fails where it is used
    for graph in subject.graphs:
        subject.begin()
        made = graph()
        with failing(stage, FAULTS[fault]) as calls:
            problem = subject.check(made, named)
        reached = bool(calls)
        if not (reached or problem):
            continue
        after = subject.check(graph(), None)
        problem = problem or (after and f"the next run: {after}")
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
    told = {
        "bad": [f"{t.stage}, {t.fault}: {t.problem}" for t in bad],
        "not_reached": sorted({t.stage for t in trials} - {t.stage for t in reached}),
    }
    return Finding("goes_on", text, not bad, {"stages": stages, **kinds, **told})


class Bench:
    """Graphs around a shipped model, with one remembered render."""

    def __init__(self, session: HostSession) -> None:
        self.session, self._seed, self._memory = session, 0, pack_module("planning.memory")
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

    def forget(self) -> None:
        """What was read of the memory, so that a plan reads it again, and a thread fits it anew."""
        self._memory.CACHE.clear()
        pack_module("calibration.memory_file").forget_ready(pack_module("host.paths").store_path())

    def check_render(self, graph: dict[str, Any], named: Named | None) -> str:
        """Empty, or what is wrong with the run."""
        try:
            run = self.session.execute(graph)
        except HostRunError as error:
            return f"the render was stopped: {error}"
        self._memory.CACHE.wait()
        steps, text = run.outputs["5"][1], run.ui["5"]["text"][0]
        if not (
            1 <= steps <= MAX_STEPS and str(steps) in text and torch.isfinite(run.outputs["5"][0]["samples"]).all()
        ):
            return f"{steps} steps, and said is: {text}"
        shown = run.ui["5"].get("budget_plan")
        same = shown is not None and self._is_as_before(shown[0])
        if not same and not (named and (named.inside(text) or _is_explained(shown))):
            return f"the stage is not named: {text}"
        return ""

    def _is_as_before(self, plan: Mapping[str, Any]) -> bool:
        """Whether nothing was lost: a plan without a fallback, from the same planner."""
        return plan["fallback"] is None and plan["planner"] == self.before["planner"]

    def check_goes_on(self, graph: dict[str, Any], named: Named | None) -> str:
        """Empty where the graph ends, or an error names the stage or the reason; without a fault a render works too."""
        try:
            self.session.execute(graph)
        except HostRunError as error:
            if not (named and says(error, named)):
                return f"the stage is not named: {error}"
        return "" if named else self.check_render(self.planned(), None)


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
