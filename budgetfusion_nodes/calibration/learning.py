"""Learn from a render: the same picture at the counts that its planner knows, measured and remembered.

What the node Learn calls, by hand or, where the artist turned it on, by the page after a planned render while the
queue is empty. It gives way: as soon as something is queued it ends within one step, and what was measured is kept.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..core.errors import BudgetFusionError
from ..core.messages import Message, message
from ..core.plan import Decision, Plan
from ..core.schedule import NestedSchedule
from ..core.sources import LEARNED
from ..host.drafts import FINISHED, trajectory_of
from ..host.measuring import offloaded
from ..host.paths import encoder_folders, store_path
from ..host.queue import GivesWay, giving_way
from ..host.sampling import trajectory_key
from ..metrics.matching import very_backends
from ..planning.choice import planner_of
from ..planning.origin import Origin, known_counts, origin_of, remember
from ..planning.service import Request, plan_render
from ..predictor.planner import Planner
from .host_renderer import Graph, HostRenderer, first_of
from .memory_reader import SETTLED
from .records import Measurement
from .store import Store
from .store_memory import learned_since
from .trajectory import Failed, Measured, RenderError, Work, next_count, run_trajectory

HOUR = 3600.0
NEARLY = 0.02
"""Predicted upper shortfall, over its scale, from which on a finished picture stands for the target: differences below
it are invisible (predictor/fit.LOG_OFFSET)."""
ENOUGH_STEPS = 1000
"""The learner plans for nobody: no limit of the artist's may keep it from the curve."""


@dataclass(frozen=True)
class Connected(Graph):
    """A graph whose prompt is encoded already."""

    positive: Any = None

    def conditioning(self, text: str) -> Any:
        del text
        return self.positive


@dataclass(frozen=True)
class Learner:
    """One render to learn from."""

    graph: Connected
    request: Request
    seed: int
    clip_vision: Any = None
    per_hour: int = 0
    """0: no limit."""

    def run(self) -> tuple[Message, ...]:
        """What was learned, or why nothing. The host's own cancel passes; what was measured until then is kept."""
        graph = self.graph
        request = replace(self.request, max_steps=ENOUGH_STEPS, memory=False)
        plan = plan_render(graph.model, graph.positive, request, graph.latent)
        origin = self._origin(plan)
        if origin is None or plan.decision is None:
            return (plan.fallback or message("learn_not_one"),)
        try:
            planner, enough = planner_of(plan), bool(self.per_hour) and self._learned() >= self.per_hour
            wanted = {metric: planner.backends[metric] for metric in planner.metrics}
            backends, lacking = very_backends(wanted, self.clip_vision, encoder_folders())
        except BudgetFusionError as error:
            return (error.message,)
        if lacking:
            return lacking
        schedule = NestedSchedule.from_text(plan.schedule)
        known = known_counts(origin, planner.target_steps, wanted)
        if next_count(planner.grid, known, SETTLED) is None:
            return (message("learn_nothing"),)
        finished = FINISHED.of(trajectory_of(self._key(plan), graph.model, origin.setting))
        renderer = HostRenderer(
            graph, backends, planner.metrics, lambda _, model: giving_way(model), schedule, finished=finished
        )
        with offloaded(backends):
            if enough:
                found = self._from_draft(renderer, planner, plan.decision, origin, wanted)
                return (message("learn_enough", n=self.per_hour),) if found is None else (found,)
            return self._measure(renderer, planner, origin, wanted, known)

    def _key(self, plan: Plan) -> str | None:
        """By which host/drafts knows the pictures of this trajectory that the artist has rendered."""
        graph, request = self.graph, self.request
        positive, negative, latent = graph.positive, graph.negative, graph.latent
        return trajectory_key(
            graph.model, self.seed, request.cfg, request.sampler_name, positive, negative, latent, plan.prefix_steps
        )

    def _from_draft(
        self, renderer: HostRenderer, planner: Planner, decision: Decision, origin: Origin, names: Mapping[str, str]
    ) -> Message | None:
        """Remembers a draft and the finished picture that the artist made of it, where that is nearly the target;
        None where there are no such two. Nothing is rendered, so no hour's limit counts.

        A distance to the target is at most that to the finished picture and the finished picture's own, of which the
        predicted upper value is taken: it errs toward more steps.
        """
        counts = [n for n in sorted(renderer.finished) if decision.counts[0] <= n <= planner.target_steps]
        if len(counts) < 2:
            return None
        *drafts, last = counts
        own = decision.upper[last - decision.counts[0]]
        if own > NEARLY:
            return None
        try:
            reference = renderer.reference("", self.seed, last, None, False)
            found = {n: renderer.measure(reference, "", self.seed, n, False) for n in drafts}
        except RenderError as error:
            return message("learn_failed", reason=str(error))
        rest = {metric: own * scale for metric, scale in zip(planner.metrics, planner.scale, strict=True)}
        distances = {n: {m: one.distances[m] + rest[m] for m in planner.metrics} for n, one in found.items()}
        distances |= {last: rest, planner.target_steps: dict.fromkeys(planner.metrics, 0.0)}
        level = reference.found.l_snr
        decibel = {n: found[n].l_snr if n in found else level for n in distances}
        return remember(origin, distances, decibel, names, LEARNED, planner)

    def _origin(self, plan: Plan) -> Origin | None:
        graph = self.graph
        arguments = (graph.model, graph.positive, graph.negative, graph.latent, self.request, self.seed)
        return None if plan.fallback is not None else origin_of(*arguments, schedule=plan.schedule)

    def _learned(self) -> int:
        with Store.at(store_path()) as store:
            return learned_since(store, LEARNED, time.time() - HOUR)

    def _measure(
        self,
        renderer: HostRenderer,
        planner: Planner,
        origin: Origin,
        backends: Mapping[str, str],
        known: Mapping[int, Measurement],
    ) -> tuple[Message, ...]:
        """Goes on from the counts that are known; each new one is kept before the next is rendered."""
        said: Message | None = None
        target = known.get(planner.target_steps)
        try:
            for event in run_trajectory(renderer, Work(0, 0, "", self.seed, planner.grid, SETTLED, known)):
                if isinstance(event, Failed):
                    return (message("learn_failed", reason=event.reason),)
                if not isinstance(event, Measured):
                    continue
                found = event.found
                target = target or found
                both = {one.steps: one for one in (target, found)}
                distances = {n: one.distances for n, one in both.items()}
                decibel = {n: one.l_snr for n, one in both.items()}
                said = remember(origin, distances, decibel, backends, LEARNED, planner)
        except GivesWay:
            return (message("learn_gave_way"),)
        return (said or message("learn_nothing"),)


def learner(
    model: Any,
    positive: Any,
    negative: Any,
    latent_image: Mapping[str, Any],
    vae: Any,
    request: Request,
    seed: int,
    clip_vision: Any = None,
    per_hour: int = 0,
) -> Learner:
    """InputError or UnsupportedError where the inputs are no render."""
    graph = Connected(
        model,
        None,
        vae,
        negative,
        request.sampler_name,
        request.scheduler,
        request.cfg,
        first_of(latent_image),
        {},
        positive,
    )
    return Learner(graph, request, seed, clip_vision, per_hour)
